"""Does what a debiasing claims hold on rows that chose nothing? python -m benchmarks.choice_on_cuts --cuts 6 7 8 9

The fit and select rows of the shared HAM10000 checkpoint are cut anew by lesion, 45 % to fit, 30 % to choose, 25 % to
measure; the test split stays held out. For each cut, attribute and preset: what was claimed on the rows that chose
against what the same model does on the third part. Finished runs are kept under benchmarks/cache and not run again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common import SHARED, cached, footer, table
from bmft.checkpoints import load_checkpoint
from bmft.data import GroupedData, load_manifest
from bmft.methods import debias, gap_measure, settings_for
from bmft.training import figures_of

PARTS = (0.45, 0.30)  # to fit, to choose; the rest measures
REACH = 1.645  # of a two-sided 90 % interval


def rows(attribute: str) -> GroupedData:
    return load_manifest(
        SHARED / "data/ham10000-64/metadata.csv",
        target="label",
        sensitive=attribute,
        split_column="split",
        split=["fit", "select"],
        cluster="lesion_id",
        image_size=64,
        normalize="0.76,0.55,0.57/0.14,0.15,0.17",
    )


def cut(data: GroupedData, seed: int) -> list[GroupedData]:
    """The three parts, whole lesions each."""
    lesions = np.unique(np.asarray(data.clusters))
    order = np.random.default_rng(1000 + seed).permutation(lesions)
    ends = [round(share * len(lesions)) for share in np.cumsum(PARTS)]
    return [data.subset(torch.from_numpy(np.isin(data.clusters, part))) for part in np.split(order, ends)]


def measured(attribute: str, seed: int, preset: str) -> dict[str, Any]:
    """One run: what was claimed, and what the third part says."""
    fit, choose, third = cut(rows(attribute), seed)
    model = load_checkpoint(SHARED / "models/ham10000_resnet18.pt")
    config = {"preset": preset}
    found = debias(model, fit, choose, test=third, config=config, seed=seed, device="cpu", intervals=False)
    report, history = found.report, found.report.history
    sides = [audit.predictions for audit in (found.before, found.after)]
    figures = figures_of(gap_measure(settings_for("bmft", config), 0.5), [side for side in sides if side], 0)
    reduction = figures.gap[0] - figures.gap[1]
    auc = figures.groups[attribute]["roc_auc"][:, 0, :, 0]  # (sides, groups)
    accuracy = figures.mean_of(attribute, "balanced_accuracy")[:, 0]
    claim: Mapping[str, Any] = report.claim or {}
    chosen = next(entry for entry in history if entry.chosen)
    return {
        "accepted": found.accepted,
        "word": claim.get("word", "as chosen" if found.accepted else "none"),
        "strength": chosen.strength,
        "chose": history[0].gap,
        "claimed": claim.get("reduction", history[0].gap - chosen.gap) if found.accepted else 0.0,
        "apparent": history[0].gap - chosen.gap,
        "error": claim.get("error", 0.0) if found.accepted else 0.0,
        "before": float(figures.gap[0, 0]),
        "reduction": float(reduction[0]),
        "third_error": float(reduction[1:].std()),
        "larger": [float(value) for value in figures.odds[attribute][:, 0]],
        "within": float(np.diff(auc.mean(1))[0]),
        "worst": float(np.diff(auc, axis=0).min()),
        "balanced_accuracy": float(accuracy[1] - accuracy[0]),
        "seconds": report.seconds["total"],
    }


def line(name: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row of the table: means over cuts."""

    def each(key: str) -> np.ndarray:
        return np.array([run[key] for run in found], float)

    off, moved = each("claimed") - each("reduction"), each("accepted") > 0
    own = np.abs(off) <= REACH * each("error")
    both = np.abs(off) <= REACH * np.hypot(each("error"), each("third_error"))
    words = []
    for word in ("shown", "likely", "as chosen", "none"):
        runs = [run for run in found if run["word"] == word]
        worse = sum(run["reduction"] < 0 for run in runs)
        words.append(f"{worse} of {len(runs)}" if runs else "-")
    claimed = moved.any() and each("error")[moved].any()
    return [
        name,
        f"{moved.sum()} of {len(found)}",
        f"{each('before').mean():.3f} -> {(each('before') - each('reduction')).mean():.3f}",
        f"{100 * each('reduction').sum() / each('before').sum():.0f} %",
        f"{off.mean():+.3f} (sd {off.std():.3f})",
        f"{(own | ~moved).mean():.2f}, {(both | ~moved).mean():.2f}" if claimed else "-",
        f"{each('within').mean():+.4f}, {each('worst').mean():+.4f}, {each('balanced_accuracy').mean():+.4f}",
        *words,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, nargs="*", default=list(range(10)))
    parser.add_argument("--attributes", nargs="*", default=["age_ge60", "sex"])
    parser.add_argument("--presets", nargs="*", default=["default", "path"])
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED} is missing: set BMFT_SHARED to the folder that holds data/ and models/")
    lines = []
    for preset in options.presets:
        for attribute in options.attributes:
            found = []
            for seed in options.cuts:
                key = {"attribute": attribute, "cut": seed, "preset": preset}
                found.append(cached("choice_on_cuts", key, partial(measured, attribute, seed, preset)))
                print(json.dumps({**key, **found[-1]}), flush=True)
            lines.append(line(f"{preset}, {attribute}", found))
    header = ["preset, attribute", "accepted", "gap on the third part", "smaller by", "claimed minus third part"]
    header += ["90 % interval covers (own; own and third)", "within, worst group's AUC, balanced accuracy"]
    header += [f"larger gap, of {word}" for word in ("shown", "likely", "as chosen", "none")]
    print(f"\n{table(header, lines)}\n\n{footer(cuts=options.cuts, data='ham10000-64, fit + select')}")


if __name__ == "__main__":
    main()
