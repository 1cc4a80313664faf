"""Intervals of rates, areas under the ROC curve, and their differences and ratios: closed forms, vectorised.

Every function takes a two-sided `level`; NaN goes in where there is nothing to estimate (no samples, an
absent group) and comes out as NaN, so that a missing number never looks like a narrow interval.
What no closed form reaches, and everything with patients, is in `bmft.stats.bootstrap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit  # scipy.stats, which has them too, takes a second to import

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """An interval: its lower and its upper end, numbers or arrays of one shape."""

    low: Any
    high: Any


class Area(NamedTuple):
    """An area under the ROC curve, or the difference of two, with its DeLong variance and interval."""

    value: float
    variance: float
    low: float
    high: float


def wilson(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> Interval:
    r"""Score interval of a rate (Wilson 1927): every p with :math:`|\hat p - p| \le z \sqrt{p (1-p) / n}`.

    `successes` and `n` may be fractional (effective counts). ``n = 0`` has no rate: NaN.

    >>> low, high = wilson([8, 10, 0], [10, 10, 0])
    >>> low.round(3), high.round(3)
    (array([0.49 , 0.722,   nan]), array([0.943, 1.   ,   nan]))
    """
    x, n = np.broadcast_arrays(_float(successes), _positive(n))
    z2, p = quantile(level) ** 2, x / n
    centre = (x + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (p * (1 - p) * n + z2 / 4)) / (n + z2)
    # At the ends of the scale rounding must not leave the estimate outside its own interval.
    return Interval(np.clip(np.minimum(centre - half, p), 0, 1), np.clip(np.maximum(centre + half, p), 0, 1))


def miettinen_nurminen(x1: ArrayLike, n1: ArrayLike, x2: ArrayLike, n2: ArrayLike, level: float = 0.95) -> Interval:
    """Score interval of ``x1 / n1 - x2 / n2`` (Miettinen and Nurminen 1985).

    The differences a score test does not reject, its variance taken where the rates differ by just that much;
    the closest of the usual intervals to its level in equivalence tests, and honest at rates of 0 and 1.

    >>> [round(float(end), 4) for end in miettinen_nurminen(56, 70, 48, 80)]
    [0.0528, 0.3382]
    """
    x1, n1, x2, n2 = np.broadcast_arrays(_float(x1), _positive(n1), _float(x2), _positive(n2))
    z, d = quantile(level), x1 / n1 - x2 / n2

    def beyond(delta: Array) -> NDArray[np.bool_]:
        spread = np.sqrt(_score_variance(x1, n1, x2, n2, delta))
        return np.asarray(np.abs(d - delta) > z * spread)

    # Both ends in one search: its steps are what takes the time.
    return Interval(*_edge(beyond, np.stack([d, d]), np.array([-1.0, 1.0]).reshape(2, *(1,) * d.ndim)))


def _score_variance(x1: Array, n1: Array, x2: Array, n2: Array, delta: Array) -> Array:
    """Variance of the difference at the most likely pair of rates that differ by `delta`."""
    # The likelihood's root in closed form: Farrington and Manning 1990, appendix.
    theta = n2 / n1
    p1, p2 = x1 / n1, x2 / n2
    a = 1 + theta
    b = -(1 + theta + p1 + theta * p2 + delta * (theta + 2))
    c = delta**2 + delta * (2 * p1 + theta + 1) + p1 + theta * p2
    d = -p1 * delta * (1 + delta)
    v = (b / (3 * a)) ** 3 - b * c / (6 * a**2) + d / (2 * a)
    u = np.copysign(np.sqrt(np.maximum((b / (3 * a)) ** 2 - c / (3 * a), 0)), v)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(u == 0, 0.0, v / u**3)
    w = (np.pi + np.arccos(np.clip(cosine, -1, 1))) / 3
    first = np.clip(2 * u * np.cos(w) - b / (3 * a), np.maximum(delta, 0), np.minimum(1 + delta, 1))
    second = np.clip(first - delta, 0, 1)
    spread = first * (1 - first) / n1 + second * (1 - second) / n2
    return np.asarray(spread * (n1 + n2) / np.maximum(n1 + n2 - 1, 1))


def tango(only_first: ArrayLike, only_second: ArrayLike, n: ArrayLike, level: float = 0.95) -> Interval:
    """Score interval of the difference of two rates on the same `n` samples (Tango 1998).

    `only_first` and `only_second` count the samples only one of the two got. Not degenerate where they never
    disagree: after 0 of `n` disagreements the difference may still be ``z**2 / (n + z**2)``.

    >>> [round(float(end), 4) for end in tango(3, 1, 100)]
    [-0.0281, 0.076]
    """
    b, c, n = np.broadcast_arrays(_float(only_first), _float(only_second), _positive(n))
    z, d = quantile(level), (b - c) / n

    def beyond(delta: Array) -> NDArray[np.bool_]:
        linear = -b - c + (2 * n - b + c) * delta
        rare = (np.sqrt(linear**2 + 8 * n * c * delta * (1 - delta)) - linear) / (4 * n)
        spread = np.sqrt(np.maximum(n * (2 * rare + delta * (1 - delta)), 0))
        return np.asarray(np.abs(b - c - n * delta) > z * spread)

    high = _edge(beyond, d, 1.0)
    b, c, d = c, b, -d
    return Interval(-_edge(beyond, d, 1.0), high)


def difference(
    first: ArrayLike, of_first: Interval, second: ArrayLike, of_second: Interval, correlation: ArrayLike = 0.0
) -> Interval:
    """Interval of ``first - second`` from the interval of each (MOVER: Zou and Donner 2008).

    Keeps each interval's asymmetry. `correlation` is that of the two estimates, 0 for separate groups.

    >>> low, high = difference(0.8, Interval(0.7, 0.86), 0.8, Interval(0.7, 0.86))
    >>> round(float(low), 4), round(float(high), 4)
    (-0.1166, 0.1166)
    """
    a, b = _float(first), _float(second)

    def reach(x: Array, y: Array) -> Array:
        # An infinite end makes the cross term inf * 0; without correlation there is no cross term.
        cross = np.where(np.equal(correlation, 0), 0.0, 2 * _float(correlation) * x * y)
        return np.asarray(np.sqrt(np.maximum(x**2 + y**2 - cross, 0)))

    with np.errstate(invalid="ignore"):
        down = reach(a - of_first.low, of_second.high - b)
        return Interval(a - b - down, a - b + reach(of_first.high - a, b - of_second.low))


def ratio(first: ArrayLike, of_first: Interval, second: ArrayLike, of_second: Interval) -> Interval:
    """Interval of ``first / second`` from the interval of each (Donner and Zou 2012).

    Both at least 0, and independent. No upper end (inf) where the second may be 0.

    >>> low, high = ratio(0.4, Interval(0.3, 0.5), 0.5, Interval(0.4, 0.6))
    >>> round(float(low), 3), round(float(high), 3)
    (0.57, 1.097)
    """
    a, b = _float(first), _float(second)
    with np.errstate(invalid="ignore", divide="ignore"):
        low = _ratio_end(a, of_first.low, b, of_second.high, -1)
        high = _ratio_end(a, of_first.high, b, of_second.low, 1)
    known = np.where(np.isnan(a + b), np.nan, 1.0)
    low = np.where(a == 0, 0 * known, np.maximum(low, 0))
    return Interval(low, np.where(_float(of_second.low) <= 0, np.inf * known, high))


def _ratio_end(a: Array, end_a: Array, b: Array, end_b: Array, side: int) -> Array:
    square = (a * b) ** 2 - end_a * end_b * (2 * a - end_a) * (2 * b - end_b)
    root = side * np.sqrt(np.maximum(square, 0))
    # (ab + root) / (end_b (2b - end_b)), rationalised: the quotient is 0 / 0 where end_b = 2b.
    return np.asarray(
        end_a * (2 * a - end_a) / (a * b - root) if side < 0 else (a * b + root) / (end_b * (2 * b - end_b))
    )


def largest(low: ArrayLike, high: ArrayLike, corrected_low: ArrayLike, corrected_high: ArrayLike) -> Interval:
    """Interval of the largest absolute difference, from those of all differences.

    The upper end needs no correction for how many there are: it errs only if the interval of the truly
    largest difference does (an intersection-union test). The lower end errs if any does, so it comes from
    intervals at a level corrected for their number. Unlike a bootstrap of ``max - min`` it reaches 0.

    >>> largest([-0.1, 0.02], [0.2, 0.3], [-0.15, -0.01], [0.25, 0.35])
    Interval(low=0.0, high=0.3)
    """
    high_end = np.maximum(np.abs(low), np.abs(high))
    low_end = np.maximum(np.maximum(corrected_low, np.negative(corrected_high)), 0)
    return Interval(float(np.max(low_end)), float(np.max(high_end)))


def delong(scores: ArrayLike, targets: ArrayLike, level: float = 0.95) -> Area:
    """ROC AUC with its DeLong variance (1988; midranks, O(n log n)) and an interval on the logit scale.

    At an area of 0 or 1, where that variance is 0 whatever the sample size, the interval is Newcombe's
    (2006, method 5), whose variance is that of the area in question. NaN unless both labels occur.

    >>> area = delong([0.1, 0.4, 0.35, 0.8, 0.3], [0, 0, 1, 1, 0])
    >>> round(area.value, 4), round(area.variance, 4)
    (0.8333, 0.0556)
    """
    hits, false_alarms = placements(scores, targets)
    value, variance = _area(hits, false_alarms)
    return Area(value, variance, *auc_interval(value, variance, len(hits), len(false_alarms), level))


def auc_interval(value: float, variance: float, n_pos: float, n_neg: float, level: float = 0.95) -> Interval:
    """Interval of an AUC with this variance: logit scale, or Newcombe's where there is no variance."""
    z = quantile(level)
    if not variance > 0 or not 0 < value < 1:
        return _newcombe_auc(value, n_pos, n_neg, z)
    logit = np.log(value / (1 - value))
    reach = z * np.sqrt(variance) / (value * (1 - value))
    # Of two or three cases the reach may be beyond what exp can hold: then the end is 0 or 1, as it should.
    with np.errstate(over="ignore"):
        low, high = 1 / (1 + np.exp(-(logit + np.array([-reach, reach]))))
    return Interval(float(low), float(high))


