"""The last pages of a report: who was counted, what was run, and what the figures do not say."""

from collections.abc import Iterator, Mapping
from typing import Any

from bmft.report.page import Bullets, Card, Cards, Cell, Paragraph, Section, Table
from bmft.report.values import OUT_OF_FOLD
from bmft.report.wording import Json, count, joined, several

SMALL = 30  # a rate of fewer cases says little whatever its value


def counts_section(audit: Json, skipped: int | None) -> Section:
    """How many there are of everyone, and who is missing."""
    rows = tuple(
        (attribute, group, *map(count, _labels(of)))
        for attribute, groups in audit["by_group"].items()
        for group, of in groups.items()
    )
    labels = ("Rarest class",) if several(audit["overall"]) else ("Positive", "Negative")
    header = ("Attribute", "Group", "Cases", *labels)
    unknown = joined([f"{count(n)} with unknown {name}" for name, n in audit["unknown"].items()])
    left_out = "" if skipped is None else f" {count(skipped)} images could not be read and were left out."
    text = (
        f"{count(audit['n'])} cases were measured, {unknown}; an unknown case counts towards the figures of "
        f"everyone and towards no group.{left_out}"
    )
    table = Table("Cases of each group", header, rows, text_columns=2)
    return Section("counts", "Who was counted", (Paragraph(text), table))


def _labels(group: Json) -> tuple[int, ...]:
    """How many cases, positives and negatives; of several classes, cases and those of the rarest."""
    if several(group):
        return group["n"], group["n_positive"]
    return group["n"], group["n_positive"], group["n"] - group["n_positive"]


def assumed_section(audit: Json) -> Section | None:
    """What was inferred about the model, its classes, its pixels and its rows, and how to say otherwise."""
    rows = tuple(
        (subject, one["value"], f"{'a guess: ' if one['guess'] else ''}{one['from']}", one["option"])
        for subject, choices in (audit.get("assumed") or {}).items()
        for one in choices
    )
    header = ("About", "Taken", "From", "Say otherwise by")
    return (
        Section("assumed", "What was assumed", (Table("Nobody said this", header, rows, text_columns=4),))
        if rows
        else None
    )


def run_section(facts: Mapping[str, Mapping[str, Any]]) -> Section:
    """What was run: one table per topic; nested settings are written with dots."""
    cards = [
        Card(topic, "", table=Table(topic, ("Name", "Value"), tuple(_flat(values)), text_columns=2))
        for topic, values in facts.items()
        if values
    ]
    return Section("run", "What was run", (Cards(tuple(cards)),))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[Cell, ...]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _shown(value)


def _shown(value: Any) -> str:
    """A setting as a reader would write it.

    >>> _shown([0.001, True, None])
    '0.001, yes, –'
    """
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def limits_section(audit: Json, *, evaluated_on: str) -> Section:
    """What these figures do not say, starting with what is special about this run."""
    items = [*_of_this_run(audit, evaluated_on)]
    items += [
        "Gaps were measured for the groups and the data at hand. Other groups, their intersections, other "
        "sites "
        "and later years may differ.",
        "The labels were taken as the truth. Where labels err more often in one group, every figure here "
        "inherits "
        "that.",
        "Rates are at one threshold. Another threshold gives other rates and another gap.",
        "An interval is for one comparison: among many groups and figures some changes look clear by chance. "
        + (
            "Intervals are over patients, not images."
            if audit["clusters"] is not None
            else "Every image counts as independent; several of one patient make the intervals too narrow."
        ),
        "A smaller gap can come from one group doing worse. The tables by group show whether it did.",
        "This page supports a decision about a model; it does not replace clinical validation.",
    ]
    return Section("limits", "What this does not say", (Bullets(tuple(items)),))


def _of_this_run(audit: Json, evaluated_on: str) -> Iterator[str]:
    names = ("of the rarest class",) if several(audit["overall"]) else ("positives", "negatives")
    small = [
        f"{group} ({attribute}, {count(n)} {name})"
        for attribute, groups in audit["by_group"].items()
        for group, of in groups.items()
        for name, n in zip(names, _labels(of)[1:], strict=True)
        if n < SMALL
    ]
    if small:
        yield (
            f"Fewer than {SMALL} cases stand behind the rates of {joined(small)}. Read their intervals, "
            "not their points."
        )
    if evaluated_on == OUT_OF_FOLD:
        yield (
            "The figures are of models that learned from fewer rows than the new model, each on rows it had not seen. "
            "The new model learned from every row, and no row was left to measure it on: expect about as much, or a "
            "little more, of it on new data, and measure it there."
        )
    if evaluated_on == "select":
        yield (
            "The data that chose the epoch also measured the result, so the new model's figures are "
            "likely too good. Measure it again on data that neither fitted nor selected."
        )
