"""How far each group's figures moved between two models on the same rows, with paired intervals."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bmft.auditing import Predictions, charts
from bmft.stats import delong_paired, never_seen, placements, quantile, tango

Changes = dict[tuple[str, str, str], charts.Estimate]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
RATES = ("true_positive_rate", "false_positive_rate", "selection_rate")


def paired_changes(
    before: Predictions, after: Predictions, threshold: float, level: float = 0.95, *, after_at: float | None = None
) -> Changes:
    """After minus before of the main measures: (attribute, group, measure) -> estimate; "", "" is everyone.

    Rates of one column by Tango's score interval, areas under the curve by paired DeLong. With clusters, and
    where several classes or labels are averaged, from each row's influence on the figure, summed within
    clusters (Obuchowski 1997 for the area). NaN for a group without the figure. The second model is cut at
    `after_at`, by default where the first is.
    """
    other = threshold if after_at is None else after_at
    decisions = before.decisions(threshold) == 1, after.decisions(other) == 1
    found: Changes = {}
    for attribute, group, members in _cells(before):
        for key in (*RATES, "roc_auc"):
            if before.scores.shape[1] == 1 and before.clusters is None:
                change = _closed_form(key, before, after, decisions, members, level)
            else:
                change = _by_influence(key, before, after, decisions, members, level)
            found[attribute, group, key] = change
    return found


def _cells(predictions: Predictions) -> Iterator[tuple[str, str, Bools]]:
    yield "", "", np.ones(len(predictions.targets), dtype=bool)
    for place, attribute in enumerate(predictions.attributes):
        for group, name in enumerate(attribute.groups):
            yield attribute.name, name, predictions.groups[:, place] == group


def _condition(key: str, targets: NDArray[np.int64]) -> Bools:
    """The rows a rate is a share of."""
    if key == "selection_rate":
        return np.asarray(targets >= 0)
    return np.asarray(targets == (key == "true_positive_rate"))


def _closed_form(
    key: str, before: Predictions, after: Predictions, decisions: tuple[Bools, Bools], members: Bools, level: float
) -> charts.Estimate:
    targets = before.targets[members, 0]
    if key == "roc_auc":
        if min(targets.sum(), (1 - targets).sum()) < 2:
            return charts.Estimate(np.nan)
        area = delong_paired(after.scores[members, 0], before.scores[members, 0], targets, level)
        return charts.Estimate(area.value, area.low, area.high)
    counted = _condition(key, targets)
    old, new = (of[members, 0][counted] for of in decisions)
    if not len(old):
        return charts.Estimate(np.nan)
    only_new, only_old = int((new & ~old).sum()), int((old & ~new).sum())
    low, high = tango(only_new, only_old, len(old), level)
    return charts.Estimate((only_new - only_old) / len(old), float(low), float(high))


def _by_influence(
    key: str, before: Predictions, after: Predictions, decisions: tuple[Bools, Bools], members: Bools, level: float
) -> charts.Estimate:
    """The mean over columns; its variance is that of the clusters' summed influence."""
    values, influences = [], []
    for column in range(before.scores.shape[1]):
        targets = before.targets[members, column]
        if key == "roc_auc":
            value, influence = _area(before.scores[members, column], after.scores[members, column], targets)
        else:
            old, new = (of[members, column].astype(float) for of in decisions)
            value, influence = _rate(new - old, _condition(key, targets))
        if not np.isnan(value):
            values.append(value)
            influences.append(influence)
    if not values:
        return charts.Estimate(np.nan)
    clusters = np.arange(int(members.sum())) if before.clusters is None else before.clusters[members]
    return _normal(float(np.mean(values)), np.mean(influences, axis=0), clusters, level)


def _rate(moved: Floats, counted: Bools) -> tuple[float, Floats]:
    if not counted.any():
        return np.nan, np.zeros(len(moved))
    mean = float(moved[counted].mean())
    return mean, np.where(counted, moved - mean, 0) / counted.sum()


def _area(old: Floats, new: Floats, targets: NDArray[np.int64]) -> tuple[float, Floats]:
    positive, negative, influence = targets == 1, targets == 0, np.zeros(len(targets))
    if min(positive.sum(), negative.sum()) < 2:
        return np.nan, influence
    known = positive | negative
    (hits, alarms), (old_hits, old_alarms) = (placements(scores[known], positive[known]) for scores in (new, old))
    value = float((hits - old_hits).mean())
    influence[positive] = (hits - old_hits - value) / positive.sum()
    influence[negative] = (alarms - old_alarms - value) / negative.sum()
    return value, influence


def _normal(value: float, influence: Floats, clusters: NDArray[np.int64], level: float) -> charts.Estimate:
    _, which = np.unique(clusters, return_inverse=True)
    sums = np.bincount(which, influence)
    variance = float((sums**2).sum() * len(sums) / max(len(sums) - 1, 1))
    reach = quantile(level) * np.sqrt(variance) if variance > 0 else never_seen(len(sums), level)
    return charts.Estimate(value, value - reach, value + reach)
