"""The first pages of a report: the decision, every group's figures, and the curves behind them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from bmft.auditing import HEADLINE, Predictions, charts
from bmft.report import figures
from bmft.report.changes import Changes
from bmft.report.claim import calibration_rows
from bmft.report.curves import MOST_COLUMNS, bins_table, calibration_card, roc_card
from bmft.report.page import Block, Card, Cards, Cell, Folded, Heading, Number, Paragraph, Section, Table
from bmft.report.svg import Caption
from bmft.report.wording import (
    GAPS,
    MAIN,
    Json,
    count,
    counted,
    gap_name,
    interval_of,
    joined,
    measure,
    number,
    percent,
    several,
    short_name,
    span,
    value_of,
)

_SEVERAL = (
    "There are several classes or labels: unless a class is named, a figure is the mean over them, each "
    "against the rest."
)


@dataclass(frozen=True)
class Sides:
    """One audit, or two of the same rows, with their predictions and the paired changes where known."""

    before: Json
    after: Json | None = None
    names: tuple[str, str] = ("Before", "After")
    predictions: tuple[Predictions | None, Predictions | None] = (None, None)
    changes: Changes = field(default_factory=dict)

    @property
    def audits(self) -> list[Json]:
        """The audits there are."""
        return [audit for audit in (self.before, self.after) if audit is not None]

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the columns that `cells` fills."""
        return (self.names[0],) if self.after is None else (*self.names, "Change")

    def cells(self, path: tuple[str, ...], change: charts.Estimate | None = None, better: int = 0) -> tuple[Cell, ...]:
        """The figure at `path` on each side with its interval, and how far it moved."""
        values = [value_of(audit, path) for audit in self.audits]
        spans = [span(interval_of(audit, *path)) for audit in self.audits]
        shown = tuple(map(Number, map(number, values), spans))
        if self.after is None:
            return shown
        moved = None if None in values else values[1] - values[0]
        return (*shown, Number(number(moved, signed=True), verdict(change, better)))


def verdict(change: charts.Estimate | None, better: int) -> str:
    """Whether a change is beyond its own interval: "better", "worse", "higher", "lower" or "unclear".

    >>> verdict(charts.Estimate(0.1, 0.02, 0.18), 1), verdict(charts.Estimate(0.1, -0.02, 0.2), 1), verdict(None, 1)
    ('better', 'unclear', '')
    """
    if change is None or np.isnan(change.low):
        return ""
    if change.low <= 0 <= change.high:
        return "unclear"
    up = change.low > 0
    return ("higher" if up else "lower") if better == 0 else "better" if up == (better > 0) else "worse"


def decision_section(sides: Sides, why_worse: str = "") -> Section:
    """The outcome as one small table, then who got better and who got worse, with `why_worse` where anybody did."""
    before, changes = sides.before, sides.changes
    rows: list[tuple[Cell, ...]] = [
        (f"{measure(key).name}, everyone", *sides.cells(("overall", key), changes.get(("", "", key)), 1))
        for key in ("roc_auc", "balanced_accuracy")
    ]
    for attribute, gaps in before["gaps"].items():
        rows.append((f"Gap between groups of {attribute}", *sides.cells(("gaps", attribute, HEADLINE))))
        if "worst_class" in gaps:
            worst = sides.cells(("gaps", attribute, "worst_class", HEADLINE))
            rows.append((f"Gap between groups of {attribute}, worst class", *worst))
    rows += calibration_cells(sides)
    caption = (
        "The gap is the equalized odds difference: the larger of the differences in true and in false "
        f"positive rate between two groups; 0 is none. Small print: {percent(before['level'])} interval."
    )
    blocks: tuple[Block, ...] = (Table(caption, ("Measure", *sides.columns), tuple(rows)),)
    if several(before["overall"]):
        blocks = (Paragraph(_SEVERAL), *blocks)
    if changes:
        blocks += (Heading("Who got better, who got worse"), *_who_moved(sides, why_worse))
    return Section("decision", "In short", blocks)