def _newcombe_auc(value: float, n_pos: float, n_neg: float, z: float) -> Interval:
    if np.isnan(value) or min(n_pos, n_neg) < 1:
        return Interval(np.nan, np.nan)
    middle = (n_pos + n_neg) / 2 - 1

    def beyond(area: Array) -> NDArray[np.bool_]:
        spread = 1 + middle * ((1 - area) / (2 - area) + area / (1 + area))
        return np.asarray(np.abs(value - area) > z * np.sqrt(area * (1 - area) * spread / (n_pos * n_neg)))

    ends = (float(_edge(beyond, np.array(value), end)) for end in (0.0, 1.0))
    return Interval(*ends)


def delong_paired(first: ArrayLike, second: ArrayLike, targets: ArrayLike, level: float = 0.95) -> Area:
    """Difference of the areas of two scores of the same samples, with DeLong's variance.

    Where both rank every pair alike that variance is 0 however few the samples, and the interval is what no
    displaced sample among the rarer label still allows (`never_seen`).

    >>> area = delong_paired([0.1, 0.4, 0.35, 0.8], [0.3, 0.2, 0.1, 0.9], [0, 0, 1, 1])
    >>> round(area.value, 4)
    0.25
    """
    (hits, alarms), (other_hits, other_alarms) = placements(first, targets), placements(second, targets)
    value, variance = _area(hits - other_hits, alarms - other_alarms)
    if variance > 0:
        reach = quantile(level) * np.sqrt(variance)
    else:
        reach = never_seen(min(len(hits), len(alarms)), level) if variance == 0 else np.nan
    return Area(value, variance, max(value - reach, -1.0), min(value + reach, 1.0))


