"""What a gate holds against a bound: each group, each pair of groups, or a model beside its baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from bmft.auditing import DIRECTION, Column
from bmft.gate.groups import Side, student_reach
from bmft.stats import Interval, intervals

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Estimates with intervals at any level.

    Attributes:
        names: such as ``"female - male"``.
        groups: the groups each is about.
        estimates: ``(m,)``.
        at: two-sided level -> both ends, ``(m,)`` each.
        sizes: samples per group behind each, ``(m,)``.
        missing: why one cannot be made; "" where it can.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    estimates: Floats
    at: Callable[[float], Interval]
    sizes: Floats
    missing: tuple[str, ...]

    def __add__(self, other: Contrasts) -> Contrasts:
        def at(level: float) -> Interval:
            first, second = self.at(level), other.at(level)
            return Interval(np.append(first.low, second.low), np.append(first.high, second.high))

        return Contrasts(
            self.names + other.names,
            self.groups + other.groups,
            np.append(self.estimates, other.estimates),
            cache(at),
            np.append(self.sizes, other.sizes),
            self.missing + other.missing,
        )


def each_group(side: Side, metric: str) -> Contrasts:
    """A metric of each group."""
    return Contrasts(
        side.names,
        tuple((name,) for name in side.names),
        side.values[metric],
        cache(lambda level: side.interval(metric, level)),
        side.sizes(metric),
        tuple(side.missing(metric)),
    )


def differences(side: Side, metric: str, *, label: str = "") -> Contrasts:
    """A metric of one group minus that of another, for every pair; `label` goes before their names."""
    i, j = _places(combinations(range(len(side.names)), 2))

    def at(level: float) -> Interval:
        if not side.clustered and metric in side.counts.rates:
            x, n = side.counts.rates[metric]
            return intervals.miettinen_nurminen(x[i], n[i], x[j], n[j], level)
        value, (low, high) = side.values[metric], side.interval(metric, level)
        together = _correlations(side, metric)[i, j]
        return intervals.difference(value[i], Interval(low[i], high[i]), value[j], Interval(low[j], high[j]), together)

    return _pairs(side, metric, i, j, f"{label}{{}} - {{}}", side.values[metric][i] - side.values[metric][j], at)


def ratios(side: Side, metric: str) -> Contrasts:
    """A metric of one group over that of another, for every pair both ways."""
    i, j = _places(permutations(range(len(side.names)), 2))
    value = side.values[metric]

    def at(level: float) -> Interval:
        low, high = side.interval(metric, level)
        return intervals.ratio(value[i], Interval(low[i], high[i]), value[j], Interval(low[j], high[j]))

    with np.errstate(divide="ignore", invalid="ignore"):
        estimates = value[i] / value[j]
    return _pairs(side, metric, i, j, "{} / {}", estimates, at)


def against(side: Side, baseline: Column, metric: str) -> Contrasts:
    """How much better than the baseline the model is in each group, by its metric; below 0 is worse."""
    sign = DIRECTION[metric]
    other = side.of(baseline)
    estimates = sign * (side.values[metric] - other.values[metric])

    def at(level: float) -> Interval:
        low, high = _paired_interval(side, other, metric, level)
        return Interval(low, high) if sign > 0 else Interval(-high, -low)

    reasons = [own or theirs for own, theirs in zip(side.missing(metric), other.missing(metric), strict=True)]
    return Contrasts(
        side.names, tuple((name,) for name in side.names), estimates, cache(at), side.sizes(metric), tuple(reasons)
    )


def _paired_interval(side: Side, other: Side, metric: str, level: float) -> Interval:
    """Of the metric of `side` minus that of `other`, on the same rows."""
    if not side.clustered and metric in side.counts.rates:
        return intervals.tango(*_disagreements(side, other, metric), side.counts.rates[metric][1], level)
    if not side.clustered and metric == "roc_auc":
        first, second, targets = side.column.scores, other.column.scores, side.column.targets
        own = [side.sample.groups == g for g in range(len(side.names))]
        areas = [intervals.delong_paired(first[g], second[g], targets[g], level) for g in own]
        return Interval(*np.array([area[2:] for area in areas]).T)
    estimates, units = side.values[metric] - other.values[metric], side.units(metric)
    reach = student_reach(side.paired(metric, other), units, level)
    # Where every resample agrees the two models answered alike, and what did not occur may still be there.
    unseen = np.array([intervals.never_seen(n, level) for n in units])
    reach = np.where(reach == 0, unseen, reach)
    return Interval(estimates - reach, estimates + reach)


def _disagreements(side: Side, other: Side, metric: str) -> tuple[Floats, Floats]:
    """Per group, the rows that count for a rate in one model only: this one's, and the other's."""
    own, theirs = side.hits(metric), other.hits(metric)
    groups, size = side.sample.groups, len(side.names)
    first, second = (
        np.bincount(groups[rows & (groups >= 0)], minlength=size) for rows in (own & ~theirs, theirs & ~own)
    )
    return first.astype(np.float64), second.astype(np.float64)


def _correlations(side: Side, metric: str) -> Floats:
    """Of the groups' estimates: independent, unless patients are in several groups."""
    if not side.shared:
        return np.zeros((len(side.names), len(side.names)))
    drawn = side.replicates(metric)
    kept = ~np.isnan(drawn)
    mean = np.where(kept, drawn, 0).sum(0) / np.maximum(kept.sum(0), 1)
    off = np.where(kept, drawn - mean, 0)
    length = np.sqrt((off**2).sum(0))
    return np.asarray(off.T @ off / np.maximum(np.outer(length, length), np.finfo(float).tiny))


def _places(pairs: Iterable[tuple[int, ...]]) -> tuple[Ints, Ints]:
    found = np.array(list(pairs), dtype=np.intp).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _pairs(
    side: Side, metric: str, i: Ints, j: Ints, words: str, estimates: Floats, at: Callable[[float], Interval]
) -> Contrasts:
    names, reasons, sizes = side.names, side.missing(metric), side.sizes(metric)
    groups = tuple((names[a], names[b]) for a, b in zip(i, j, strict=True))
    with np.errstate(divide="ignore"):
        # As many in both would tell as much.
        alike = 2 / (1 / sizes[i] + 1 / sizes[j])
    return Contrasts(
        tuple(words.format(*pair) for pair in groups),
        groups,
        estimates,
        cache(at),
        alike,
        tuple(reasons[a] or reasons[b] for a, b in zip(i, j, strict=True)),
    )
