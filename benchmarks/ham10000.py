"""The shared HAM10000 checkpoint debiased by age and by sex, five seeds: python -m benchmarks.ham10000

Fit on the fit split, chosen and measured on the select split (so a little optimistic; the test split is not used here).
"""

import argparse
from typing import Any

from benchmarks.common import SHARED, cached, footer, mean_and_spread, table
from bmft.checkpoints import load_checkpoint
from bmft.data import load_manifest
from bmft.methods import debias

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "bmft (default)": ("bmft", {}),
    "random mask of the same size in the same blocks": ("random_mask", {"depth": 0.75}),
    "random mask of the same size": ("random_mask", {}),
    "bmft --preset paper": ("bmft", {"preset": "paper"}),
    # A prototype as one would write it: the published mask, the task's loss in step 1 too, rates that move something.
    "published mask, 5 + 5 epochs at ten times the rates, last epoch": (
        "bmft",
        {"preset": "paper", "epochs": 5, "lr": (1e-3, 1e-2), "task_weight": (1.0, 1.0), "keep": "last"},
    ),
    "swift": ("swift", {}),
    "full fine-tuning, balanced, bias term": ("rwreg", {}),
    "balanced head only": ("head", {}),
}


def measure(attribute: str, method: str, config: dict[str, Any], seed: int) -> dict[str, Any]:
    folder = SHARED / "data/ham10000-64"
    fit, select = (
        load_manifest(
            folder / "metadata.csv",
            target="label",
            sensitive=attribute,
            split_column="split",
            split=split,
            cluster="lesion_id",
            image_size=64,
            normalize="0.76,0.55,0.57/0.14,0.15,0.17",
        )
        for split in ("fit", "select")
    )
    model = load_checkpoint(SHARED / "models/ham10000_resnet18.pt")
    keep = config.get("keep", "best")
    config = {name: value for name, value in config.items() if name != "keep"}
    outcome = debias(model, fit, select, method=method, config=config, seed=seed, keep=keep, device="cpu")
    result: dict[str, Any] = {"accepted": outcome.accepted, "seconds": outcome.report.seconds["total"]}
    for name, report in (("before", outcome.before), ("after", outcome.after)):
        gaps = report.gaps[attribute]
        result[name] = {
            "mean gap": gaps["average_odds_difference"],
            "larger gap": gaps["equalized_odds_difference"],
            "AUC": report.overall["roc_auc"],
            "worst group's AUC": min(m["roc_auc"] for m in report.by_group[attribute].values()),
            "balanced accuracy": report.overall["balanced_accuracy"],
        }
    figures = ("step", "gap", "roc_auc", "worst_group_roc_auc")
    result["curve"] = [[round(getattr(epoch, name), 5) for name in figures] for epoch in outcome.report.history]
    result["moved"] = outcome.patch.moved / sum(p.numel() for p in model.parameters())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--attributes", nargs="*", default=["age_ge60", "sex"])
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    options = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: the data are not at {SHARED} (set BMFT_SHARED)")
        return
    for attribute in options.attributes:
        rows = []
        for name in options.runs:
            method, config = RUNS[name]
            results = [
                cached(
                    "ham10000",
                    {"attribute": attribute, "run": name, "seed": seed},
                    lambda: measure(attribute, method, config, seed),
                )
                for seed in range(options.seeds)
            ]
            if not rows:
                rows.append(["untouched", "", *(f"{value:.3f}" for value in results[0]["before"].values()), "0 %", ""])
            accepted = f"{sum(r['accepted'] for r in results)}/{len(results)}"
            figures = [mean_and_spread(r["after"][k] for r in results) for k in results[0]["after"]]
            moved = f"{100 * sum(r['moved'] for r in results) / len(results):.1f} %"
            rows.append([name, accepted, *figures, moved, f"{sum(r['seconds'] for r in results) / len(results):.0f}"])
        header = ["by " + attribute, "accepted", *results[0]["before"], "weights moved", "seconds"]
        print(f"\n{table(header, rows)}\n\n{footer(seeds=options.seeds, data='ham10000-64, select split')}")


if __name__ == "__main__":
    main()
