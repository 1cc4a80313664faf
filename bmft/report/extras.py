"""The optional pages of a report: epochs, the mask, pixels, other sites, leakage."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from bmft._common import humanise
from bmft.auditing import HEADLINE, Drift, charts
from bmft.report import figures
from bmft.report.page import Card, Cards, Cell, Folded, Gallery, Number, Paragraph, Picture, Section, Table
from bmft.report.svg import Caption
from bmft.report.wording import Json, count, interval_of, number, span, value_of

MOST_BARS = 24  # more do not fit a screen
_EPOCH_FIGURES = ("loss", "gap", "roc_auc", "worst_group_roc_auc")


class Explained(Protocol):
    """A picture of one case, as `bmft.inference.explain_cases` gives."""

    @property
    def png(self) -> bytes:
        """Image, attribution before, attribution after."""

    @property
    def text(self) -> str:
        """The case in one sentence."""


def epochs_section(history: Sequence[Json]) -> Section | None:
    """The trade-off of every epoch, the chosen one marked."""
    measured = measured_epochs(history)
    if not measured:
        return None
    chosen = [
        f"Chosen: {_epoch(entry)}, gap {number(entry['gap'])}, ROC AUC {number(entry['roc_auc'])}."
        for entry in measured
        if entry.get("chosen")
    ]
    text = (
        f"{len(measured)} candidates measured on the selection data. Further left is a smaller gap, "
        f"further up a better ranking; hollow marks did not meet the conditions. {' '.join(chosen)}"
    )
    caption = Caption("epochs", "Gap against ROC AUC, every epoch", text)
    chart = partial(figures.tradeoff, epoch_points(measured), caption, x="gap on the selection data", y="ROC AUC")
    table = Folded("Every epoch as a table", (_epoch_table(history),))
    return Section(
        "epochs", "The trade-off of every epoch", (Cards((Card("Gap against ROC AUC", text, chart),)), table)
    )


def measured_epochs(history: Sequence[Json]) -> list[Json]:
    """The entries of a history that have both a gap and an AUC."""
    return [entry for entry in history if entry.get("gap") is not None and entry.get("roc_auc") is not None]


def epoch_points(history: Sequence[Json]) -> list[charts.Point]:
    """Where each measured epoch lies in the plane of gap and AUC."""
    return [
        charts.Point(entry["gap"], entry["roc_auc"], _series(entry), _flag(entry, "eligible"), _flag(entry, "chosen"))
        for entry in measured_epochs(history)
    ]


def _epoch_table(history: Sequence[Json]) -> Table:
    keys = [key for key in _EPOCH_FIGURES if any(key in entry for entry in history)]
    rows = tuple(
        (
            _epoch(entry),
            *(number(entry.get(key), 4) for key in keys),
            "yes" if entry.get("eligible") else "no",
            "chosen" if entry.get("chosen") else "",
        )
        for entry in history
    )
    header = ("Epoch", *map(humanise, keys), "Conditions met", "Chosen")
    return Table("Measured on the selection data after each epoch", header, rows)


def _series(entry: Json) -> str:
    return f"step {entry['step']}" if entry.get("step") else "untouched"


def _epoch(entry: Json) -> str:
    return f"step {entry['step']}, epoch {entry.get('epoch')}" if entry.get("step") else "untouched model"


def _flag(entry: Json, key: str) -> bool:
    return bool(entry.get(key))


def mask_section(mask: Json) -> Section:
    """Where in the network the gap sits, and what of it moved: a picture of its blocks, and every layer as a table."""
    layers: Mapping[str, Json] = mask.get("by_layer") or {}
    selected, total = _sum(layers.values(), "selected"), _sum(layers.values(), "total")
    rows = tuple(
        (
            name,
            count(layer["selected"]),
            count(layer["total"]),
            number(100 * layer["fraction"], 2),
            number(100 * layer["selected"] / selected if selected else None, 2),
        )
        for name, layer in layers.items()
    )
    header = ("Layer", "Selected", "Weights", "% of layer", "% of mask")
    table = Folded("Every layer as a table", (Table("Weights in the mask, layer by layer", header, rows),))
    text = (
        f"{number(100 * mask['density'], 2)} % of the weights may move ({count(selected)} of "
        f"{count(total)} in {len(layers)} layers); every other weight is the original's, bit for bit."
    )
    return Section("mask", "Where the gap sits, and what moved", (Paragraph(text), *_network(mask), table))


_MEANS = (
    "Importance says where a small step changes the gap most, which in many networks is near the input; other "
    "objectives may depend on the same blocks."
)


def _network(mask: Json) -> tuple[Cards, ...]:
    """The picture of the blocks, from input to output; nothing where they are not known."""
    parts = _joined(mask.get("by_block") or {})
    if not parts:
        return ()
    scored = {name: part["importance"] for name, part in parts.items() if part["importance"] is not None}
    most = sorted(scored, key=lambda name: -scored[name])[:3]
    carry = ", ".join(f"{name} ({number(100 * scored[name], 0)} %)" for name in most)
    moved = {name: part["moved"] / max(part["total"], 1) for name, part in parts.items()}
    stay = [name for name, share in moved.items() if not share]
    text = " ".join(
        [
            *([f"Left: what each block carries of the gap's importance, most of it in {carry}."] if most else []),
            "Right: the share of each block's weights that moved.",
            *([_MEANS] if most else []),
            *(["Blocks without a figure on the left were not scored."] if 0 < len(scored) < len(parts) else []),
            "Nothing moved." if len(stay) == len(parts) else f"{len(parts) - len(stay)} of {len(parts)} blocks moved.",
        ]
    )
    caption = Caption("network", "The network's blocks, from input to output", text)
    links = [figures.Link(name, scored.get(name), moved[name]) for name in parts]
    rows = tuple(
        (
            name,
            number(None if name not in scored else 100 * scored[name], 1),
            count(part["selected"]),
            count(part["moved"]),
            count(part["total"]),
        )
        for name, part in parts.items()
    )
    header = ("Block", "% of the gap's importance", "May move", "Moved", "Weights")
    table = Table("Blocks from input to output", header, rows)
    return (Cards((Card("The network, from input to output", text, partial(figures.network, links, caption), table),)),)


def _joined(blocks: Mapping[str, Json]) -> dict[str, Json]:
    """The blocks; of more than fit a screen, neighbours as one."""
    names, at_once = [*blocks], -(-len(blocks) // MOST_BARS) if blocks else 1
    found: dict[str, Json] = {}
    for group in (names[start : start + at_once] for start in range(0, len(names), at_once)):
        of = [blocks[name] for name in group]
        known = [part["importance"] for part in of if part["importance"] is not None]
        name = group[0] if len(group) == 1 else f"{group[0]} to {group[-1].rpartition('.')[2]}"
        counted = {key: _sum(of, key) for key in ("selected", "moved", "total")}
        found[name] = {"importance": sum(known) if known else None, **counted}
    return found


def _sum(parts: Iterable[Json], key: str) -> int:
    return sum(int(part[key]) for part in parts)


def others_section(others: Mapping[str, Mapping[str, Drift]], limit: float | None) -> Section:
    """How far each other output of the network moved on each set."""
    sets = [where for where, found in others.items() if found]
    names = tuple(others[sets[0]]) if sets else ()
    rows: tuple[tuple[Cell, ...], ...] = tuple((name, *(_moved(others[part][name]) for part in sets)) for name in names)
    text = (
        "One output of the network was debiased; its others share the weights below the head. The drift of an output "
        "is the mean absolute change of its probability, taken over the cases in which the original sees it and over "
        f"the rest, whichever is larger; at most {number(limit)} is allowed on the fit and select rows. Small print: "
        "the mean over all cases, and the largest change of any."
    )
    table = Table("Drift of each other output", ("Output", *sets), rows)
    return Section("others", "The other outputs", (Paragraph(text), table))


def _moved(drift: Drift) -> Number:
    return Number(number(drift.drift), f"mean {number(drift.mean)}, largest {number(drift.largest)}")


def pixels_section(cases: Sequence[Explained]) -> Section:
    """The images whose decision changed most in each group, with what each model looked at."""
    text = (
        "The cases of each group whose decision changed and whose score moved most. Left: the image, "
        "stretched to full contrast. Middle: the original model. Right: the new one. Orange pixels raised "
        "the score and blue ones lowered it; both maps share one scale. An attribution shows what a score "
        "reacted to, not why, and a few cases are an illustration, not a measurement."
    )
    pictures = tuple(Picture(case.png, f"Attribution maps. {case.text}", case.text) for case in cases)
    return Section("pixels", "What changed in the pixels", (Paragraph(text), Gallery(pictures)))


def sites_section(evaluations: Mapping[str, Json]) -> Section:
    """The same models on other sites' data."""
    paths = (("overall", "roc_auc"), ("gaps", "", HEADLINE))
    rows: list[tuple[Cell, ...]] = []
    for site, sides in evaluations.items():
        for attribute in sides["before"]["gaps"]:
            found = [
                _figure(sides.get(side), [key or attribute for key in path])
                for path in paths
                for side in ("before", "after")
            ]
            rows.append((site, attribute, count(sides["before"]["n"]), *found))
    header = ("Data", "Attribute", "Cases", "ROC AUC before", "ROC AUC after", "Gap before", "Gap after")
    table = Table("ROC AUC and equalized odds difference on other data", header, tuple(rows), text_columns=2)
    text = (
        "Data that the new model was neither fitted nor selected on. The gap is the larger of the "
        "differences in true and false positive rate."
    )
    return Section("sites", "On other sites' data", (Paragraph(text), table))


def _figure(audit: Json | None, path: Sequence[str]) -> Number:
    if audit is None:
        return Number(number(None))
    return Number(number(value_of(audit, path)), span(interval_of(audit, *path)))


def leakage_section(leakage: Mapping[str, Json]) -> Section:
    """How well a linear probe reads the attribute from the features, before and after."""
    rows = tuple((name, _probed(sides, "before"), _probed(sides, "after")) for name, sides in leakage.items())
    text = (
        "ROC AUC of a linear probe that guesses the attribute from the features just below the head; at "
        "0.5 they do not tell it linearly. A small gap is possible with high leakage, and the other way "
        "round."
    )
    table = Table("The probe's ROC AUC for the attribute", ("Attribute", "Before", "After"), rows)
    return Section("leakage", "Can the attribute be read from the features?", (Paragraph(text), table))


def _probed(sides: Json, side: str) -> Number:
    return Number(number(sides.get(side)), span(sides.get(f"{side}_interval")))
