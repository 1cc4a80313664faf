"""2,000 clustered resamples of 20,000 rows beside fairlearn's own bootstrap: python -m benchmarks.bootstrap_speed

Six metrics of four groups; both sides in this process on one thread, each per resample.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from benchmarks.common import facts, footer, table
from bmft.stats import Units, bootstrap

ROWS, GROUPS, IMAGES = 20_000, 4, 4


def sample(rows: int, seed: int) -> tuple[np.ndarray, ...]:
    """Scores, targets, groups and patients of four images each."""
    rng = np.random.default_rng(seed)
    patients = np.arange(rows) // IMAGES
    groups = rng.integers(0, GROUPS, patients[-1] + 1)[patients]
    targets = rng.random(rows) < 0.2
    latent = rng.normal(size=rows) + rng.normal(size=patients[-1] + 1)[patients] + 2 * targets - 1
    return 1 / (1 + np.exp(-latent)), targets, groups, patients


def ours(scores: Any, targets: Any, groups: Any, patients: Any, resamples: int) -> None:
    """The six metrics in `bmft.stats.bootstrap`."""
    units, where, called = Units.of(patients, strata=groups), bootstrap.cells(groups, GROUPS), scores >= 0.5
    statistics = {
        "true_positive_rate": bootstrap.mean(called, [cell & targets for cell in where], units),
        "false_positive_rate": bootstrap.mean(called, [cell & ~targets for cell in where], units),
        "selection_rate": bootstrap.mean(called, where, units),
        "accuracy": bootstrap.mean(called == targets, where, units),
        "roc_auc": bootstrap.roc_auc(scores, targets, where, units),
        "average_precision": bootstrap.average_precision(scores, targets, where, units),
    }
    bootstrap.bootstrap(statistics, units, resamples=resamples)


def theirs(scores: Any, targets: Any, groups: Any, resamples: int) -> None:
    """The same six in fairlearn's MetricFrame, which resamples rows; without resamples for 0."""
    decided: dict[str, Callable[..., Any]] = {
        name: lambda y, s, f=metric: f(y, s >= 0.5)
        for name, metric in {
            "true_positive_rate": true_positive_rate,
            "false_positive_rate": false_positive_rate,
            "selection_rate": selection_rate,
            "accuracy": accuracy_score,
        }.items()
    }
    metrics = {**decided, "roc_auc": roc_auc_score, "average_precision": average_precision_score}
    boot = {"n_boot": resamples, "ci_quantiles": [0.05, 0.95], "random_state": 0} if resamples else {}
    MetricFrame(metrics=metrics, y_true=targets.astype(int), y_pred=scores, sensitive_features=groups, **boot)


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4,000 rows, under a minute")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, resamples, few = (4_000, 500, 3) if args.quick else (ROWS, 2_000, 10)
    scores, targets, groups, patients = sample(rows, args.seed)
    own = seconds(partial(ours, scores, targets, groups, patients, resamples))
    # What the frame costs without resamples is not theirs; the first call also imports.
    alone = min(seconds(partial(theirs, scores, targets, groups, 0)) for _ in range(2))
    other = seconds(partial(theirs, scores, targets, groups, few)) - alone
    ratio = (other / few) / (own / resamples)
    print(
        table(
            ["bootstrap", "resamples", "seconds", "ms per resample"],
            [
                ["bmft, patients", resamples, f"{own:.2f}", f"{1000 * own / resamples:.3f}"],
                ["fairlearn n_boot, rows", few, f"{other:.2f}", f"{1000 * other / few:.1f}"],
            ],
        )
    )
    print(f"\n{ratio:.0f} times faster per resample ({rows:,} rows, {GROUPS} groups, 6 metrics)")
    print(footer(seed=args.seed))
    result = {
        "rows": rows,
        "resamples": resamples,
        "seconds": own,
        "fairlearn_resamples": few,
        "fairlearn_seconds": other,
        "ratio": ratio,
        "seed": args.seed,
        **facts(),
    }
    print(json.dumps({"benchmark": "bootstrap_speed", **result}))


if __name__ == "__main__":
    main()
