"""ROC and reliability of every group from pooled predictions, as cards: a chart and the same in numbers."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bmft.auditing import Predictions
from bmft.report import figures
from bmft.report.figures import Curve
from bmft.report.page import Card, Cell, Number, Table
from bmft.report.svg import Caption
from bmft.report.wording import count, number, span
from bmft.stats import wilson

AT = (0.05, 0.1, 0.2)  # false positive rates at which a ROC curve is put into numbers
MOST_COLUMNS = 8
Cases = tuple[str, NDArray[np.float64], NDArray[np.int64]]  # group, scores, targets


def roc_card(side: str, predictions: Predictions, attribute: int, column: int) -> Card:
    """ROC curve per group, and the true positive rate at three false positive rates."""
    groups = list(_groups(predictions, attribute, column))
    title = _title("ROC", side, predictions, column)
    curves = [Curve(name, *roc_points(scores, targets)) for name, scores, targets in groups]
    caption = Caption(_id("roc", side, attribute, column), title, _roc_text(curves))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (name, count(int(targets.sum())), *(_true_positive_rate_at(at, scores, targets) for at in AT))
        for name, scores, targets in groups
    )
    header = ("Group", "Positives", *(f"at {at:g}" for at in AT))
    text = "True positive rate against false positive rate over all thresholds; the dotted diagonal is guessing."
    return Card(
        title,
        text,
        partial(figures.unit_square, curves, caption, x="False positive rate", y="True positive rate"),
        Table("True positive rate where the false positive rate is at most", header, rows),
    )


def calibration_card(side: str, predictions: Predictions, attribute: int, column: int) -> Card:
    """Reliability curve per group in five bins of equal size, and predicted against observed overall."""
    groups = list(_groups(predictions, attribute, column))
    title = _title("Reliability", side, predictions, column)
    curves = [_reliability(name, scores, targets) for name, scores, targets in groups if len(scores)]
    rows: list[tuple[Cell, ...]] = []
    for name, scores, targets in groups:
        predicted = number(float(scores.mean())) if len(scores) else number(None)
        rows.append((name, count(len(scores)), predicted, _share(int(targets.sum()), len(targets))))
    spoken = " ".join(
        f"{row[0]}: predicted {row[2]}, observed {row[3].text}." for row in rows if isinstance(row[3], Number)
    )
    caption = Caption(
        _id("reliability", side, attribute, column), title, f"Mean predicted probability and observed share. {spoken}"
    )
    text = (
        "Observed share of positives against predicted probability, in five bins of equal size; on the "
        "diagonal they agree."
    )
    return Card(
        title,
        text,
        partial(figures.unit_square, curves, caption, x="Predicted probability", y="Observed share"),
        Table("Over all cases of the group", ("Group", "Cases", "Predicted", "Observed"), tuple(rows)),
    )


def bins_table(side: str, predictions: Predictions, attribute: int) -> Table:
    """The points of the reliability curves, with counts and intervals."""
    rows = []
    for column in range(min(predictions.scores.shape[1], MOST_COLUMNS)):
        for name, scores, targets in _groups(predictions, attribute, column):
            for mean, positives, n in reliability_bins(scores, targets):
                label = name if predictions.scores.shape[1] == 1 else f"{name}, {predictions.columns[column]}"
                rows.append((label, count(int(n)), number(mean), _share(int(positives), int(n))))
    header = ("Group", "Cases", "Predicted", "Observed")
    return Table(f"{side}: one row per bin" if side else "One row per bin", header, tuple(rows))


def _groups(predictions: Predictions, attribute: int, column: int) -> Iterator[Cases]:
    for group, name in enumerate(predictions.attributes[attribute].groups):
        members = predictions.groups[:, attribute] == group
        yield name, predictions.scores[members, column], predictions.targets[members, column]


def _reliability(name: str, scores: NDArray[np.float64], targets: NDArray[np.int64]) -> Curve:
    mean, positives, n = reliability_bins(scores, targets).T
    low, high = wilson(positives, n)
    return Curve(name, mean, positives / n, np.asarray(low), np.asarray(high))


def _true_positive_rate_at(limit: float, scores: NDArray[np.float64], targets: NDArray[np.int64]) -> Number:
    """The best true positive rate any threshold reaches with at most this false positive rate."""
    negative = np.sort(scores[targets == 0])[::-1]
    positive = scores[targets == 1]
    if not len(negative) or not len(positive):
        return Number(number(None))
    allowed = int(limit * len(negative) + 1e-9)
    threshold = negative[allowed] if allowed < len(negative) else -np.inf
    return _share(int((positive > threshold).sum()), len(positive))


def _share(part: int, n: int) -> Number:
    low, high = wilson(part, n)
    return Number(number(part / n if n else None), span([float(low), float(high)]))


def _roc_text(curves: list[Curve]) -> str:
    def one(curve: Curve) -> str:
        if not len(curve.x):
            return f"{curve.label}: no curve, one of the two classes is absent."
        reached = ", ".join(f"{number(float(np.interp(at, curve.x, curve.y)), 2)} at {at:g}" for at in AT)
        return f"{curve.label}: true positive rate {reached}."

    return "At given false positive rates. " + " ".join(map(one, curves))


def _title(what: str, side: str, predictions: Predictions, column: int) -> str:
    parts = [predictions.columns[column] if predictions.scores.shape[1] > 1 else "", side.lower()]
    return ", ".join([what, *(part for part in parts if part)])


def _id(what: str, side: str, attribute: int, column: int) -> str:
    return f"{what}-{side.lower() or 'only'}-{attribute}-{column}"


def roc_points(
    scores: NDArray[np.float64], targets: NDArray[np.int64], limit: int = 101
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates over all thresholds, thinned to about `limit` points along the curve.

    Both are empty where one of the two classes is absent: there is no curve.

    >>> roc_points(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    (array([0. , 0. , 0.5, 0.5, 1. ]), array([0. , 0.5, 0.5, 1. , 1. ]))
    """
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], targets[order] == 1
    if positive.all() or not positive.any():
        return np.empty(0), np.empty(0)
    last_of_tie = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    tpr = np.concatenate([[0], np.cumsum(positive)[last_of_tie] / positive.sum()])
    fpr = np.concatenate([[0], np.cumsum(~positive)[last_of_tie] / (~positive).sum()])
    if len(fpr) > limit:
        along = fpr + tpr
        keep = np.unique(np.searchsorted(along, np.linspace(0, 2, limit)).clip(max=len(along) - 1))
        fpr, tpr = fpr[keep], tpr[keep]
    return fpr, tpr


def reliability_bins(scores: NDArray[np.float64], targets: NDArray[np.int64], bins: int = 5) -> NDArray[np.float64]:
    """Rows of (mean score, positives, samples), one per bin of equal size; none for an empty bin.

    >>> reliability_bins(np.array([0.1, 0.2, 0.7, 0.9]), np.array([0, 0, 1, 1]), bins=2)
    array([[0.15, 0.  , 2.  ], [0.8 , 2.  , 2.  ]])
    """
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return np.array([[scores[part].mean(), (targets[part] == 1).sum(), len(part)] for part in parts]).reshape(-1, 3)
