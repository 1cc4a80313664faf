"""What may be claimed of a result, and which kind of figure a report shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from bmft._common import humanise
from bmft.auditing import HEADLINE
from bmft.report.page import Cell, Number, Paragraph, Section, Table
from bmft.report.wording import Json, count, joined, number, span

WORDS: Mapping[str, str] = {
    "shown": "the one-sided interval of the smaller gap excludes 0",
    "likely": "the gap is smaller, and its interval does not exclude 0",
    "none": "nothing is left of a smaller gap once it is corrected for the choice",
}


def evidence_sentence(claim: Json | None) -> str:
    """The word, what it means, and the rows that would settle it; "" without a claim."""
    if claim is None:
        return ""
    word = claim["word"]
    said = f"Evidence of a smaller gap: {word} ({WORDS[word]}, confidence {claim['confidence']:g})."
    rows = [
        f"{count(needed)} of {attribute} = {group}"
        for attribute, groups in (claim.get("rows") or {}).items()
        for group, needed in groups.items()
    ]
    return f"{said} About as many rows that choose would show it: {joined(rows)}." if rows else said


def why_worse(config: Mapping[str, Any]) -> str:
    """What of a group's losses was to be expected, from the run's settings; "" for other methods."""
    if config.get("operating_point") != "kept":
        return ""
    return (
        "As many cases are called positive as before: where one group's positives are found more often, fewer of "
        "another group's are, which --operating-point free lifts. Rankings inside a group may fall as far as asked: "
        f"their mean ROC AUC by {config.get('max_auc_drop'):g}, one group's by {config.get('max_group_auc_drop'):g}, "
        "on the rows that chose."
    )


def calibration_rows(before: Json) -> list[tuple[str, tuple[str, ...]]]:
    """What a short table calls each group's calibration error, and where an audit has it."""
    return [
        (f"Calibration error, {attribute} = {group}", ("by_group", attribute, group, "expected_calibration_error"))
        for attribute, groups in before["by_group"].items()
        for group in groups
    ]


def corrected_gap_sentence(figure: Json) -> str:
    """How far a gap moved, corrected for the choice."""
    word = "fell" if figure["after"] < figure["before"] else "rose"
    return (
        f"Between the groups of {figure['attribute']}, the largest difference in error rates {word} from "
        f"{number(figure['before'])} to {number(figure['after'])}, corrected for the choice "
        f"(90 % interval of the change {span((figure['low'], figure['high']), signed=True)})."
    )


def corrected_section(figures: Sequence[Json], calibration: Sequence[tuple[Cell, ...]]) -> Section:
    """The outcome in one small table whose figures are corrected for the choice, and the rows of `calibration`."""
    rows: list[tuple[Cell, ...]] = []
    for one in figures:
        change = Number(number(one["after"] - one["before"], signed=True), span((one["low"], one["high"]), signed=True))
        name = "Gap (equalized odds difference)" if one["figure"] == HEADLINE else humanise(one["figure"])
        rows.append((f"{name}, {one['attribute']}", number(one["before"]), number(one["after"]), change))
    caption = (
        "Corrected for the choice: how much better a choice looks on the rows that made it was found by choosing again "
        "in resamples of the patients, and is taken off; groups' calibration errors are as measured. Small print: 90 % "
        "interval of the change, the choice included."
    )
    return Section(
        "decision",
        "In short",
        (
            Table(caption, ("Measure", "Before", "After", "Change"), (*rows, *calibration)),
            Paragraph("The pages that follow are of the same rows group by group, and not corrected: no results."),
        ),
    )


def corrected_metrics(figures: Sequence[Json]) -> list[dict[str, Any]]:
    """The same as a model card's metrics."""
    return [
        {
            "type": one["figure"],
            "value": round(one["after"], 6),
            "name": f"{humanise(one['figure'])}, {one['attribute']}, corrected for the choice",
        }
        for one in figures
    ]
