"""A comparison as one page."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from bmft._common import humanise, in_words
from bmft.auditing import Limits, charts
from bmft.report import figures
from bmft.report.appendix import assumed_section
from bmft.report.page import Bullets, Card, Cards, Cell, Number, Page, Paragraph, Section, Table
from bmft.report.svg import Caption
from bmft.report.wording import Json, count, number, span

_HEADER = {
    "gap": "Gap",
    "equalized_odds_difference": "Larger gap",
    "roc_auc": "ROC AUC",
    "worst_group_roc_auc": "Worst group's ROC AUC",
    "balanced_accuracy": "Balanced accuracy",
}
_KINDS = {
    "original": "",
    "two steps": "some weights, then the head",
    "one step": "every weight at once",
    "head": "the head alone",
    "pruned": "weights set to zero",
    "threshold": "one bias",
    "attribute at inference": "attribute at inference",
    "extra head": "extra head",
}


def comparison_page(comparison: Json) -> Page:
    """The page of what `Comparison.to_dict` gives."""
    lines = _lines(comparison)
    sections = [
        Section("tradeoff", "The trade-off", _tradeoff(lines)),
        Section("methods", "Every method", _tables(comparison, lines)),
    ]
    if comparison["untouched"].get("evaluations"):
        sections.append(Section("sites", "On other sites' data", (_sites_table(lines),)))
    if comparison["untouched"].get("leakage"):
        sections.append(Section("leakage", "Can the attribute be read from the features?", _leakage(lines)))
    sections.append(Section("conditions", "Conditions", _conditions(comparison)))
    if assumed := assumed_section(comparison):
        sections.append(assumed)
    verdict = tuple(comparison["verdict"])
    where = [f"{text[0].upper()}{text[1:]}." for text in [str(comparison["where"])] if text]
    return Page(
        f"Methods compared by {', '.join(comparison['sensitive'])}",
        "audit",
        "One budget for every method",
        (*verdict, *in_words(comparison["assumed"]), *where),
        tuple(sections),
    )


def _lines(comparison: Json) -> list[Json]:
    """The original first, numbered 0; then every method, numbered by its gap."""
    return [line for line in (comparison["untouched"], *comparison["methods"]) if line]


def _tradeoff(lines: Sequence[Json]) -> tuple[Cards, ...]:
    text = (
        "Further left is a smaller gap, further up a better ranking. Numbers are those of the table; 0 is the "
        "untouched model. Bars are 95 % intervals of the mean over seeds, cut off at the frame. The line joins the "
        "methods that no other beats in both. References give decisions, which rank nothing, and are not drawn."
    )
    chart = partial(figures.methods, spots(lines), Caption("tradeoff", "Gap against ROC AUC, every method", text))
    return (Cards((Card("Gap against ROC AUC", text, chart),)),)


def spots(lines: Sequence[Json]) -> list[charts.Spot]:
    """Where each method lies in the plane of gap and ROC AUC, numbered as in the table, where both are known."""
    return [
        charts.Spot(str(place), _estimate(line, "gap"), _estimate(line, "roc_auc"))
        for place, line in enumerate(lines)
        if "roc_auc" in line["figures"]
    ]


def _estimate(line: Json, key: str) -> charts.Estimate:
    return charts.Estimate(_mean(line, key), *(_ends(line, key, "over_seeds") or (np.nan, np.nan)))


def _tables(comparison: Json, lines: Sequence[Json]) -> tuple[Table | Paragraph, ...]:
    rows = tuple(
        (str(place), Number(line["method"], _KINDS[line["kind"]]), *_cells(line)) for place, line in enumerate(lines)
    )
    header = ("No.", "Method", *_HEADER.values())
    intervals = (
        "Mean over seeds, with the 95 % interval over seeds in small print (for the untouched model, the bootstrap "
        "over the rows). The gap is the one that was chosen by; the larger gap is the larger of the "
        "differences in true and false positive rate."
    )
    on_data = tuple(
        (line["method"], *(Number(number(_mean(line, key)), span(_ends(line, key, "on_data"))) for key in _HEADER))
        for line in lines
    )
    changes = tuple(
        (line["method"], *(_change(line, key) for key in ("gap", "roc_auc", "balanced_accuracy")))
        for line in lines
        if "change" in line
    )
    found: list[Table | Paragraph] = [
        Table("Figures after, the smallest gap first", header, rows, text_columns=2),
        Paragraph(intervals),
        Table(
            "What it costs",
            ("Method", "Seeds accepted", "Seeds with harm", "Weights moved", "Image-passes", "Seconds", "Trials"),
            tuple(map(_cost, [line for line in lines if "seeds" in line])),
        ),
        Paragraph(
            "Image-passes and seconds are of one trial; an image-pass is one image going through the whole network "
            "once, with or without a backward pass. Harm is counted on the rows that the figures are measured on."
        ),
        Table(
            "The same with 95 % intervals over the rows (patients resampled; mean of the seeds)",
            ("Method", *_HEADER.values()),
            on_data,
        ),
        Table(
            "Change from the untouched model, both resampled alike",
            ("Method", "Gap", "ROC AUC", "Balanced accuracy"),
            changes,
        ),
    ]
    if comparison["not_run"]:
        rows = tuple(comparison["not_run"].items())
        found.append(Table("Not run", ("Method", "Why"), rows, text_columns=2))
    return tuple(found)


def _cells(line: Json) -> list[Cell]:
    which = "on_data" if line["kind"] == "original" else "over_seeds"
    return [Number(number(_mean(line, key)), span(_ends(line, key, which))) for key in _HEADER]


def _change(line: Json, key: str) -> Number:
    figure = line["change"].get(key, {})
    return Number(number(figure.get("mean"), signed=True), span(figure.get("on_data"), signed=True))


def _cost(line: Json) -> tuple[Cell, ...]:
    return (
        line["method"],
        f"{line['accepted']} of {line['seeds']}",
        f"{line['harmful']} of {line['seeds']}",
        f"{100 * line['moved']:.2f} %",
        count(line["image_passes"]),
        f"{line['seconds']:.1f}",
        str(line["trials"]),
    )


def _sites_table(lines: Sequence[Json]) -> Table:
    rows = tuple(
        (
            site,
            line["method"],
            *(Number(number(figures[key]["mean"]), span(figures[key]["on_data"])) for key in _HEADER),
        )
        for site in lines[0]["evaluations"]
        for line in lines
        if (figures := line["evaluations"].get(site))
    )
    return Table(
        "Mean over seeds, with 95 % intervals over the rows",
        ("Data", "Method", *_HEADER.values()),
        rows,
        text_columns=2,
    )


def _leakage(lines: Sequence[Json]) -> tuple[Paragraph, Table]:
    names = list(lines[0]["leakage"])
    rows = tuple(
        (line["method"], *(number(line["leakage"][name]) for name in names)) for line in lines if line["leakage"]
    )
    text = "ROC AUC of a linear probe that guesses the attribute from the features just below the head; 0.5 is chance."
    return Paragraph(text), Table("The probe's ROC AUC, mean over seeds", ("Method", *names), rows)


def _conditions(comparison: Json) -> tuple[Bullets | Table, ...]:
    budget, limits = comparison["budget"], Limits(**comparison["limits"])
    said = (
        f"Epochs of the two-step methods: {budget['epochs'][0]} for the extractor, {budget['epochs'][1]} for the head. "
        "Methods that train every weight at once get as many passes over the fit images in one step.",
        f"Tuning: {budget['tuning']} learning rates per method and seed, chosen on select; methods without training "
        "offer their own candidates to select.",
        f"Seeds: {budget['seeds']}. An epoch was eligible if it did no harm on select: {limits}.",
        "References marked “attribute at inference” must be told the group of every new case, those marked “extra "
        "head” guess it with a second head; a debiased checkpoint needs neither.",
    )
    rows = tuple((humanise(name), text) for name, text in comparison["versions"].items())
    return Bullets(said), Table("Versions", ("Package", "Version"), rows, text_columns=2)


def _mean(line: Json, key: str) -> float:
    value = line["figures"].get(key, {}).get("mean")
    return float("nan") if value is None else float(value)


def _ends(line: Mapping[str, Any], key: str, which: str) -> Any:
    return line["figures"].get(key, {}).get(which)
