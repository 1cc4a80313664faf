"""ROC and reliability of every group from pooled predictions, as cards: a chart and the same in numbers."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from bmft.auditing import Predictions, charts
from bmft.report import figures
from bmft.report.page import Card, Cell, Number, Table
from bmft.report.svg import Caption
from bmft.report.wording import count, number, span
from bmft.stats import reliability_bins, wilson

AT = (0.05, 0.1, 0.2)  # false positive rates at which a ROC curve is put into numbers
MOST_COLUMNS = 8


def roc_card(side: str, predictions: Predictions, attribute: int, column: int) -> Card:
    """ROC curve per group, and the true positive rate at three false positive rates."""
    groups = list(predictions.cases(attribute, column))
    title = _title("ROC", side, predictions, column)
    curves = [charts.roc(*group) for group in groups]
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
        partial(figures.unit_square, curves, caption, **charts.ROC_AXES),
        Table("True positive rate where the false positive rate is at most", header, rows),
    )


def calibration_card(side: str, predictions: Predictions, attribute: int, column: int) -> Card:
    """Reliability curve per group in five bins of equal size, and predicted against observed overall."""
    groups = list(predictions.cases(attribute, column))
    title = _title("Reliability", side, predictions, column)
    curves = [charts.reliability(*group) for group in groups if len(group[1])]
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
        partial(figures.unit_square, curves, caption, **charts.RELIABILITY_AXES),
        Table("Over all cases of the group", ("Group", "Cases", "Predicted", "Observed"), tuple(rows)),
    )


def bins_table(side: str, predictions: Predictions, attribute: int) -> Table:
    """The points of the reliability curves, with counts and intervals."""
    rows = []
    for column in range(min(predictions.scores.shape[1], MOST_COLUMNS)):
        for name, scores, targets in predictions.cases(attribute, column):
            for mean, positives, n in reliability_bins(scores, targets):
                label = name if predictions.scores.shape[1] == 1 else f"{name}, {predictions.columns[column]}"
                rows.append((label, count(int(n)), number(mean), _share(int(positives), int(n))))
    header = ("Group", "Cases", "Predicted", "Observed")
    return Table(f"{side}: one row per bin" if side else "One row per bin", header, tuple(rows))


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


def _roc_text(curves: list[charts.Curve]) -> str:
    def one(curve: charts.Curve) -> str:
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
