"""How often 95 % intervals hold the truth: python -m benchmarks.interval_coverage

Scores are normal within each label and made into overconfident probabilities; patients share part of the score.
What is measured are the intervals of an audit's groups, and those of the gate for the difference of two alike.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from scipy.stats import norm

from benchmarks.common import facts, footer, table
from bmft.auditing import Predictions
from bmft.gate import check, parse_policy
from bmft.inference import audit
from bmft.stats import Interval, intervals
from bmft.tables import Attribute

SHIFT, POSITIVE, CONFIDENCE, THRESHOLD, IMAGES, LEVEL = 1.5, 0.3, 1.6, 0.3, 4, 0.95
METRICS = (
    "true_positive_rate",
    "false_positive_rate",
    "selection_rate",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "roc_auc",
    "average_precision",
    "brier_score",
    "expected_calibration_error",
)
GROUPS = Attribute("group", ("a", "b"))


def draw(rng: np.random.Generator, n: int, icc: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets of one group."""
    targets = rng.random(n) < POSITIVE
    shared = np.repeat(rng.normal(size=-(-n // IMAGES)), IMAGES)[:n]
    latent = np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=n) + SHIFT * targets
    logit = CONFIDENCE * (SHIFT * latent - SHIFT**2 / 2 + np.log(POSITIVE / (1 - POSITIVE))) + 0.3
    return 1 / (1 + np.exp(-logit)), targets.astype(int)


def two_groups(rng: np.random.Generator, n: int, icc: float) -> Predictions:
    """Two alike groups of `n`; no patient is in both."""
    parts = [draw(rng, n, icc) for _ in range(2)]
    scores, targets = (np.concatenate(both) for both in zip(*parts, strict=True))
    patients = np.concatenate([np.arange(n) // IMAGES, n + np.arange(n) // IMAGES]) if icc else None
    return Predictions(scores, targets, np.repeat([0, 1], n), (GROUPS,), clusters=patients)


def policy(resamples: int) -> Any:
    """Every metric's difference; a gate at alpha shows intervals of level 1 - 2 alpha."""
    tables = [f'[[check]]\nmetric = "{m}"\nsensitive = ["group"]\nmax_difference = 0.5' for m in METRICS]
    head = f"[gate]\nalpha = {(1 - LEVEL) / 2}\nmin_positives = 1\nthreshold = {THRESHOLD}\nresamples = {resamples}"
    return parse_policy("\n".join([head, *tables]))


def resampled(n: int, icc: float, args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Coverage of every metric of a group, and of its difference between two."""
    rng, rules = np.random.default_rng([args.seed, n, round(10 * icc)]), policy(args.resamples)
    truth = audit(two_groups(rng, 400_000, 0.0), threshold=THRESHOLD, intervals=False).overall
    held = {name: np.zeros(2) for name in METRICS}
    for seed in range(args.sims):
        options = {"threshold": THRESHOLD, "level": LEVEL, "resamples": args.resamples, "seed": seed}
        report = audit(two_groups(rng, n, icc), **options)
        groups = report.intervals["by_group"]["group"]["a"]
        for name, result in zip(METRICS, check(report, rules).checks, strict=True):
            (low, high), apart = groups[name], result.findings[0].interval
            held[name] += [low <= truth[name] <= high, apart[0] <= 0 <= apart[1]]
    return {name: tuple(count / args.sims) for name, count in held.items()}


def closed(n: int, args: argparse.Namespace) -> dict[str, float]:
    """Coverage of the closed forms, many draws at once."""
    rng = np.random.default_rng([args.seed, n])
    size = np.maximum(rng.binomial(n, 0.7, (2, 20 * args.sims)), 1)
    x, y = rng.binomial(size, [[0.85], [0.75]])
    cells = rng.multinomial(n, [0.70, 0.10, 0.05, 0.15], 20 * args.sims).T  # both, first only, second only, none
    one, other = intervals.wilson(x, size[0]), intervals.wilson(y, size[1])
    found = {
        "Wilson": (one, 0.85),
        "Newcombe": (intervals.difference(x / size[0], one, y / size[1], other), 0.1),
        "Miettinen-Nurminen": (intervals.miettinen_nurminen(x, size[0], y, size[1]), 0.1),
        "Tango (paired)": (intervals.tango(cells[1], cells[2], n), 0.05),
    }
    rates = {name: float(np.mean((i.low <= t) & (i.high >= t))) for name, (i, t) in found.items()}
    held, many = np.zeros(3), 10 * args.sims
    for _ in range(many):
        targets = rng.permutation(np.repeat([0, 1], [n - round(n * POSITIVE), round(n * POSITIVE)]))
        first, noise, other = rng.normal(size=(3, n))
        one, two, apart = (
            first + SHIFT * targets,
            0.7 * first + 0.714 * noise + SHIFT * targets,
            other + SHIFT * targets,
        )
        area, second = intervals.delong(one, targets), intervals.delong(apart, targets)
        unpaired = intervals.difference(area.value, Interval(*area[2:]), second.value, Interval(*second[2:]))
        paired = intervals.delong_paired(one, two, targets)
        truth = norm.cdf(SHIFT / np.sqrt(2))
        held += [area.low <= truth <= area.high, unpaired.low <= 0 <= unpaired.high, paired.low <= 0 <= paired.high]
    names = ("DeLong", "DeLong unpaired", "DeLong paired")
    return {**rates, **dict(zip(names, held / many, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few draws, under a minute")
    parser.add_argument("--sims", type=int, default=4000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[30, 100, 400])
    parser.add_argument("--icc", type=float, nargs="+", default=[0.0, 0.3, 0.6])
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no cell after so long")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.quick:
        args.sims, args.sizes, args.icc, args.resamples = 40, [100], [0.0, 0.6], 200
    start = time.monotonic()
    say = {"benchmark": "interval_coverage", "sims": args.sims, "seed": args.seed, **facts()}
    forms: dict[int, Any] = {n: closed(n, args) for n in args.sizes}
    print(json.dumps({**say, "closed": forms}), flush=True)
    found: dict[str, Any] = {}
    for n in args.sizes:
        for icc in args.icc:
            if time.monotonic() - start < args.seconds:
                name = f"n {n}, {f'ICC {icc}' if icc else 'single'}"
                found[name] = resampled(n, icc, args)
                print(json.dumps({**say, "cell": name, "coverage": found[name]}), flush=True)
    print(
        "\n"
        + table(
            ["closed form", *(f"n {n}" for n in forms)],
            [[name, *(f"{forms[n][name]:.1%}" for n in forms)] for name in next(iter(forms.values()))],
        )
    )
    print(
        "\n"
        + table(
            ["group / difference", *found],
            [[name, *(" / ".join(f"{share:.1%}" for share in found[one][name]) for one in found)] for name in METRICS],
        )
    )
    error = 3 * np.sqrt(LEVEL * (1 - LEVEL) / args.sims)
    forms_drawn = f"closed forms: {20 * args.sims:,} draws of rates, {10 * args.sims:,} of areas"
    print(f"\n{args.sims} draws a cell: three standard errors are {error:.1%} ({forms_drawn})")
    print(footer(seed=args.seed, resamples=args.resamples))


if __name__ == "__main__":
    main()