def calibration_cells(sides: Sides) -> list[tuple[Cell, ...]]:
    """Each group's calibration error as rows of a short table."""
    return [(name, *sides.cells(path)) for name, path in calibration_rows(sides.before)]


def _who_moved(sides: Sides, why_worse: str) -> Iterator[Block]:
    """Every change of a group that its paired interval tells from 0; the better ones folded."""
    judged = [
        (verdict(change, better), f"{attribute} = {group}", short_name(key), change)
        for (attribute, group, key), change in sides.changes.items()
        if attribute and (better := measure(key).better)
    ]
    for word in ("worse", "better"):
        found = [(group, figure, _with_interval(change)) for found, group, figure, change in judged if found == word]
        groups = [*dict.fromkeys(group for group, *_ in found)]
        yield Paragraph(f"{word.capitalize()} in at least one figure: {joined(groups) or 'no group'}.")
        level = percent(sides.before["level"])
        caption = f"{word.capitalize()}: the paired {level} interval of the change excludes 0"
        table = Table(caption, ("Group", "Figure", "Change"), tuple(found), text_columns=2)
        if found:
            yield table if word == "worse" else Folded("What got better", (table,))
        if found and word == "worse" and why_worse:
            yield Paragraph(why_worse)
    unclear = sum(word not in ("worse", "better") for word, *_ in judged)
    yield Paragraph(f"No clear change in {unclear} of the {len(judged)} figures compared.")


def _with_interval(change: charts.Estimate) -> Number:
    return Number(number(change.value, signed=True), span((change.low, change.high), signed=True))


def groups_section(sides: Sides) -> Section:
    """Gaps and rates of every group: a forest plot and its table per measure, the rest folded."""
    blocks: list[Block] = []
    for place, (attribute, groups) in enumerate(sides.before["by_group"].items()):
        keys = [key for key in MAIN if any(key in of for of in groups.values())]
        cards = [_gap_card(sides, attribute, place), *(_rate_card(sides, attribute, key, place) for key in keys)]
        others = [_other_measures(sides, attribute), _other_gaps(sides, attribute)]
        if several(sides.before["overall"]):
            others.append(_by_class(sides, attribute))
        blocks += [Heading(f"Groups of {attribute}"), Cards(tuple(cards))]
        blocks.append(Folded(f"Every other measure for {attribute}", tuple(others)))
    return Section("groups", "Before and after, group by group" if sides.after else "Group by group", tuple(blocks))


def _gap_card(sides: Sides, attribute: str, place: int) -> Card:
    keys = [key for key in GAPS if key in sides.before["gaps"][attribute]]
    text = (
        "Largest difference between any two groups; 0 is none. Equalized odds is the larger of the "
        "differences in true and false positive rate."
    )
    rows = [_forest_row(sides, ("gaps", attribute, key), gap_name(key)) for key in keys]
    caption = Caption(f"gaps-{place}", f"Gaps between groups of {attribute}", f"{text} {_aloud(rows, sides.names)}")
    cells = tuple((gap_name(key), *sides.cells(("gaps", attribute, key))) for key in keys)
    chart = partial(figures.forest, rows, caption, labels=sides.names, from_zero=True)
    return Card("Gaps", text, chart, Table("Gaps", ("Gap in", *sides.columns), cells))


def _rate_card(sides: Sides, attribute: str, key: str, place: int) -> Card:
    about, groups = measure(key), sides.before["by_group"][attribute]
    direction = {1: " Higher is better.", -1: " Lower is better.", 0: ""}[about.better]
    rows = [_forest_row(sides, ("by_group", attribute, group, key), group) for group in groups]
    title, spoken = (f"{about.name} of the groups of {attribute}", f"{about.meaning} {_aloud(rows, sides.names)}")
    caption = Caption(f"{key.replace('_', '-')}-{place}", title, spoken)
    cells = tuple(
        (
            group,
            count(counted(of, about)),
            *sides.cells(("by_group", attribute, group, key), sides.changes.get((attribute, group, key)), about.better),
        )
        for group, of in groups.items()
    )
    all_cases = not about.rate or about.among == "samples" or several(sides.before["overall"])
    of = "Cases" if all_cases else about.among.capitalize()
    table = Table(about.name, ("Group", of, *sides.columns), cells)
    return Card(
        about.name, about.meaning + direction, partial(figures.forest, rows, caption, labels=sides.names), table
    )


