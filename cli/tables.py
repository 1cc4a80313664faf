"""Audits as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bmft._common import SHOWN, in_words, with_interval

from .console import settings, table

if TYPE_CHECKING:
    from bmft.auditing import AuditReport

_ODDS = "equalized_odds_difference"


def audit_table(reports: Mapping[str, AuditReport]) -> str:
    """Per attribute every group's size, AUC, TPR and FPR with intervals, then the gaps.

    `reports` are audits of the same rows by name (``before``, ``after``), shown under each other; the name
    of a single one is not shown.
    """
    first = next(iter(reports.values()))
    parts = [_attribute(reports, attribute) for attribute in first.by_group]
    return "\n".join(["\n\n".join(parts), *in_words(first.assumed)])


def calibration_table(reports: Mapping[str, AuditReport]) -> str:
    """Each group's calibration error in audits of the same rows, side by side."""
    name, first = "expected_calibration_error", next(iter(reports.values()))
    rows = [["calibration error", *reports]]
    for attribute, groups in first.by_group.items():
        for group in groups:
            cells = [with_interval(*report.figure("by_group", attribute, group, name)) for report in reports.values()]
            rows.append([f"{attribute} = {group}", *cells])
    return table(rows)


def warn_of(report: AuditReport, whose: str = "", *, swapped: bool = True) -> None:
    """Say what makes the figures mean little, and what helps."""
    from bmft.auditing import CONSTANT, SWAPPED, TURN

    threshold = f" at threshold {report.threshold:g}: another one (--threshold, --threshold-from select) may tell more"
    for flag in report.flags:
        help = threshold if flag == CONSTANT else f": {TURN}" if flag.startswith(SWAPPED) else ""
        if swapped or not flag.startswith(SWAPPED):
            settings().say(f"warning: {whose}{flag}{help}")


def _attribute(reports: Mapping[str, AuditReport], attribute: str) -> str:
    named = len(reports) > 1
    rows = [[attribute, "", "n", "positive", *SHOWN.values()]]
    for group in next(iter(reports.values())).by_group[attribute]:
        rows += _block(group, reports, lambda report, g=group: _group(report, attribute, g), counts=True)
    rows += _block("gap", reports, lambda report: _gaps(report, attribute), counts=False)
    kept = [row if named else [row[0], *row[2:]] for row in rows]
    odds = ", ".join(f"{name} {_odds(report, attribute)}".strip() for name, report in _named(reports))
    unknown = next(iter(reports.values())).unknown[attribute]
    left_out = f"\n{unknown:,} of unknown {attribute} are in no group" if unknown else ""
    return f"{table(kept, left=2 if named else 1)}\nequalized odds difference: {odds}{left_out}"


def _named(reports: Mapping[str, AuditReport]) -> Sequence[tuple[str, AuditReport]]:
    return list(reports.items()) if len(reports) > 1 else [("", report) for report in reports.values()]


def _block(title: str, reports: Mapping[str, AuditReport], cells: Any, *, counts: bool) -> list[list[str]]:
    lines = []
    for place, (name, report) in enumerate(reports.items()):
        values = cells(report)
        # The rows are the same, so their counts are written once.
        size = values[:2] if place == 0 and counts else ["", ""]
        lines.append([title if place == 0 else "", name, *size, *values[2:]])
    return lines


def _group(report: AuditReport, attribute: str, group: str) -> list[str]:
    figures, intervals = report.by_group[attribute][group], report.intervals["by_group"][attribute][group]
    rates = [with_interval(figures[name], intervals.get(name)) for name in SHOWN]
    return [f"{figures['n']:,}", f"{figures['n_positive']:,}", *rates]


def _gaps(report: AuditReport, attribute: str) -> list[str]:
    gaps, intervals = report.gaps[attribute], report.intervals["gaps"][attribute]
    names = [f"{name}_difference" for name in SHOWN]
    return ["", "", *(with_interval(gaps[name], intervals.get(name)) for name in names)]


def _odds(report: AuditReport, attribute: str) -> str:
    return with_interval(report.gaps[attribute][_ODDS], report.intervals["gaps"][attribute].get(_ODDS))
