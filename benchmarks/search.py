"""A search of 12 trials against single-shot `debias` on the shared checkpoint: python -m benchmarks.search

Both are judged on select by the search's goal (so a little optimistic, the search more so); cost in image-passes.
"""

import argparse
from typing import Any

from benchmarks.common import SHARED, cached, footer, mean_and_spread, table
from bmft import debias, load_checkpoint, load_manifest, search


def measure(attribute: str, goal: str, seed: int, trials: int) -> dict[str, Any]:
    fit, select = (
        load_manifest(
            SHARED / "data/ham10000-64/metadata.csv",
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
    single = debias(model, fit, select, seed=seed, device="cpu")
    found = search(model, fit, select, goal=goal, trials=trials, seed=seed, device="cpu")
    figure = "average_odds_difference"
    passes = len(fit) * (2 + sum(e.step == 1 for e in single.report.history) + len(single.report.config["path"]))
    return {
        "single": {
            "gap": single.after.gaps[attribute][figure],
            "passes": passes,
            "auc": single.after.overall["roc_auc"],
        },
        "search": {
            "gap": found.outcome.after.gaps[attribute][figure],
            "passes": found.summary["image_passes"],
            "auc": found.outcome.after.overall["roc_auc"],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--attributes", nargs="*", default=["age_ge60", "sex"])
    options = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: the data are not at {SHARED} (set BMFT_SHARED)")
        return
    rows = []
    for attribute in options.attributes:
        results = [
            cached(
                "search",
                {"attribute": attribute, "seed": seed, "trials": options.trials},
                lambda: measure(attribute, "average_odds", seed, options.trials),
            )
            for seed in range(options.seeds)
        ]
        for side in ("single", "search"):
            figures = [mean_and_spread(r[side][key] for r in results) for key in ("gap", "auc")]
            rows.append([attribute, side, *figures, f"{sum(r[side]['passes'] for r in results) / len(results):,.0f}"])
    header = ["attribute", "run", "mean gap", "AUC", "image-passes"]
    facts = footer(seeds=options.seeds, trials=options.trials, data="ham10000-64, select split")
    print(f"{table(header, rows)}\n\n{facts}")


if __name__ == "__main__":
    main()
