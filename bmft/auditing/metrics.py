"""Metrics of every group at once, for one column of scores: numpy in, one array entry per group out.

The names and definitions are scikit-learn's and fairlearn's, which the tests compare with; their own
functions take one group at a time and tens of milliseconds, too long for an audit after every epoch. One
thing differs: what has no samples to be measured on (the true positive rate without positives) is NaN, where
those two give 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BINS = 10  # of the calibration error: equal widths on [0, 1]

SCARCER = "positives or negatives"


class Metric(NamedTuple):
    """The facts about a metric, written once for audits, intervals, gates and reports.

    Attributes:
        name: what a reader calls it.
        meaning: what it is, in one sentence.
        better: 1 where more is better, -1 where less is, 0 for neither.
        among: the samples it is taken among: ``"samples"``, ``"positives"``, ``"negatives"``, or both of these, of
            which the scarcer say how much it can tell.
        decided: whether it is of decisions, and so moves with the threshold; else of scores.
        rate: whether it is a share of cases (`Counts.rates`).
    """

    name: str
    meaning: str
    better: int = 0
    among: str = "samples"
    decided: bool = True
    rate: bool = False


METRICS: Mapping[str, Metric] = {
    "roc_auc": Metric(
        "ROC AUC",
        "Chance that a positive case is scored above a negative one; 0.5 is guessing.",
        1,
        SCARCER,
        decided=False,
    ),
    "average_precision": Metric(
        "Average precision", "Area under the precision-recall curve.", 1, "positives", decided=False
    ),
    "accuracy": Metric("Accuracy", "Share of cases called correctly.", 1, rate=True),
    "balanced_accuracy": Metric("Balanced accuracy", "Mean of sensitivity and specificity.", 1, SCARCER),
    "f1": Metric("F1", "Harmonic mean of precision and sensitivity.", 1, "positives"),
    "true_positive_rate": Metric(
        "True positive rate (sensitivity)",
        "Share of the positive cases that the model calls positive.",
        1,
        "positives",
        rate=True,
    ),
    "false_positive_rate": Metric(
        "False positive rate",
        "Share of the negative cases that the model calls positive (1\u00a0−\u00a0specificity).",
        -1,
        "negatives",
        rate=True,
    ),
    "true_negative_rate": Metric(
        "True negative rate (specificity)", "Share of negatives called negative.", 1, "negatives", rate=True
    ),
    "false_negative_rate": Metric(
        "False negative rate", "Share of positives called negative.", -1, "positives", rate=True
    ),
    "selection_rate": Metric("Predicted-positive rate", "Share of all cases that the model calls positive.", rate=True),
    "brier_score": Metric(
        "Brier score", "Mean squared distance of the predicted probability from the outcome.", -1, decided=False
    ),
    "expected_calibration_error": Metric(
        "Calibration error",
        "Mean distance of predicted probability and observed share, in ten bins.",
        -1,
        decided=False,
    ),
}
DIRECTION: Mapping[str, int] = {name: metric.better for name, metric in METRICS.items()}
ODDS = ("true_positive_rate", "false_positive_rate")
# Each gap that is the largest difference of one metric between two groups.
DIFFERENCES: Mapping[str, str] = {
    "true_positive_rate_difference": "true_positive_rate",
    "false_positive_rate_difference": "false_positive_rate",
    "demographic_parity_difference": "selection_rate",
    "roc_auc_difference": "roc_auc",
    "accuracy_difference": "accuracy",
    "balanced_accuracy_difference": "balanced_accuracy",
    "calibration_error_difference": "expected_calibration_error",
}
TOGETHER = ("accuracy", "balanced_accuracy")  # of several classes: of all together, not one against the rest


class Column(NamedTuple):
    """One binary question, a label or one class against the rest: each ``(n,)``; `known` is None where all are."""

    scores: Floats
    decisions: Bools
    targets: Bools
    known: Bools | None = None

    def among(self, groups: Ints) -> Ints:
        """The groups ``(n,)``, with -1 for the samples whose target is not known."""
        return groups if self.known is None else np.where(self.known, groups, -1)

    def where(self, rows: Any) -> "Column":
        """The column of those samples, in the order of `rows`: numbers or a boolean mask."""
        known = None if self.known is None else self.known[rows]
        return Column(self.scores[rows], self.decisions[rows], self.targets[rows], known)


class Summary(NamedTuple):
    """Figures over all columns (their mean), of the worst column, and of each; one column is its own summary.

    Each is a name -> array; with one column `worst` and `columns` are empty.
    """

    mean: Mapping[str, Any]
    worst: Mapping[str, Any]
    columns: Sequence[Mapping[str, Any]]


class Counts(NamedTuple):
    """How many samples each group has, by label and decision; each ``(groups,)``."""

    n: Floats
    positive: Floats
    true_positive: Floats
    false_positive: Floats

    @property
    def negative(self) -> Floats:
        """Samples without the label."""
        return self.n - self.positive

    @property
    def called(self) -> Floats:
        """Samples that are positive or are predicted so."""
        return self.positive + self.false_positive

    @property
    def among(self) -> dict[str, Floats]:
        """How many samples a metric is taken among, by `Metric.among`."""
        positive, negative = self.positive, self.negative
        both = np.minimum(positive, negative)
        return {"samples": self.n, "positives": positive, "negatives": negative, SCARCER: both}

    @property
    def rates(self) -> dict[str, tuple[Floats, Floats]]:
        """Every metric that is a share: what is counted, and out of how many."""
        tp, fp, positive, negative = self.true_positive, self.false_positive, self.positive, self.negative
        return {
            "accuracy": (tp + negative - fp, self.n),
            "true_positive_rate": (tp, positive),
            "false_positive_rate": (fp, negative),
            "true_negative_rate": (negative - fp, negative),
            "false_negative_rate": (positive - tp, positive),
            "selection_rate": (tp + fp, self.n),
        }


def count(column: Column, groups: Ints, num_groups: int) -> Counts:
    """Count samples, positives, true and false positives per group; group -1 is left out."""
    groups = column.among(groups)
    cell = (groups * 4 + column.targets * 2 + column.decisions)[groups >= 0]  # (n,)
    table = np.bincount(cell, minlength=4 * num_groups).reshape(num_groups, 2, 2).astype(np.float64)
    return Counts(table.sum((1, 2)), table[:, 1].sum(1), table[:, 1, 1], table[:, 0, 1])


def group_metrics(column: Column, groups: Ints, num_groups: int) -> dict[str, Floats]:
    """Every metric of `DIRECTION` for every group: name -> ``(num_groups,)``, NaN where there is none.

    The calibration error is the mean distance of mean score and share of positives over ten equal bins,
    weighted by their samples (Naeini, Cooper and Hauskrecht 2015). It is biased upwards in small groups,
    whose bins scatter.

    Args:
        column: probabilities, decisions and targets.
        groups: ``(n,)`` ids, -1 unknown and left out.
        num_groups: how many groups there are, with or without samples.

    >>> scores, targets = np.array([0.9, 0.4, 0.6, 0.2]), np.array([True, True, False, False])
    >>> found = group_metrics(Column(scores, scores >= 0.5, targets), np.array([0, 0, 1, 1]), 2)
    >>> found["true_positive_rate"], found["false_positive_rate"]
    (array([0.5, nan]), array([nan, 0.5]))
    """
    groups = column.among(groups)
    counts, known = count(column, groups, num_groups), groups >= 0
    scores, targets = column.scores[known], column.targets[known]
    found = {name: _share(x, n) for name, (x, n) in counts.rates.items()}
    found["balanced_accuracy"] = (found["true_positive_rate"] + found["true_negative_rate"]) / 2
    shared = _share(counts.true_positive, counts.called)
    found["f1"] = np.where(counts.positive > 0, 2 * shared / (1 + shared), np.nan)
    found["roc_auc"], found["average_precision"] = _ranking(scores, targets, groups[known], num_groups)
    error = np.bincount(groups[known], (scores - targets) ** 2, num_groups)
    found["brier_score"] = _share(error, counts.n)
    surplus, _ = calibration_surplus(column, groups, num_groups)
    found["expected_calibration_error"] = np.where(counts.n > 0, np.abs(surplus).sum(1), np.nan)
    return {name: found[name] for name in DIRECTION}


def summarise(columns: Sequence[Mapping[str, Floats]], accuracy: Floats | None = None) -> Summary:
    """The metrics of several columns as their mean and their worst; a column without a metric is left out.

    For several classes `accuracy` is the share of samples whose largest score is the right one's; it takes
    the place of the mean over classes, as the mean recall does for the balanced accuracy (scikit-learn's).
    """
    if len(columns) == 1:
        return Summary(columns[0], {}, ())
    stacked = {name: np.stack([column[name] for column in columns]) for name in DIRECTION}
    mean = {name: defined_mean(values) for name, values in stacked.items()}
    if accuracy is not None:
        mean |= {"accuracy": accuracy, "balanced_accuracy": mean["true_positive_rate"]}
    return Summary(mean, {name: worst(stacked[name], way) for name, way in DIRECTION.items() if way}, columns)


def summarise_gaps(summary: Summary, *, classes: bool) -> Summary:
    """The gaps of several columns as their mean and their worst, from the metrics' summary.

    The gap is taken within each column first: groups that lack different classes have different means.
    With `classes` the accuracy and the balanced accuracy are of all columns together, and so compared.
    """
    if not summary.columns:
        return Summary(group_gaps(summary.mean), {}, ())
    columns = [group_gaps(column) for column in summary.columns]
    stacked = {name: np.array([column[name] for column in columns]) for name in columns[0]}
    mean = {name: float(defined_mean(values)) for name, values in stacked.items()}
    for name in TOGETHER if classes else ():
        mean[f"{name}_difference"] = difference(summary.mean[name])
    ways = {name: 1 if name == "demographic_parity_ratio" else -1 for name in stacked}
    return Summary(mean, {name: float(worst(stacked[name], way)) for name, way in ways.items()}, columns)


def group_shares(which: Bools, groups: Ints, num_groups: int) -> Floats:
    """The share of each group's samples for which `which` holds, ``(num_groups,)``."""
    known = groups >= 0
    hits = np.bincount(groups[known], which[known], num_groups)
    return _share(hits, np.bincount(groups[known], minlength=num_groups))


def group_gaps(metrics: Mapping[str, Floats]) -> dict[str, float]:
    """How far apart the groups are, by fairlearn's names, from `group_metrics`.

    Each difference is that between the largest and the smallest group; `equalized_odds_difference` is the
    larger of those in true and false positive rate, `average_odds_difference` their mean, and
    `demographic_parity_ratio` the smallest selection rate over the largest. A group without the figure is
    left out; NaN where fewer than two have it, and for the odds where one of the two rates is NaN.

    >>> nothing = dict.fromkeys(DIRECTION, np.array([np.nan, np.nan]))
    >>> gaps = group_gaps({**nothing, "roc_auc": np.array([0.75, np.nan, 1.0])})
    >>> gaps["roc_auc_difference"], gaps["equalized_odds_difference"]
    (0.25, nan)
    """
    gaps = {name: difference(metrics[metric]) for name, metric in DIFFERENCES.items()}
    odds = np.array([gaps["true_positive_rate_difference"], gaps["false_positive_rate_difference"]])
    selected = metrics["selection_rate"][~np.isnan(metrics["selection_rate"])]
    ratio = selected.min() / selected.max() if len(selected) > 1 and selected.max() > 0 else np.nan
    return {
        "equalized_odds_difference": float(odds.max()),
        **gaps,
        "average_odds_difference": float(odds.mean()),
        "demographic_parity_ratio": float(ratio),
    }


def difference(values: Floats) -> float:
    """Largest minus smallest of what is not NaN; NaN for fewer than two."""
    present = values[~np.isnan(values)]
    return float(present.max() - present.min()) if len(present) > 1 else float("nan")


def defined_mean(values: Floats, axis: int = 0) -> Floats:
    """Mean over an axis of what is not NaN; NaN where everything is."""
    present = ~np.isnan(values)
    return _share(np.where(present, values, 0).sum(axis), present.sum(axis))


def worst(values: Floats, direction: int, axis: int = 0) -> Floats:
    """Smallest over an axis where more is better (`direction` 1), else largest; NaN where all are."""
    absent = np.isnan(values)
    extreme = np.where(absent, np.inf, direction * values).min(axis) * direction
    return np.asarray(np.where(absent.all(axis), np.nan, extreme))


def _share(x: NDArray[Any], n: NDArray[Any]) -> Floats:
    return np.asarray(np.divide(x, n, out=np.full(np.shape(n), np.nan), where=n > 0))


def _ranking(scores: Floats, targets: Bools, groups: Ints, num_groups: int) -> tuple[Floats, Floats]:
    """ROC AUC (ties count half) and average precision of every group, from one sort."""
    order = np.argsort(scores, kind="stable")
    scores, targets, groups = scores[order], targets[order], groups[order]
    pairs = [_rank(scores[own], targets[own]) for own in (groups == g for g in range(num_groups))]
    auc, precision = np.array(pairs).reshape(num_groups, 2).T
    return auc, precision


def _rank(scores: Floats, targets: Bools) -> tuple[float, float]:
    """ROC AUC and average precision of scores in ascending order."""
    n, positive = len(scores), int(targets.sum())
    if not positive:
        return np.nan, np.nan
    edges = np.concatenate([[0], np.flatnonzero(scores[1:] != scores[:-1]) + 1, [n]])  # of the runs of ties
    positives_below = np.concatenate([[0], np.cumsum(targets)])[edges]
    here = np.diff(positives_below)
    from_here_up = positive - positives_below[:-1]
    average_precision = float((here * (from_here_up / (n - edges[:-1]))).sum() / positive)
    if positive == n:
        return np.nan, average_precision
    negatives_below = edges - positives_below
    won = (here * (negatives_below[:-1] + negatives_below[1:]) / 2).sum()
    return float(won / (positive * (n - positive))), average_precision


def calibration_surplus(column: Column, groups: Ints, num_groups: int) -> tuple[Floats, Floats]:
    """Sum of score - target in each calibration bin over the group's size, ``(num_groups, BINS)``, and the
    standard error it would have were every score the true probability.
    """
    groups = column.among(groups)
    known = groups >= 0
    cell, scores = (groups * BINS + bins(column.scores))[known], column.scores[known]
    sizes = np.maximum(np.bincount(groups[known], minlength=num_groups), 1)[:, None]
    off, spread = (
        np.bincount(cell, values, num_groups * BINS).reshape(num_groups, BINS)
        for values in (scores - column.targets[known], scores * (1 - scores))
    )
    return off / sizes, np.sqrt(spread) / sizes


def bins(scores: Floats) -> Ints:
    """The calibration bin of each score; 1 is in the last."""
    return np.minimum((scores * BINS).astype(np.int64), BINS - 1)
