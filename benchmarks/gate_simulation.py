"""How often gates pass a model whose true gap equals the tolerance: python -m benchmarks.gate_simulation

Every draw is decided by `bmft.check` itself, by a gate on the point estimate, and (for fewer draws, as it takes
seconds each) by fairlearn's `n_boot` interval of the difference. Power is of the same gate without a gap.
"""

import argparse
import json
import time
from itertools import product
from typing import Any

import numpy as np
from fairlearn.metrics import MetricFrame, true_positive_rate
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from benchmarks.common import facts, footer, table
from bmft.auditing import Predictions
from bmft.gate import check, parse_policy
from bmft.inference import audit
from bmft.stats import miettinen_nurminen
from bmft.tables import Attribute

TOLERANCE, ALPHA, IMAGES = 0.1, 0.05, 4
RATES, AREAS = (0.85, 0.75), (0.90, 0.80)  # of the first group, and of the others
METRICS = {"true_positive_rate": true_positive_rate, "roc_auc": roc_auc_score}


def policy(metric: str, resamples: int) -> Any:
    return parse_policy(
        f"[gate]\nalpha = {ALPHA}\nresamples = {resamples}\nmin_positives = 10\n"
        f'[[check]]\nmetric = "{metric}"\nsensitive = ["group"]\nmax_difference = {TOLERANCE}'
    )


