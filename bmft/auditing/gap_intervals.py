"""Intervals of the gaps between groups, and of what is summed up over several classes or labels."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations

import numpy as np

from bmft.auditing.group_intervals import GroupStatistics, Sample, gather, half_sum, on_logit_scale
from bmft.auditing.metrics import (
    DIFFERENCES,
    DIRECTION,
    ODDS,
    TOGETHER,
    Bools,
    Column,
    Floats,
    Summary,
    defined_mean,
    difference,
    worst,
)
from bmft.stats import Interval, intervals

At = Callable[[float], Mapping[str, Interval]]  # level -> name -> interval
NONE = Interval(np.nan, np.nan)


def summarise_intervals(
    columns: Sequence[Column], metrics: Summary, sample: Sample, level: float, right: Bools | None = None
) -> tuple[Summary, Summary]:
    """Intervals of the metrics of every group, ``(groups,)`` each, and of the gaps between the groups.

    The mean over columns has the standard error of its own bootstrap. The mean gap takes the means of the
    columns' ends, which holds however the columns depend on each other. Of the worst column, the end that
    errs if any column does is taken at a level corrected for their number.

    Args:
        columns: as in `metrics`.
        metrics: what `bmft.auditing.metrics.summarise` made of them.
        sample: groups and clusters.
        level: two-sided.
        right: for several classes, the samples whose largest score is the right one's.
    """
    if not metrics.columns:
        (evidence,) = gather(columns, [metrics.mean], sample)
        at = cache(evidence.at)
        gaps = gap_intervals(metrics.mean, at, level, clustered=evidence.clustered)
        return Summary(at(level), {}, ()), Summary(gaps, {}, ())
    return _several(columns, metrics, sample, level, right)


def gap_intervals(
    values: Mapping[str, Floats], at: At, level: float, *, clustered: bool, columns: int = 1
) -> dict[str, Interval]:
    """Intervals of the gaps of `bmft.auditing.metrics.group_gaps` from those of the groups' metrics.

    The difference of two groups has the interval that both of theirs make (MOVER; for rates Newcombe's). The
    largest difference, over pairs of groups and for the odds over both rates, has the highest upper end of
    all and the highest lower end at a level corrected for their number (`bmft.stats.intervals.largest`): a
    bootstrap of the largest difference itself never reaches 0. Patients in two groups make the intervals too
    wide, not too narrow.

    Args:
        values: metric -> ``(groups,)``.
        at: their intervals at a level.
        level: two-sided.
        clustered: true and false positives may be of the same patients, so the mean of both gaps takes the
            mean of their high ends.
        columns: correct also for the largest of so many columns.
    """
    found = {"equalized_odds_difference": _largest(values, at, ODDS, level, columns)}
    found |= {gap: _largest(values, at, (name,), level, columns) for gap, name in DIFFERENCES.items()}
    found["average_odds_difference"] = _average_odds(values, at, level, columns, clustered)
    found["demographic_parity_ratio"] = _smallest_ratio(values, at, level, columns)
    return found


def _largest(values: Mapping[str, Floats], at: At, names: Sequence[str], level: float, columns: int) -> Interval:
    pairs = {name: _pairs(values[name]) for name in names}
    if not all(pairs.values()):
        return NONE

    def differences(level: float) -> Interval:
        found = [
            intervals.difference(values[name][i], _one(at(level)[name], i), values[name][j], _one(at(level)[name], j))
            for name in names
            for i, j in pairs[name]
        ]
        return Interval(*np.array(found).T)

    corrected = differences(_corrected(level, columns * sum(map(len, pairs.values()))))
    return intervals.largest(*differences(level), *corrected)


def _average_odds(values: Mapping[str, Floats], at: At, level: float, columns: int, clustered: bool) -> Interval:
    usual = [_largest(values, at, (name,), level, columns) for name in ODDS]
    # It errs if the low end of either difference does, as where both are 0.
    low = sum(_largest(values, at, (name,), level, 2 * columns).low for name in ODDS) / 2
    if clustered:
        return Interval(low, sum(one.high for one in usual) / 2)
    first, second = (np.float64(difference(values[name])) for name in ODDS)
    return Interval(low, half_sum((first, usual[0]), (second, usual[1])).high)


def _smallest_ratio(values: Mapping[str, Floats], at: At, level: float, columns: int) -> Interval:
    rates = values["selection_rate"]
    pairs = _pairs(rates)
    if not pairs or not np.nanmax(rates) > 0:
        return NONE

    def ratios(level: float) -> Interval:
        own = at(level)["selection_rate"]
        found = [intervals.ratio(rates[i], _one(own, i), rates[j], _one(own, j)) for i, j in pairs]
        low, high = np.array(found).T
        # Either of the two may be the smaller: r or 1 / r, whichever is below 1.
        with np.errstate(divide="ignore"):
            return Interval(np.minimum(low, 1 / high), np.minimum(np.minimum(high, 1 / low), 1))

    low, high = ratios(level).low.min(), ratios(_corrected(level, columns * len(pairs))).high.min()
    return Interval(float(low), float(high))


def _pairs(values: Floats) -> list[tuple[int, int]]:
    return list(combinations(np.flatnonzero(~np.isnan(values)).tolist(), 2))


def _one(interval: Interval, group: int) -> Interval:
    return Interval(interval.low[group], interval.high[group])


def _corrected(level: float, comparisons: int) -> float:
    return 1 - (1 - level) / comparisons


def _several(
    columns: Sequence[Column], metrics: Summary, sample: Sample, level: float, right: Bools | None
) -> tuple[Summary, Summary]:
    values = [dict(column) for column in metrics.columns]
    if right is not None:
        # Being right is one more column, of positives only: its true positive rate is the accuracy.
        columns = [*columns, Column(right.astype(np.float64), right, np.ones_like(right))]
        values.append({name: np.full_like(metrics.mean[name], np.nan) for name in DIRECTION})
        values[-1]["true_positive_rate"] = metrics.mean["accuracy"]
    evidence = gather(columns, values, sample, every=True)
    together = None if right is None else evidence.pop()
    mean = cache(lambda level: _mean_metrics(metrics, evidence, together, level))
    ats: list[At] = [cache(one.at) for one in evidence]

    def gaps(count: int) -> list[dict[str, Interval]]:
        clustered = sample.clusters is not None
        return [
            gap_intervals(own, at, level, clustered=clustered, columns=count)
            for own, at in zip(metrics.columns, ats, strict=True)
        ]

    each = gaps(1)
    mean_gaps = {name: _mean_of([gap[name] for gap in each]) for name in each[0]}
    for name in () if right is None else TOGETHER:
        mean_gaps[f"{name}_difference"] = _largest(metrics.mean, mean, (name,), level, 1)
    return (
        Summary(mean(level), _worst_metrics(ats, level), [at(level) for at in ats]),
        Summary(mean_gaps, _worst_gaps(gaps(len(ats))), each),
    )


def _mean_metrics(
    metrics: Summary, evidence: Sequence[GroupStatistics], together: GroupStatistics | None, level: float
) -> dict[str, Interval]:
    sizes = np.stack([one.units["samples"] for one in evidence])
    # Labels may be known of different samples: the fewest that a label of the group has.
    units, found = np.where(sizes > 0, sizes, np.inf).min(0), {}
    units = np.where(np.isinf(units), 0, units)
    for name in DIRECTION:
        if name == "expected_calibration_error":
            found[name] = _mean_of([one.at(level)[name] for one in evidence])
        else:
            replicates = defined_mean(np.stack([one.replicates[name] for one in evidence]))
            found[name] = on_logit_scale(metrics.mean[name], replicates, units, level)
    if together is not None:
        found["accuracy"] = together.at(level)["true_positive_rate"]
        found["balanced_accuracy"] = found["true_positive_rate"]
    return found


def _mean_of(intervals_of_columns: Sequence[Interval]) -> Interval:
    return Interval(*(defined_mean(np.stack(ends)) for ends in zip(*intervals_of_columns, strict=True)))


def _worst_metrics(ats: Sequence[At], level: float) -> dict[str, Interval]:
    found = {}
    for name, way in DIRECTION.items():
        usual, corrected = ([at(at_level)[name] for at in ats] for at_level in (level, _corrected(level, len(ats))))
        lows, highs = (usual, corrected) if way > 0 else (corrected, usual)
        low, high = np.stack([one.low for one in lows]), np.stack([one.high for one in highs])
        if way:
            found[name] = Interval(worst(low, way), worst(high, way))
    return found


def _worst_gaps(gaps: Sequence[Mapping[str, Interval]]) -> dict[str, Interval]:
    """`gaps` are corrected for the number of columns at the end that needs it."""
    found = {}
    for name in gaps[0]:
        way = 1 if name == "demographic_parity_ratio" else -1
        low, high = np.array([gap[name] for gap in gaps], dtype=np.float64).T
        found[name] = Interval(worst(low, way), worst(high, way))
    return found
