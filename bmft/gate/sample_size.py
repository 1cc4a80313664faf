"""How many samples a gate needs, from the exact probability that it passes."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bmft.errors import ConfigError
from bmft.stats import miettinen_nurminen, quantile

MOST = 10_000_000


@dataclass(frozen=True)
class Plan:
    """The sample size of a gate.

    Attributes:
        per_group: samples per group of the kind that the rate is taken among (positives for a true positive
            rate).
        patients_per_group: patients; as many where each has one image.
        total: samples over all groups.
        power: how often a gate of this size passes.
        design_effect: how many times more samples are needed because those of one patient are alike.
    """

    per_group: int
    patients_per_group: int
    total: int
    power: float
    design_effect: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def plan(
    tolerance: float,
    rate: float,
    *,
    groups: int = 2,
    alpha: float = 0.05,
    power: float = 0.8,
    images_per_patient: float = 1,
    icc: float = 0.0,
) -> Plan:
    r"""Samples per group with which a gate on the largest difference of a rate passes, where there is none.

    The rates are alike in truth and the gate has to show it: every pair's interval within the tolerance. The
    images of one patient tell less than as many patients, by the design effect
    :math:`1 + (m - 1)\,\mathrm{ICC}`.

    Args:
        tolerance: the policy's ``max_difference``.
        rate: the rate expected in every group.
        groups: how many there are.
        alpha: the policy's.
        power: how often the gate is to pass.
        images_per_patient: mean number m of images of one patient.
        icc: intraclass correlation, of being right about two images of one patient.

    Raises:
        ConfigError: a value is out of its range, or no feasible number of samples is enough.

    >>> plan(0.1, 0.8).per_group
    275
    """
    _check(tolerance, rate, groups, alpha, power, images_per_patient, icc)
    # A gate this small passes nothing: its interval is wider than the tolerance on both sides together.
    few = int(rate * (1 - rate) * (quantile(1 - 2 * alpha) / tolerance) ** 2 / 2)
    many = 2 * few + 64
    while many <= MOST and pass_probability(many, tolerance, rate, groups, alpha) < power:
        few, many = many, 2 * many
    if many > MOST:
        raise ConfigError(f"no {MOST:,} samples per group are enough for a tolerance of {tolerance:g}: widen it")
    while many - few > 1:
        middle = (few + many) // 2
        enough = pass_probability(middle, tolerance, rate, groups, alpha) >= power
        few, many = (few, middle) if enough else (middle, many)
    effect = 1 + (images_per_patient - 1) * icc
    size = math.ceil(many * effect)
    return Plan(
        per_group=size,
        patients_per_group=math.ceil(size / images_per_patient),
        total=size * groups,
        power=pass_probability(many, tolerance, rate, groups, alpha),
        design_effect=effect,
    )


def pass_probability(n: int, tolerance: float, rate: float, groups: int = 2, alpha: float = 0.05) -> float:
    """How often the gate passes with `n` samples in each of `groups` groups of the same rate.

    Exact: groups pass if the largest and the smallest of their counts do. With the smallest at a, let b be
    the largest count that passes beside it; all of them lie in a..b, and not all above a.

    >>> round(pass_probability(300, 0.1, 0.8), 3)
    0.842
    """
    from scipy.stats import binom  # takes a second to import, which no other part of a gate needs

    first, last = (int(end) for end in binom.ppf([1e-9, 1 - 1e-9], n, rate))
    smallest = np.arange(first, last + 1)
    largest = _largest_beside(smallest, n, tolerance, alpha, last)
    up_to = binom.cdf(largest, n, rate)
    inside = np.maximum(up_to - binom.cdf(smallest - 1, n, rate), 0)
    above = np.maximum(up_to - binom.cdf(smallest, n, rate), 0)
    return float((inside**groups - above**groups).sum())


def _largest_beside(
    smallest: np.ndarray[Any, Any], n: int, tolerance: float, alpha: float, last: int
) -> np.ndarray[Any, Any]:
    """The largest count that passes beside each; one less than it where none does."""
    low, high = smallest - 1, np.full_like(smallest, last)
    while (low < high).any():
        middle = (low + high + 1) // 2
        ends = miettinen_nurminen(middle, n, smallest, n, 1 - 2 * alpha)
        passes = (ends.low >= -tolerance) & (ends.high <= tolerance) & (middle >= smallest)
        low, high = np.where(passes, middle, low), np.where(passes, high, middle - 1)
    return low


def outside(**values: tuple[float, float, float]) -> list[str]:
    """What is to be said of each value that does not lie between its two bounds.

    >>> outside(rate=(0.5, 0, 1), power=(1.0, 0, 1))
    ['power is 1.0: expected above 0 and below 1']
    """
    return [
        f"{name} is {value}: expected above {low} and below {high}"
        for name, (value, low, high) in values.items()
        if not low < value < high
    ]


def _check(tolerance: float, rate: float, groups: int, alpha: float, power: float, images: float, icc: float) -> None:
    problems = outside(tolerance=(tolerance, 0, 1), rate=(rate, 0, 1), alpha=(alpha, 0, 0.5), power=(power, 0, 1))
    if groups < 2:
        problems.append(f"groups is {groups}: expected at least 2")
    if not images >= 1:
        problems.append(f"images_per_patient is {images}: expected at least 1")
    if not 0 <= icc <= 1:
        problems.append(f"icc is {icc}: expected 0 to 1")
    if problems:
        raise ConfigError("; ".join(problems))
