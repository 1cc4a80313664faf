"""The groups of one attribute as a gate sees them: metrics, their intervals at any level, what is missing.

Closed forms where each row is a patient of its own, `bmft.auditing` for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bmft.auditing import METRICS, Column, Counts, GroupStatistics, Sample, count, gather, group_metrics
from bmft.stats import Interval, Units, bootstrap, intervals

Floats = NDArray[np.float64]

RATIO = "predicted_positive_ratio"


def among_whom(metric: str) -> str:
    """The samples a metric is taken among: a group needs enough of them."""
    return "positives" if metric == RATIO else METRICS[metric].among if metric in METRICS else "samples"


@dataclass(frozen=True, eq=False)
class Side:
    """The groups of one attribute, or everybody as one group, and what a model says about them.

    Attributes:
        names: of the groups.
        column: scores, decisions and targets, one entry per row.
        sample: group ids and patients of the rows, and how to resample them.
        minimum: samples a group needs.
        wanted: the metrics that will be asked for together.
    """

    names: tuple[str, ...]
    column: Column
    sample: Sample
    minimum: int
    wanted: frozenset[str]

    @cached_property
    def counts(self) -> Counts:
        """Samples of each group by label and decision."""
        return count(self.column, self.sample.groups, len(self.names))

    @cached_property
    def values(self) -> dict[str, Floats]:
        """Every metric of each group, ``(groups,)``."""
        found, counts = group_metrics(self.column, self.sample.groups, len(self.names)), self.counts
        called = counts.true_positive + counts.false_positive
        ratio = np.divide(called, counts.positive, out=np.full(len(called), np.nan), where=counts.positive > 0)
        return {**found, RATIO: ratio}

    @property
    def clustered(self) -> bool:
        """Whether several rows may be of one patient."""
        return self.sample.clusters is not None

    def sizes(self, metric: str) -> Floats:
        """The samples of each group that a metric is taken among; of two kinds the rarer."""
        return self.counts.among[among_whom(metric)]

    def missing(self, metric: str) -> list[str]:
        """Why a metric cannot be judged in each group; "" where it can."""
        rows = zip(self.names, self.counts.n, self.sizes(metric), self.values[metric], strict=True)
        return [self._missing(metric, *row) for row in rows]

    def _missing(self, metric: str, name: str, n: float, size: float, value: float) -> str:
        if not n:
            return f"{name} has no samples"
        if size < self.minimum:
            return f"{name} has {size:.0f} {among_whom(metric)}, fewer than {self.minimum}"
        return f"{metric} is not defined in {name}" if np.isnan(value) else ""

    def interval(self, metric: str, level: float) -> Interval:
        """A metric of every group at a two-sided level."""
        if metric == RATIO:
            return self._on_log_scale(level)
        if not self.clustered and metric in self.counts.rates:
            return intervals.wilson(*self.counts.rates[metric], level)
        if not self.clustered and metric == "roc_auc":
            own = [self.sample.groups == g for g in range(len(self.names))]
            areas = [intervals.delong(self.column.scores[g], self.column.targets[g], level) for g in own]
            return Interval(*np.array([area[2:] for area in areas]).T)
        return self.evidence.interval(metric, level)

    @cached_property
    def evidence(self) -> GroupStatistics:
        """What intervals without a closed form rest on."""
        (found,) = gather([self.column], [self.values], self.sample, only=self.wanted)
        return found

    def replicates(self, metric: str) -> Floats:
        """A metric of every group in every resample, ``(resamples, groups)``."""
        return self._ratio_replicates if metric == RATIO else self.evidence.resampled(metric)

    def paired(self, metric: str, other: Side) -> Floats:
        """A metric minus another model's, in the same resamples of the rows: ``(resamples, groups)``."""
        columns, values = [self.column, other.column], [self.values, other.values]
        own, theirs = gather(columns, values, self.sample, only={metric}, every=True)
        return np.asarray(own.resampled(metric) - theirs.resampled(metric))

    def of(self, column: Column) -> Side:
        """The same rows as another model sees them."""
        return replace(self, column=column)

    def hits(self, metric: str) -> NDArray[np.bool_]:
        """The rows that count for a rate, ``(n,)``."""
        _, called, positive, _ = self.column
        hits: dict[str, NDArray[np.bool_]] = {
            "accuracy": called == positive,
            "true_positive_rate": called & positive,
            "false_positive_rate": called & ~positive,
            "true_negative_rate": ~called & ~positive,
            "false_negative_rate": ~called & positive,
        }
        return hits[metric]

    def units(self, metric: str) -> Floats:
        """Rows, or patients, of each group that a metric is taken among; of two kinds the rarer."""
        return self.sample.units(self.column)[among_whom(metric)]

    @cached_property
    def shared(self) -> bool:
        """Whether a patient has rows in several groups, whose estimates then depend on each other."""
        if self.sample.clusters is None:
            return False
        known = self.sample.groups >= 0
        _, ids = np.unique(self.sample.clusters[known], return_inverse=True)
        cells = np.unique(np.stack([ids, self.sample.groups[known]]), axis=1)
        return bool(cells.shape[1] > len(np.unique(ids)))

    @cached_property
    def _ratio_replicates(self) -> Floats:
        rows = self.sample.groups >= 0
        groups, clusters = self.sample.groups[rows], self.sample.clusters
        units = Units.of(None if clusters is None else clusters[rows], strata=groups)
        where = bootstrap.cells(groups, len(self.names))
        called = bootstrap.quotient(self.column.decisions[rows], self.column.targets[rows], where, units)
        drawn = bootstrap.bootstrap({RATIO: called}, units, resamples=self.sample.resamples, seed=self.sample.seed)
        return np.where(np.isinf(drawn[RATIO]), np.nan, drawn[RATIO])

    def _on_log_scale(self, level: float) -> Interval:
        value, units = self.values[RATIO], self.units(RATIO)
        reach = student_reach(self._ratio_replicates, units, level)
        # Where nobody is called positive every resample agrees: no interval, rather than one of width 0.
        value = np.where(value > 0, value, np.nan)
        return Interval(value * np.exp(-reach / value), value * np.exp(reach / value))


def student_reach(replicates: Floats, units: Floats, level: float) -> Floats:
    """Half the width of a Student interval from resamples ``(resamples, m)`` of so many units ``(m,)``."""
    kept = ~np.isnan(replicates)
    n = np.maximum(kept.sum(0), 2)
    mean = np.where(kept, replicates, 0).sum(0) / n
    variance = (np.where(kept, replicates - mean, 0) ** 2).sum(0) / (n - 1)
    freedom = np.where(units > 1, units - 1, np.nan)
    # A bootstrap of m units understates the variance by (m - 1) / m.
    return np.asarray(intervals.student_quantile(level, freedom) * np.sqrt(variance * units / freedom))