def never_seen(n: float, level: float = 0.95) -> float:
    """Largest fraction of events of which `n` samples may show none, at the one-sided level of one end.

    >>> round(never_seen(100), 4)
    0.0362
    """
    return float(1 - ((1 - level) / 2) ** (1 / n)) if n > 0 else np.nan


def placements(scores: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    """Per positive the share of negatives below it, per negative of positives above it; ties count half."""
    scores, positive = _float(scores), np.asarray(targets).astype(bool)
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg or np.isnan(scores).any():
        return np.full(n_pos, np.nan), np.full(n_neg, np.nan)
    ranks = _ranks(scores)
    hits = (ranks[positive] - _ranks(scores[positive])) / n_neg
    return hits, 1 - (ranks[~positive] - _ranks(scores[~positive])) / n_pos


def _ranks(values: Array) -> Array:
    """From 1; ties share the mean of theirs."""
    ordered = np.sort(values)
    return np.asarray((ordered.searchsorted(values) + ordered.searchsorted(values, "right") + 1) / 2)


def _area(hits: Array, alarms: Array) -> tuple[float, float]:
    if not len(hits) or not len(alarms):
        return np.nan, np.nan
    if min(len(hits), len(alarms)) < 2:
        return float(hits.mean()), np.nan
    return float(hits.mean()), float(hits.var(ddof=1) / len(hits) + alarms.var(ddof=1) / len(alarms))


def quantile(level: float) -> float:
    """The normal quantile of a two-sided level: 1.96 for 0.95."""
    return float(ndtri((1 + level) / 2))


def student_quantile(level: float, freedom: ArrayLike) -> Array:
    """Student's quantile of a two-sided level; NaN without a degree of freedom.

    >>> student_quantile(0.95, [4, 0]).round(3)
    array([2.776,   nan])
    """
    return np.asarray(stdtrit(freedom, (1 + level) / 2))


def _edge(beyond: Callable[[Array], NDArray[np.bool_]], inside: Array, outside: float | Array) -> Array:
    """Where `beyond` turns true on the way from `inside` to `outside`; NaN where `inside` is."""
    near, far = np.array(inside, dtype=float), np.where(np.isnan(inside), np.nan, outside)
    # 34 halvings of at most 2 leave 1e-10.
    with np.errstate(invalid="ignore", divide="ignore"):
        for _ in range(34):
            middle = (near + far) / 2
            out = beyond(middle)
            near, far = np.where(out, near, middle), np.where(out, middle, far)
    return np.asarray((near + far) / 2)


def _float(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _positive(n: ArrayLike) -> Array:
    return np.where(_float(n) > 0, _float(n), np.nan)