def _forest_row(sides: Sides, path: tuple[str, ...], label: str) -> charts.ForestRow:
    return charts.ForestRow(
        label, *(_estimate(value_of(audit, path), interval_of(audit, *path)) for audit in sides.audits)
    )


def _estimate(value: float | None, interval: Sequence[float | None] | None) -> charts.Estimate:
    return charts.Estimate(*(np.nan if part is None else part for part in (value, *(interval or (None, None)))))


def _aloud(rows: Sequence[charts.ForestRow], names: tuple[str, str]) -> str:
    """The points of a forest plot as text."""

    def one(row: charts.ForestRow) -> str:
        if row.after is None:
            return f"{row.label}: {number(row.before.value)}."
        before, after = (name.lower() for name in names)
        return f"{row.label}: {before} {number(row.before.value)}, {after} {number(row.after.value)}."

    return " ".join(map(one, rows))


def _other_measures(sides: Sides, attribute: str) -> Table:
    groups: Mapping[str, Json] = sides.before["by_group"][attribute]
    keys = [key for key in _plain_keys(next(iter(groups.values()), {})) if key not in (*MAIN, "n", "n_positive")]
    rows = tuple(
        (measure(key).name, group, count(counted(of, measure(key))), *sides.cells(("by_group", attribute, group, key)))
        for key in keys
        for group, of in groups.items()
    )
    return Table(f"Groups of {attribute}", ("Measure", "Group", "Of", *sides.columns), rows, text_columns=2)


def _other_gaps(sides: Sides, attribute: str) -> Table:
    keys = [key for key in _plain_keys(sides.before["gaps"][attribute]) if key not in GAPS]
    rows = tuple((gap_name(key), *sides.cells(("gaps", attribute, key))) for key in keys)
    caption = f"Other gaps between groups of {attribute} (a ratio is best at 1)"
    return Table(caption, ("Gap", *sides.columns), rows)


def _by_class(sides: Sides, attribute: str) -> Table:
    """The main measures of each class or label, one against the rest."""
    groups: Mapping[str, Json] = sides.before["by_group"][attribute]
    rows = tuple(
        (name, group, short_name(key), *sides.cells(("by_group", attribute, group, "by_class", name, key)))
        for name in sides.before["overall"]["by_class"]
        for key in MAIN
        for group in groups
    )
    return Table("Class by class", ("Class", "Group", "Measure", *sides.columns), rows, text_columns=3)


def _plain_keys(figures: Json) -> list[str]:
    return [key for key, value in figures.items() if not isinstance(value, Mapping)]


def curves_section(sides: Sides) -> Section | None:
    """ROC and reliability per group, and their numbers; None where the predictions are not at hand."""
    sets = [(name, of) for name, of in zip(sides.names, sides.predictions, strict=True) if of is not None]
    if not sets:
        return None
    blocks: list[Block] = []
    for place, attribute in enumerate(sets[0][1].attributes):
        cards = [
            card(name if len(sets) > 1 else "", of, place, column)
            for column in range(min(len(sets[0][1].columns), MOST_COLUMNS))
            for card in (roc_card, calibration_card)
            for name, of in sets
        ]
        tables = tuple(bins_table(name if len(sets) > 1 else "", of, place) for name, of in sets)
        blocks += [Heading(f"Groups of {attribute.name}"), Cards(tuple(cards))]
        blocks.append(Folded("The points of the reliability curves", tables))
    return Section("curves", "ROC and reliability per group", tuple(blocks))
