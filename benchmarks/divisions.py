"""The choice made again on other divisions of the rows that trained nothing: python -m benchmarks.divisions

Every run of benchmarks/choice_on_cuts.py (and of small_sets.py) leaves its candidates' probabilities for all rows that
did not train. These are divided again, by lesion, into rows that choose and rows that measure, and the same rule
chooses and claims, without training. The divisions of a run share its candidates, so they are not as many runs; the
head that is tried last is the one that was trained beside the run's own choice.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks.choice_on_cuts import HEADER, PARTS, line, outcome
from benchmarks.common import HERE, cached, footer, table
from bmft.auditing import Predictions
from bmft.methods import gap_measure, settings_for
from bmft.tables import Attribute
from bmft.training import Conditions, Selection

KEPT = HERE / "cache/candidates"


def read(path: Path) -> tuple[list[Predictions], np.ndarray, np.ndarray]:
    """The candidates of a run, the original first, with their strengths and steps."""
    kept = np.load(path)
    attribute = Attribute(path.stem.rsplit("_", 2)[0], ("group 0", "group 1"))
    common = {"groups": kept["groups"], "attributes": (attribute,), "clusters": kept["clusters"]}
    return [Predictions(s, kept["targets"], **common) for s in kept["scores"]], kept["strengths"], kept["steps"]


def divided(path: Path, number: int, share: float = 1.0) -> dict[str, Any]:
    """The choice on one division; of the rows that choose only a share may be used."""
    candidates, strengths, steps = read(path)
    clusters = np.asarray(candidates[0].clusters)
    lesions = np.unique(clusters)
    order = np.random.default_rng(3000 + number).permutation(lesions)
    end = round(len(lesions) * PARTS[1] / (1 - PARTS[0]))
    choose, third = np.isin(clusters, order[: round(share * end)]), np.isin(clusters, order[end:])
    gap = gap_measure(settings_for("bmft"), 0.5)
    selection = Selection(nn.Identity(), gap, Conditions(seed=number, intervals=False), {}, few=True)
    selection.start(candidates[0].subset(choose))
    for epoch, one in enumerate(candidates[1:], 1):
        strength = float(strengths[epoch])
        selection.consider(one.subset(choose), step=int(steps[epoch]), epoch=epoch, loss=0.0, strength=strength)
    accepted = selection.finish()
    claim = None if selection.claim is None else selection.claim.to_dict()
    sides = [candidates[place].subset(third) for place in (0, selection.chosen)]
    return outcome(accepted, claim, selection.history, sides, gap)


def all_divided(path: Path, times: int, share: float = 1.0) -> list[dict[str, Any]]:
    """The choice on so many divisions of a run."""
    keys = ({"run": path.stem, "number": number, "share": share} for number in range(times))
    return [cached("divisions", key, partial(divided, path, key["number"], share)) for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="*", help="names under benchmarks/cache/candidates, such as sex_6_*")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--shares", type=float, nargs="*", default=[1.0], help="of the rows that choose")
    options = parser.parse_args()
    paths = sorted(path for name in options.runs or ["*"] for path in KEPT.glob(f"{name}.npz"))
    if not paths:
        raise SystemExit(f"nothing under {KEPT}: run python -m benchmarks.choice_on_cuts first")
    lines: list[Sequence[Any]] = []
    for attribute in dict.fromkeys(path.stem.rsplit("_", 2)[0] for path in paths):
        own = [path for path in paths if path.stem.startswith(f"{attribute}_")]
        for share in options.shares:
            found = [run for path in own for run in all_divided(path, options.times, share)]
            print(json.dumps({"attribute": attribute, "share": share, "runs": [path.stem for path in own]}), flush=True)
            lines.append(line(f"{attribute}, {len(own)} runs, {share:g} of the rows to choose", found))
    print(f"\n{table(HEADER, lines)}\n\n{footer(divisions=options.times, data='ham10000-64, fit + select')}")


if __name__ == "__main__":
    main()