def rates(rng: np.random.Generator, n: int, groups: int, icc: float, gap: bool) -> tuple[np.ndarray, np.ndarray]:
    """`n` positives per group, right with a mean rate, patients beta-distributed around it."""
    found = []
    for g in range(groups):
        mean = RATES[0] if gap and g == 0 else RATES[1]
        each = np.full(n // IMAGES, mean)
        if icc:
            each = rng.beta(mean * (1 - icc) / icc, (1 - mean) * (1 - icc) / icc, n // IMAGES)
        found.append(np.where(rng.random(n) < np.repeat(each, IMAGES), 0.9, 0.1))
    return np.concatenate(found), np.ones(groups * n, dtype=int)


def areas(rng: np.random.Generator, n: int, groups: int, icc: float, gap: bool) -> tuple[np.ndarray, np.ndarray]:
    """`n` positives and as many negatives per group, of patients whose scores are alike."""
    scores, targets = [], []
    for g in range(groups):
        shift = np.sqrt(2) * norm.ppf(AREAS[0] if gap and g == 0 else AREAS[1])
        own = rng.permutation(np.repeat([0, 1], n))
        patients = np.repeat(rng.normal(size=2 * n // IMAGES), IMAGES)
        latent = np.sqrt(icc) * patients + np.sqrt(1 - icc) * rng.normal(size=2 * n)
        scores.append(norm.cdf(latent + shift * (own - 0.5)))
        targets.append(own)
    return np.concatenate(scores), np.concatenate(targets)


def passes(
    metric: str, rng: np.random.Generator, n: int, groups: int, icc: float, gap: bool, rules: Any
) -> tuple[bool, bool, Predictions]:
    """Whether the gate passes, whether a point estimate would, and what was drawn."""
    scores, targets = (rates if metric == "true_positive_rate" else areas)(rng, n, groups, icc, gap)
    ids = np.repeat(np.arange(groups), len(scores) // groups)
    names = Attribute("group", tuple("abcd"[:groups]))
    patients = np.arange(len(scores)) // IMAGES if icc else None
    predictions = Predictions(scores, targets, ids, (names,), clusters=patients)
    (result,) = check(audit(predictions, intervals=False), rules).checks
    return result.decision == "pass", result.estimate <= TOLERANCE, predictions


def fairlearn_passes(metric: str, drawn: Predictions, resamples: int) -> bool:
    """Whether fairlearn's own upper bound of the difference is within the tolerance."""
    scored = drawn.scores[:, 0] >= 0.5 if metric == "true_positive_rate" else drawn.scores[:, 0]
    frame = MetricFrame(
        metrics=METRICS[metric],
        y_true=drawn.targets[:, 0],
        y_pred=scored.astype(float),
        sensitive_features=drawn.groups[:, 0],
        n_boot=resamples,
        ci_quantiles=[1 - ALPHA],
        random_state=0,
    )
    return bool(frame.difference_ci()[0] <= TOLERANCE)


def cell(metric: str, groups: int, n: int, icc: float, args: argparse.Namespace) -> dict[str, Any]:
    rng, rules = (np.random.default_rng([args.seed, groups, n, round(10 * icc)]), policy(metric, args.resamples))
    drawn = [passes(metric, rng, n, groups, icc, True, rules) for _ in range(args.sims)]
    power = [passes(metric, rng, n, groups, icc, False, rules)[0] for _ in range(max(args.sims // 2, 1))]
    fair = [fairlearn_passes(metric, one[2], args.fairlearn_resamples) for one in drawn[: args.fairlearn_sims]]
    limit = ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / args.sims)
    return {
        "metric": metric,
        "groups": groups,
        "n": n,
        "icc": icc,
        "sims": args.sims,
        "gate": float(np.mean([one[0] for one in drawn])),
        "limit": float(limit),
        "point": float(np.mean([one[1] for one in drawn])),
        "fairlearn": float(np.mean(fair)) if fair else None,
        "fairlearn_sims": len(fair),
        "power": float(np.mean(power)),
    }


def exact(n: int, levels: tuple[float, float] = RATES) -> float:
    """How often two groups of single images pass, summed over all their counts."""
    ends = [binom.ppf([1e-7, 1 - 1e-7], n, rate).astype(int) for rate in levels]
    spans = [np.arange(first, last + 1) for first, last in ends]
    weights = [binom.pmf(span, n, rate) for span, rate in zip(spans, levels, strict=True)]
    low, high = miettinen_nurminen(spans[0][:, None], n, spans[1], n, 1 - 2 * ALPHA)
    return float((((low >= -TOLERANCE) & (high <= TOLERANCE)) * np.outer(*weights)).sum())


def row(one: dict[str, Any]) -> list[str]:
    fair = "–" if one["fairlearn"] is None else f"{one['fairlearn']:.1%} ({one['fairlearn_sims']})"
    kind = f"{IMAGES} per patient, ICC {one['icc']}" if one["icc"] else "single"
    return [
        one["metric"],
        str(one["groups"]),
        f"{one['n']:,}",
        kind,
        f"{one['gate']:.1%}",
        f"{one['limit']:.1%}",
        f"{one['point']:.1%}",
        fair,
        f"{one['power']:.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few draws of few cells, under a minute")
    parser.add_argument("--sims", type=int, default=4000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--icc", type=float, nargs="+", default=[0.0, 0.3, 0.6])
    parser.add_argument("--resamples", type=int, default=400, help="of the gate's bootstrap")
    parser.add_argument("--fairlearn-sims", type=int, default=100)
    parser.add_argument("--fairlearn-resamples", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no cell after so long")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.quick:
        args.sims, args.sizes, args.groups, args.icc = 40, [500], [2], [0.0, 0.6]
        args.fairlearn_sims, args.resamples = 0, 200
    start, found, left = time.monotonic(), [], 0
    for metric, groups, n, icc in product(args.metrics, args.groups, args.sizes, args.icc):
        if time.monotonic() - start > args.seconds:
            left += 1
            continue
        found.append(cell(metric, groups, n, icc, args))
        print(json.dumps({"benchmark": "gate_simulation", **found[-1], "seed": args.seed, **facts()}), flush=True)
    header = [
        "metric",
        "groups",
        "n per group",
        "images",
        "false passes",
        "allowed",
        "point estimate",
        "fairlearn n_boot (draws)",
        "power",
    ]
    print("\n" + table(header, map(row, found)))
    sums = [[f"{n:,}", f"{exact(n):.2%}", f"{exact(n, (0.95, 0.85)):.2%}"] for n in args.sizes]
    print("\n" + table(["positives per group", "false passes at 0.85 and 0.75, exact", "at 0.95 and 0.85"], sums))
    print(f"\n{args.sims} draws a cell, tolerance {TOLERANCE}, alpha {ALPHA}; {left} cells left out for time")
    print(footer(seed=args.seed, resamples=args.resamples))


if __name__ == "__main__":
    main()
