"""Does what a debiasing claims hold on rows that chose nothing? python -m benchmarks.choice_on_cuts --cuts 6 7 8 9

The fit and select rows of the shared HAM10000 checkpoint are cut anew by lesion, 45 % to fit, 30 % to choose, 25 % to
measure; the test split stays held out. For each cut, attribute and preset: what was claimed on the rows that chose
against what the same model does on the third part. Finished runs are kept under benchmarks/cache and not run again.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.common import HERE, SHARED, cached, footer, table
from bmft.auditing import Epoch, Predictions
from bmft.checkpoints import load_checkpoint
from bmft.data import GroupedData, load_manifest
from bmft.inference import predict
from bmft.methods import Outcome, cross_fit, debias, gap_measure, settings_for
from bmft.models import copied, put_back, tensors_of
from bmft.settings import Settings
from bmft.training import Gap, Selection, figures_of

PARTS = (0.45, 0.30)  # to fit, to choose; the rest measures
REACH = 1.645  # of a two-sided 90 % interval
HEADER = ["preset, attribute", "accepted", "gap on the third part", "smaller by", "claimed minus third part"]
HEADER += ["90 % interval covers (own; own and third)", "within, worst group's AUC, balanced accuracy"]
HEADER += [f"larger gap, of {word}" for word in ("shown", "likely", "as chosen", "none")]


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
    """One run on a cut: what was claimed, and what the third part says."""
    data = rows(attribute)
    fit, choose, third = cut(data, seed)
    if preset == "folds":
        apart = np.isin(data.clusters, np.unique(np.asarray(third.clusters)))
        return told_by_folds(data.subset(torch.from_numpy(~apart)), third, seed=seed)
    return told(fit, choose, third, config={"preset": preset}, seed=seed)


def told_by_folds(both: GroupedData, third: GroupedData, *, seed: int) -> dict[str, Any]:
    """The shared checkpoint debiased with all rows but the third part's: five folds choose, one more model learns."""
    model = load_checkpoint(SHARED / "models/ham10000_resnet18.pt")
    found = cross_fit(model, both, test=third, seed=seed, device="cpu", intervals=False)
    return _told(found, settings_for("bmft"))


def told(
    fit: GroupedData, choose: GroupedData, third: GroupedData, *, config: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """The shared checkpoint debiased on two parts: what was claimed, and what the third part says."""
    model = load_checkpoint(SHARED / "models/ham10000_resnet18.pt")
    (attribute,) = (one.name for one in fit.attributes)
    with chooser() as seen:
        found = debias(model, fit, choose, test=third, config=config, seed=seed, device="cpu", intervals=False)
    if seen[-1].few:
        keep_candidates(f"{attribute}_{seed}_{len(fit)}", seen[-1], choose, third)
    return _told(found, settings_for("bmft", config))


def _told(found: Outcome, settings: Settings) -> dict[str, Any]:
    sides = [side for audit in (found.before, found.after) if (side := audit.predictions)]
    summary = outcome(found.accepted, found.report.claim, found.report.history, sides, gap_measure(settings, 0.5))
    return {**summary, "seconds": found.report.seconds["total"]}


def outcome(
    accepted: bool, claim: Mapping[str, Any] | None, history: Sequence[Epoch], sides: Sequence[Predictions], gap: Gap
) -> dict[str, Any]:
    """What was claimed on the rows that chose, beside what both sides, the original's first, do on others."""
    (attribute,) = (one.name for one in sides[0].attributes)
    figures = figures_of(gap, sides, 0)
    reduction = figures.gap[0] - figures.gap[1]
    auc = figures.groups[attribute]["roc_auc"][:, 0, :, 0]  # (sides, groups)
    accuracy = figures.mean_of(attribute, "balanced_accuracy")[:, 0]
    chosen = next(entry for entry in history if entry.chosen)
    apparent, claim = history[0].gap - chosen.gap, claim or {}
    return {
        "accepted": accepted,
        "word": claim.get("word", "as chosen" if accepted else "none"),
        "strength": chosen.strength,
        "chose": history[0].gap,
        "claimed": claim.get("reduction", apparent) if accepted else 0.0,
        "apparent": apparent,
        "error": claim.get("error", 0.0) if accepted else 0.0,
        "before": float(figures.gap[0, 0]),
        "reduction": float(reduction[0]),
        "third_error": float(reduction[1:].std()),
        "larger": [float(value) for value in figures.odds[attribute][:, 0]],
        "within": float(np.diff(auc.mean(1))[0]),
        "worst": float(np.diff(auc, axis=0).min()),
        "balanced_accuracy": float(accuracy[1] - accuracy[0]),
    }


@contextmanager
def chooser() -> Iterator[list[Selection]]:
    """Who chose in the runs inside, which their outcomes do not hold."""
    seen: list[Selection] = []
    finish = Selection.finish

    def noted(self: Selection) -> bool:
        seen.append(self)
        return finish(self)

    with patch.object(Selection, "finish", noted):
        yield seen


def keep_candidates(name: str, who: Selection, choose: GroupedData, third: GroupedData) -> None:
    """Probabilities of every candidate for the rows that choose and the third part's, for `benchmarks.divisions`."""
    model, there = load_checkpoint(SHARED / "models/ham10000_resnet18.pt"), []
    for _, changed in who.candidates.values():
        moved = copied(model)
        put_back(tensors_of(moved), changed)
        there.append(predict(moved, third, device="cpu").scores[:, 0])
    path = HERE / f"cache/candidates/{name}.npz"
    path.parent.mkdir(exist_ok=True)
    parts = (choose, third)
    np.savez_compressed(
        path,
        scores=np.concatenate([[one.scores[:, 0] for one, _ in who.candidates.values()], there], axis=1),
        strengths=[who.history[place].strength or 0.0 for place in who.candidates],
        steps=[who.history[place].step for place in who.candidates],
        targets=np.concatenate([part.targets.numpy() for part in parts]),
        groups=np.concatenate([part.groups[:, 0].numpy() for part in parts]),
        clusters=np.concatenate([np.asarray(part.clusters) for part in parts]),
        first=len(choose),
    )


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
    parser.add_argument(
        "--presets",
        nargs="*",
        default=["default", "path"],
        help="default, path; folds: cross-fitting on the first two parts",
    )
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
    print(f"\n{table(HEADER, lines)}\n\n{footer(cuts=options.cuts, data='ham10000-64, fit + select')}")


if __name__ == "__main__":
    main()
