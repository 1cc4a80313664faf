"""Intervals of every metric of every group, for one column: what they rest on, and their ends at any level.

A closed form where there is one and every row is a patient of its own: Wilson for rates, DeLong for the AUC.
Else the standard error of a bootstrap (of patients where there are clusters), on the scale on which the
closed form works: an effective count for a rate, the logit for the rest. So no interval leaves [0, 1], and
none vanishes because every resample agrees, as a percentile interval does for 20 of 20 right.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bmft.auditing.metrics import BINS, METRICS, SCARCER, Bools, Column, Floats, Ints, bins, calibration_surplus, count
from bmft.stats import Interval, Statistic, Units, bootstrap, intervals

# Each rate, and among whom it is taken. F1 is a function of jaccard; balanced accuracy, the mean of two rates, is taken
# for one where a patient may count in both.
RATES: Mapping[str, str] = {
    **{name: metric.among for name, metric in METRICS.items() if metric.rate},
    "jaccard": "called",
    "balanced_accuracy": METRICS["balanced_accuracy"].among,
}


class Sample(NamedTuple):
    """The samples and how they are resampled: their group ids, the number of groups, and patient ids or None."""

    groups: Ints
    num_groups: int
    clusters: NDArray[Any] | None
    resamples: int = 2000
    seed: int = 0

    def units_among(self, rows: Bools) -> Floats:
        """How many rows, or patients, each group has among `rows`; those of unknown group are left out."""
        rows = rows & (self.groups >= 0)
        if self.clusters is None:
            return np.bincount(self.groups[rows], minlength=self.num_groups).astype(np.float64)
        patients = np.unique(np.stack([self.groups[rows], self.clusters[rows]]), axis=1)[0]
        return np.bincount(patients, minlength=self.num_groups).astype(np.float64)

    def units(self, column: Column) -> dict[str, Floats]:
        """Rows, or patients, of each group that a metric is taken among, by `Metric.among`, and of all ``"called"``."""
        rows = {
            "samples": np.ones_like(column.targets),
            "positives": column.targets,
            "negatives": ~column.targets,
            "called": column.targets | column.decisions,
        }
        known = column.among(self.groups) >= 0
        found = {name: self.units_among(among & known) for name, among in rows.items()}
        return {**found, SCARCER: np.minimum(found["positives"], found["negatives"])}


@dataclass(frozen=True, eq=False)
class GroupStatistics:
    """The values and resamples from which the intervals of one column are made.

    Attributes:
        values: metric -> ``(groups,)``.
        trials: rate -> how many independent trials it is worth in each group, ``(groups,)``.
        variance: of the ROC AUC, ``(groups,)``.
        replicates: metric -> ``(resamples, groups)``; of the bins' surplus ``(resamples, groups, bins)``.
        surplus: of each calibration bin the share in the mean of score - target, and the standard error this
            would have were every score the true probability: ``(groups, bins)`` each.
        units: rows or patients of each group, by those a metric is taken among.
        clustered: the units are patients.
    """

    values: Mapping[str, Floats]
    trials: Mapping[str, Floats]
    variance: Floats
    replicates: Mapping[str, Floats]
    surplus: tuple[Floats, Floats]
    units: Mapping[str, Floats]
    clustered: bool

    def at(self, level: float) -> dict[str, Interval]:
        """Metric -> interval of every group, at a two-sided level."""
        return {name: self.interval(name, level) for name in METRICS}

    def interval(self, name: str, level: float) -> Interval:
        """Of one metric, for every group."""
        if name == "f1":
            # It rises with the share of right calls among all that are positive or called so.
            low, high = self._rate("jaccard", level)
            return Interval(2 * low / (1 + low), 2 * high / (1 + high))
        if name == "balanced_accuracy" and not self.clustered:
            halves = ("true_positive_rate", "true_negative_rate")
            first, second = ((self.values[half], self._rate(half, level)) for half in halves)
            return half_sum(first, second)
        if name == "roc_auc":
            return self._area(level)
        if name == "expected_calibration_error":
            return self._calibration(level)
        if name in RATES:
            return self._rate(name, level)
        if name == "average_precision":
            # Biased upwards on few positives, and its resamples, which are fewer still, once more.
            own = self.values[name], self.replicates[name], self.units["positives"]
            return on_logit_scale(*own, level, about=own[0])
        return on_logit_scale(self.values[name], self.replicates[name], self.units["samples"], level)

    def resampled(self, name: str) -> Floats:
        """One metric of every group in every resample: ``(resamples, groups)``."""
        if name == "expected_calibration_error":
            return np.asarray(np.abs(self.replicates["surplus"]).sum(2))
        return self.replicates[name]

    def _rate(self, name: str, level: float) -> Interval:
        worth = self.trials[name]
        if self.clustered:
            worth = worth * _shrinkage(self.units[RATES[name]], level)
        return intervals.wilson(_rate_of(self.values, name) * worth, worth, level)

    def _area(self, level: float) -> Interval:
        positive, negative, variance = self.units["positives"], self.units["negatives"], self.variance
        if self.clustered:
            variance = variance / _shrinkage(self.units[SCARCER], level)
        rows = zip(self.values["roc_auc"], variance, positive, negative, strict=True)
        return _stacked([intervals.auc_interval(*row, level) for row in rows])

    def _calibration(self, level: float) -> Interval:
        resampled, units = self.replicates["surplus"], self.units["samples"]
        return _stacked(
            [
                calibration_interval(surplus, resampled[:, g], least, n, level)
                for g, (surplus, least, n) in enumerate(zip(*self.surplus, units, strict=True))
            ]
        )


def gather(
    columns: Sequence[Column],
    values: Sequence[Mapping[str, Floats]],
    sample: Sample,
    *,
    every: bool = False,
    only: Collection[str] = tuple(METRICS),
) -> list[GroupStatistics]:
    """The evidence of each column, all resampled together; samples of unknown group are left out.

    Args:
        columns: scores, decisions and targets.
        values: the metrics of each, from `bmft.auditing.group_metrics`.
        sample: groups and clusters.
        every: resample also what has a closed form.
        only: the metrics that will be asked for.
    """
    columns, sample = _in_order(columns, sample)
    every = every or sample.clusters is not None
    replicates = _replicates(columns, sample, every, only)
    return [_evidence(*parts, sample) for parts in zip(columns, values, replicates, strict=True)]


def _in_order(columns: Sequence[Column], sample: Sample) -> tuple[list[Column], Sample]:
    """The rows of known group in an order of their own, lest the order given choose the resamples."""
    keys = [part for column in columns for part in _told(column)]
    clusters = sample.clusters
    ids = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
    order = np.lexsort([*keys, *([] if ids is None else [ids]), sample.groups])
    order = order[sample.groups[order] >= 0]
    ids = None if ids is None else ids[order]
    sample = sample._replace(groups=sample.groups[order], clusters=ids)
    return [column.where(order) for column in columns], sample


def _told(column: Column) -> tuple[NDArray[Any], ...]:
    """What is known of each row; what a model says where the target is not counts for nothing."""
    if column.known is None:
        return column.scores, column.targets
    return np.where(column.known, column.scores, 0), column.targets, column.known


def _evidence(
    column: Column, values: Mapping[str, Floats], replicates: Mapping[str, Floats], sample: Sample
) -> GroupStatistics:
    counts = count(column, sample.groups, sample.num_groups)
    units = sample.units(column)
    # Balanced accuracy is of everybody; how much it tells, the scarcer label says.
    trials = {**counts.among, "called": counts.called, SCARCER: counts.n}
    worth = {name: trials[among] for name, among in RATES.items()}
    if sample.clusters is None:
        own = [column.among(sample.groups) == g for g in range(sample.num_groups)]
        areas = [intervals.delong(column.scores[g], column.targets[g]) for g in own]
        variance = np.array([area.variance for area in areas])
    else:
        drawn = replicates.get("roc_auc", np.empty((0, sample.num_groups)))
        variance = _variance(drawn, units[SCARCER])
        for name, among in ((name, among) for name, among in RATES.items() if name in replicates):
            rate, spread = _rate_of(values, name), _variance(replicates[name], units[among])
            worth[name] = _effective(rate, spread, units[among], worth[name])
    surplus = calibration_surplus(column, sample.groups, sample.num_groups)
    return GroupStatistics(values, worth, variance, replicates, surplus, units, sample.clusters is not None)


def _rate_of(values: Mapping[str, Floats], name: str) -> Floats:
    return values["f1"] / (2 - values["f1"]) if name == "jaccard" else values[name]


def _replicates(
    columns: Sequence[Column], sample: Sample, every: bool, only: Collection[str]
) -> list[dict[str, Floats]]:
    """Per column metric -> ``(resamples, groups)``, and ``surplus`` with a last axis of bins."""
    units = Units.of(sample.clusters, strata=sample.groups)
    where = bootstrap.cells(sample.groups, sample.num_groups)
    needed = {name for metric in only for name in _SOURCES.get(metric, (metric,))}
    needed = needed if every else needed & _NO_CLOSED_FORM
    statistics = {
        f"{k} {name}": statistic
        for k, column in enumerate(columns)
        for name, statistic in statistics_of(column, where, units, needed).items()
    }
    drawn = bootstrap.bootstrap(statistics, units, resamples=sample.resamples, seed=sample.seed)
    found = []
    for k in range(len(columns)):
        own = {name.split(" ", 1)[1]: r for name, r in drawn.items() if name.startswith(f"{k} ")}
        if "surplus" in needed:
            own["surplus"] = np.stack([own.pop(f"surplus {b}") for b in range(BINS)], axis=2)
        found.append(_derived(own))
    return found


# What is resampled for a metric, where that is not the metric itself.
_SOURCES: Mapping[str, tuple[str, ...]] = {
    "true_negative_rate": ("false_positive_rate",),
    "false_negative_rate": ("true_positive_rate",),
    "balanced_accuracy": ("true_positive_rate", "false_positive_rate"),
    "f1": ("jaccard",),
    "expected_calibration_error": ("surplus",),
}
_NO_CLOSED_FORM = {"surplus", "brier_score", "average_precision"}


def statistics_of(
    column: Column, where: Sequence[Bools], units: Units, needed: Collection[str]
) -> dict[str, Statistic]:
    """What is resampled for the `needed` metrics in the cells `where`; a decision may count in part, from 0 to 1."""
    scores, called, positive, known = column
    where = where if known is None else [cell & known for cell in where]
    place, off = bins(scores), scores - positive
    mean = partial(bootstrap.mean, where=where, units=units)
    makers: dict[str, Callable[[], Statistic]] = {
        "brier_score": lambda: mean(off**2),
        "average_precision": lambda: bootstrap.average_precision(scores, positive, where, units),
        "roc_auc": lambda: bootstrap.roc_auc(scores, positive, where, units),
        "accuracy": lambda: mean(np.where(positive, called, 1 - called)),
        "true_positive_rate": lambda: mean(called, where=[cell & positive for cell in where]),
        "false_positive_rate": lambda: mean(called, where=[cell & ~positive for cell in where]),
        "selection_rate": lambda: mean(called),
        "jaccard": lambda: bootstrap.quotient(called & positive, called | positive, where, units),
    }
    found = {name: make() for name, make in makers.items() if name in needed}
    if "surplus" in needed:
        found |= {f"surplus {b}": mean(off * (place == b)) for b in range(BINS)}
    return found


def _derived(own: dict[str, Floats]) -> dict[str, Floats]:
    found = dict(own)
    if "true_positive_rate" in own:
        found["false_negative_rate"] = 1 - own["true_positive_rate"]
    if "false_positive_rate" in own:
        found["true_negative_rate"] = 1 - own["false_positive_rate"]
    if {"true_positive_rate", "false_positive_rate"} <= set(own):
        found["balanced_accuracy"] = (own["true_positive_rate"] + found["true_negative_rate"]) / 2
    if "jaccard" in own:
        found["f1"] = 2 * own["jaccard"] / (1 + own["jaccard"])
    return found


def half_sum(first: tuple[Any, Interval], second: tuple[Any, Interval]) -> Interval:
    """Interval of the mean of two independent estimates, from each and its interval."""
    (a, of_a), (b, of_b) = first, second
    low, high = intervals.difference(a, of_a, np.negative(b), Interval(-of_b.high, -of_b.low))
    return Interval(low / 2, high / 2)


def on_logit_scale(
    values: Floats, replicates: Floats, units: Floats, level: float, *, about: Floats | None = None
) -> Interval:
    """Interval of a figure in [0, 1] from its bootstrap standard error, taken on the logit scale.

    `about` is what the resamples deviate from, where that is not their own mean: then their bias counts as error, too.
    At 0 and 1, which have no logit and where every resample agrees, the other end is what so many units may
    still hide (`bmft.stats.never_seen`).
    """
    variance = _variance(replicates, units, about) / _shrinkage(units, level)
    inside = (values > 0) & (values < 1)
    p = np.where(inside, values, 0.5)
    reach = intervals.quantile(level) * np.sqrt(variance) / (p * (1 - p))
    logit = np.log(p / (1 - p))
    # As in `bmft.stats.intervals.auc_interval`.
    with np.errstate(over="ignore"):
        low, high = 1 / (1 + np.exp(reach - logit)), 1 / (1 + np.exp(-reach - logit))
    unseen = np.array([intervals.never_seen(n, level) for n in units])
    edge = np.where(np.isnan(values), np.nan, unseen)
    low = np.where(inside, low, np.where(values == 1, 1 - edge, edge * 0))
    return Interval(low, np.where(inside, high, np.where(values == 0, edge, 1 + edge * 0)))


def calibration_interval(
    surplus: Floats, resampled: Floats, least: Floats, units: float, level: float
) -> tuple[float, float]:
    """Interval of the calibration error from the surplus of every bin, in the sample and in its resamples.

    The estimate is biased upwards, by noise that absolute values cannot cancel, and a percentile interval
    twice so: it misses 0 every time. Here the low end is the smallest multiple of the bins' profile which,
    with the resamples' noise on it, still reaches the estimate; 0 where noise alone does. The high end is the
    normal one, which the bias puts on the safe side.

    Args:
        surplus: of each bin the share in the mean of score - target, ``(bins,)``.
        resampled: the same of every resample, ``(resamples, bins)``.
        least: a standard error that each bin has at least, ``(bins,)``.
        units: rows or patients.
        level: two-sided.
    """
    noise = resampled[~np.isnan(resampled).any(1)] - surplus
    error = float(np.abs(surplus).sum())
    if units < 2 or len(noise) < 2:
        return np.nan, np.nan
    # A bin of one sample does not vary in a bootstrap; its target does, at least as much as its score says.
    own = noise.std(0, ddof=1)
    noise = noise * np.where(own > 0, np.maximum(least / np.where(own > 0, own, 1), 1), 1)
    reach = intervals.student_quantile(level, units - 1) * np.abs(surplus + noise).sum(1).std(ddof=1)
    near, far = 0.0, 1.0

    def reached(share: float) -> bool:
        return bool(np.quantile(np.abs(share * surplus + noise).sum(1), (1 + level) / 2) >= error)

    if reached(near):
        return 0.0, min(error + reach, 1.0)
    for _ in range(20):
        middle = (near + far) / 2
        near, far = (near, middle) if reached(middle) else (middle, far)
    return far * error, min(error + reach, 1.0)


def _variance(replicates: Floats, units: Floats, about: Floats | None = None) -> Floats:
    """Variance over resamples, NaN ones left out; a bootstrap of m units understates it by (m - 1) / m."""
    kept = ~np.isnan(replicates)
    n = kept.sum(0)
    mean = np.where(kept, replicates, 0).sum(0) / np.maximum(n, 1) if about is None else about
    squares = (np.where(kept, replicates - mean, 0) ** 2).sum(0)
    enough = (n > 1) & (units > 1)
    return np.where(enough, squares / np.maximum(n - 1, 1) * units / np.maximum(units - 1, 1), np.nan)


def _effective(rate: Floats, variance: Floats, units: Floats, most: Floats) -> Floats:
    """How many independent trials have this variance: at most the rows; the patients where none differ."""
    varied = (rate > 0) & (rate < 1) & (variance > 0)
    trials = np.where(varied, rate * (1 - rate) / np.where(varied, variance, 1), units)
    return np.where(units > 1, np.minimum(trials, most), np.nan)


def _shrinkage(units: Floats, level: float) -> Floats:
    """What a variance estimated from so few units is worth: the normal quantile over Student's, squared."""
    return np.asarray((intervals.quantile(level) / intervals.student_quantile(level, units - 1)) ** 2)


def _stacked(ends: Sequence[tuple[float, float]]) -> Interval:
    return Interval(*np.array(ends, dtype=np.float64).reshape(-1, 2).T)
