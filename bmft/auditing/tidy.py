"""An audit's figures as rows: for data frames, notebooks and plots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from bmft._common import humanise
from bmft.auditing.metrics import DIFFERENCES

if TYPE_CHECKING:
    from bmft.auditing.charts import ForestRow

Figures = Mapping[str, Any]
GAPS = ("equalized_odds_difference", *list(DIFFERENCES)[:4])  # what a forest of gaps shows, as a report does


class Row(NamedTuple):
    """One figure: whose, which, its value with its interval, and how many samples the group has."""

    attribute: str
    group: str
    output: str
    metric: str
    value: float
    low: float
    high: float
    n: int


def rows_of(overall: Figures, by_group: Figures, gaps: Figures, intervals: Figures, n: int) -> Iterator[Row]:
    """Every figure of an audit, from its parts: everybody's, then each attribute's groups and gaps.

    Everybody's have neither attribute nor group, a gap has no group; ``output`` is "" for a mean over classes or
    labels, ``worst`` or the name of one.
    """
    yield from _rows(("", ""), overall, intervals.get("overall", {}), n)
    for attribute, groups in by_group.items():
        spans = intervals.get("by_group", {}).get(attribute, {})
        for group, figures in groups.items():
            yield from _rows((attribute, group), figures, spans.get(group, {}), int(figures["n"]))
        known = sum(int(figures["n"]) for figures in groups.values())
        yield from _rows((attribute, ""), gaps[attribute], intervals.get("gaps", {}).get(attribute, {}), known)


def _rows(whose: tuple[str, str], figures: Figures, spans: Figures, n: int) -> Iterator[Row]:
    parts = [("", figures, spans)]
    if "worst_class" in figures:
        parts.append(("worst", figures["worst_class"], spans.get("worst_class", {})))
        classes = spans.get("by_class", {})
        parts += [(name, one, classes.get(name, {})) for name, one in figures["by_class"].items()]
    for output, values, ends in parts:
        for metric, value in values.items():
            if not isinstance(value, Mapping) and metric != "n":
                low, high = ends.get(metric) or (math.nan, math.nan)
                yield Row(*whose, output, metric, float(value), float(low), float(high), int(values.get("n", n)))


def forest_rows(before: list[Row], after: list[Row], attributes: list[str], metric: str) -> list[ForestRow]:
    """The lines of a forest plot: the main gaps (`metric` "gaps"), or one metric of every group; means over classes.

    >>> row = Row("sex", "male", "", "roc_auc", 0.9, 0.8, 0.95, 10)
    >>> forest_rows([row], [], ["sex"], "roc_auc")
    [ForestRow(label='male', before=Estimate(value=0.9, low=0.8, high=0.95), after=None)]
    """
    from bmft.auditing.charts import Estimate, ForestRow

    moved = {row[:4]: Estimate(row.value, row.low, row.high) for row in after}
    found = []
    for row in before:
        wanted = row.metric in GAPS and not row.group if metric == "gaps" else row.metric == metric and row.group
        if row.attribute in attributes and not row.output and wanted:
            what = humanise(row.metric.removesuffix("_difference")) if metric == "gaps" else row.group
            label = what if len(attributes) == 1 else f"{row.attribute}: {what}"
            found.append(ForestRow(label, Estimate(row.value, row.low, row.high), moved.get(row[:4])))
    return found
