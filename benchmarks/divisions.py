"""The choice made again on other divisions of the rows that trained nothing: python -m benchmarks.divisions

Every run of benchmarks/choice_on_cuts.py (and of small_sets.py) leaves its candidates' probabilities for all rows that
did not train. These are divided again, by lesion, into rows that choose and rows that measure, and the same rule
chooses and claims, without training. The divisions of a run share its candidates, so they are not as many runs; the
head that is tried last is the one that was trained beside the run's own choice. With --calibrate: what `debias
--calibrate` would make of the probabilities there, by a fit to the rows that choose. With --heads: what the head step
adds to the candidate of step 1 that it began with, on all rows that did not train.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import nn

from benchmarks.choice_on_cuts import HEADER, PARTS, line, outcome
from benchmarks.common import HERE, cached, footer, table
from bmft.auditing import Predictions, audit_predictions, fitted_rescaling, log_loss
from bmft.methods import gap_measure, settings_for
from bmft.tables import Attribute
from bmft.training import Conditions, Selection, figures_of

KEPT = HERE / "cache/candidates"
CALIBRATION = [
    "attribute",
    "divisions that moved",
    "groups' calibration error: original -> chosen -> calibrated",
    "better",
]
CALIBRATION += ["log loss: original -> chosen -> calibrated", "better"]
HEADS = ["attribute", "heads", "gap", "mean of the groups' AUCs", "worst group's AUC"]


def read(path: Path) -> tuple[list[Predictions], np.ndarray, np.ndarray]:
    """The candidates of a run, the original first, with their strengths and steps."""
    kept = np.load(path)
    attribute = Attribute(path.stem.rsplit("_", 2)[0], ("group 0", "group 1"))
    common = {"groups": kept["groups"], "attributes": (attribute,), "clusters": kept["clusters"]}
    return [Predictions(s, kept["targets"], **common) for s in kept["scores"]], kept["strengths"], kept["steps"]


def divided(path: Path, number: int, share: float = 1.0) -> dict[str, Any]:
    """The choice on one division; of the rows that choose only a share may be used."""
    selection, candidates, _, third = chosen(path, number, share)
    claim = None if selection.claim is None else selection.claim.to_dict()
    sides = [candidates[place].subset(third) for place in (0, selection.chosen)]
    gap = gap_measure(settings_for("bmft"), 0.5)
    return outcome(bool(selection.chosen), claim, selection.history, sides, gap)


def chosen(path: Path, number: int, share: float) -> tuple[Selection, list[Predictions], np.ndarray, np.ndarray]:
    """Who chose on one division, the candidates, and which rows chose and which measure."""
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
    selection.finish()
    return selection, candidates, choose, third


def calibrated(path: Path, number: int) -> dict[str, Any]:
    """Mean of the groups' calibration errors, and log loss, on the third part: original, chosen, calibrated."""
    selection, candidates, choose, third = chosen(path, number, 1.0)
    new = candidates[selection.chosen]
    sides = [candidates[0].subset(third), new.subset(third)]
    sides.append(fitted_rescaling(new.subset(choose)).of(sides[1]))
    groups = [next(iter(audit_predictions(side, intervals=False).by_group.values())) for side in sides]
    errors = [float(np.mean([one["expected_calibration_error"] for one in side.values()])) for side in groups]
    return {"moved": bool(selection.chosen), "errors": errors, "losses": [log_loss(side) for side in sides]}


def calibration_line(name: str, found: Sequence[dict[str, Any]]) -> list[str]:
    """One row of the table with --calibrate, of the divisions that moved."""
    moved = [one for one in found if one["moved"]]
    cells = [name, f"{len(moved)} of {len(found)}"]
    for key in ("errors", "losses"):
        values = np.array([one[key] for one in moved])
        cells.append(" -> ".join(f"{mean:.3f}" for mean in values.mean(0)))
        cells.append(f"{(values[:, 2] < values[:, 1]).mean():.0%}")
    return cells


def added_by_head(path: Path) -> list[float] | None:
    """Changes of the gap and of the mean and lowest AUC of the groups by step 2; None for a run without it."""
    candidates, strengths, steps = read(path)
    if 2 not in steps:
        return None
    head = int(np.flatnonzero(steps == 2)[0])
    before = int(np.flatnonzero((steps == 1) & (strengths == strengths[head]))[0])
    figures = figures_of(gap_measure(settings_for("bmft"), 0.5), [candidates[before], candidates[head]], 0)
    (attribute,) = figures.groups
    each = (figures.gap, figures.mean_of(attribute, "roc_auc"), figures.worst_of(attribute, "roc_auc"))
    return [float(np.diff(values[:, 0])[0]) for values in each]


def heads_line(name: str, found: Sequence[Sequence[float]]) -> list[str]:
    """One row of the table with --heads: means over runs, and half a 95 % t interval."""
    values = np.array(found)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / len(values) ** 0.5
    return [name, str(len(values)), *(f"{m:+.4f} ± {h:.4f}" for m, h in zip(values.mean(0), half, strict=True))]


def all_divided(path: Path, times: int, share: float = 1.0) -> list[dict[str, Any]]:
    """The choice on so many divisions of a run."""
    keys = ({"run": path.stem, "number": number, "share": share} for number in range(times))
    return [cached("divisions", key, partial(divided, path, key["number"], share)) for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="*", help="names under benchmarks/cache/candidates, such as sex_6_*")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--shares", type=float, nargs="*", default=[1.0], help="of the rows that choose")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--calibrate", action="store_true", help="the probabilities, in place of the choice")
    other.add_argument("--heads", action="store_true", help="what the head step adds, in place of the choice")
    options = parser.parse_args()
    paths = sorted(path for name in options.runs or ["*"] for path in KEPT.glob(f"{name}.npz"))
    if not paths:
        raise SystemExit(f"nothing under {KEPT}: run python -m benchmarks.choice_on_cuts first")
    lines: list[Sequence[Any]] = []
    for attribute in dict.fromkeys(path.stem.rsplit("_", 2)[0] for path in paths):
        own = [path for path in paths if path.stem.startswith(f"{attribute}_")]
        if options.heads:
            lines.append(heads_line(attribute, [one for path in own if (one := added_by_head(path)) is not None]))
        if options.calibrate:
            keys = [(path, number) for path in own for number in range(options.times)]
            lines.append(calibration_line(f"{attribute}, {len(own)} runs", [calibrated(*key) for key in keys]))
        for share in [] if options.calibrate or options.heads else options.shares:
            found = [run for path in own for run in all_divided(path, options.times, share)]
            print(json.dumps({"attribute": attribute, "share": share, "runs": [path.stem for path in own]}), flush=True)
            lines.append(line(f"{attribute}, {len(own)} runs, {share:g} of the rows to choose", found))
    header = HEADS if options.heads else CALIBRATION if options.calibrate else HEADER
    print(f"\n{table(header, lines)}\n\n{footer(divisions=options.times, data='ham10000-64, fit + select')}")


if __name__ == "__main__":
    main()
