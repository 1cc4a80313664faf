"""The values that reports are made of, and the three files written from them."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from bmft._files import put
from bmft.auditing import AuditReport
from bmft.report import appendix, extras, page, sections
from bmft.report.changes import Changes, paired_changes
from bmft.report.modelcard import front_matter
from bmft.report.page import Page, Section
from bmft.report.search_page import search_section
from bmft.report.sections import Sides
from bmft.report.wording import auc_sentence, caveats, count, gap_sentence, headline

SCHEMA = 1
_PACKAGES = ("bmft", "torch", "torchvision", "captum", "fairlearn", "numpy", "scikit-learn", "timm", "optuna")


@dataclass(frozen=True)
class DebiasReport:
    """Everything a debiasing has to say for itself.

    Attributes:
        method: its name.
        accepted: whether a candidate met the conditions; otherwise the original was kept.
        reason: why, in one sentence.
        before: the original's audit.
        after: the returned model's audit on the same rows (the original's where it was kept).
        evaluated_on: the split both were measured on: ``"test"`` or ``"select"``.
        config: every setting, as plain values.
        history: one entry per epoch: ``step``, ``epoch``, ``loss``, ``gap``, ``roc_auc``,
            ``worst_group_roc_auc``, ``eligible``, ``chosen``; step 0 is the untouched model.
        mask: ``{"density": .., "by_layer": {layer: {"selected", "total", "fraction"}}}``, or None.
        seconds: how long each part took.
        versions: of the packages, see `versions`.
        hashes: of the checkpoint and of each split.
        skipped: unreadable images that were left out.
        extra: optional pages, each as plain values:

            - ``pixels``: a list of `bmft.pixels.Explanation`
            - ``mask_stability``: ``labels``, ``overlap`` (a matrix), ``expected`` (by chance), ``what`` (was
              varied)
            - ``evaluations``: site -> ``before`` and ``after``, two audits (at the top of the file)
            - ``leakage``: attribute -> ``before``, ``after``, and if known ``before_interval``,
              ``after_interval`` (at the top of the file)
            - ``search``: ``objective``, ``direction``, ``trials`` (``number``, ``value``, ``state`` of each),
              and if known ``pareto`` (``number``, ``gap``, ``roc_auc``, ``chosen`` of each), ``importances``,
              ``mask`` (block -> component -> bool), ``select``, ``test``, ``image_passes`` (at the top of the file)
    """

    method: str
    accepted: bool
    reason: str
    before: AuditReport
    after: AuditReport
    evaluated_on: str
    config: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    mask: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str | None] = field(default_factory=dict)
    skipped: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``report.json``: plain values, None for what could not be measured, no pictures."""
        names = (
            "method",
            "accepted",
            "reason",
            "before",
            "after",
            "evaluated_on",
            "config",
            "history",
            "mask",
            "seconds",
            "versions",
            "hashes",
            "skipped",
        )
        top = {name: _plain(self.extra[name]) for name in ("evaluations", "leakage", "search") if name in self.extra}
        rest = {name: value for name, value in self.extra.items() if name not in top}
        values = {name: _plain(getattr(self, name)) for name in names}
        return {"schema": SCHEMA, **values, "assumed": _plain(self.before.assumed), "extra": _plain(rest), **top}


Report = DebiasReport | AuditReport


def write_report(report: Report, folder: str | Path, *, date: str | None = None) -> Path:
    """Write ``report.html``, ``report.json`` and ``report.md`` into `folder`; returns the first's path.

    The folder is made if absent. The same report gives the same bytes; a date is in it only if given.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    built = _build(report, date)
    texts = {
        "report.json": to_json(report),
        "report.md": _front_matter(report) + page.markdown(built),
        "report.html": page.html(built),
    }
    for name, text in texts.items():
        put(text, folder / name)
    return folder / "report.html"


def to_json(obj: Any) -> str:
    """JSON of a report or of any value with ``to_dict``: numbers are numbers, NaN and infinity are null.

    >>> to_json({"gap": float("nan"), "n": np.int64(3)}).split()
    ['{', '"gap":', 'null,', '"n":', '3', '}']
    """
    return json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(report: Report, *, date: str | None = None) -> str:
    """The report as Markdown, opened by the metadata block of a Hugging Face model card."""
    return _front_matter(report) + page.markdown(_build(report, date))


def to_html(report: Report, *, date: str | None = None) -> str:
    """The report as one self-contained HTML page: no script, no network."""
    return page.html(_build(report, date))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _build(report: Report, date: str | None) -> Page:
    if isinstance(report, DebiasReport):
        return _debias_page(report, date or "")
    return _audit_page(report, date or "")


def _audit_page(report: AuditReport, date: str) -> Page:
    sides = Sides(_plain(report), names=("Value", ""), predictions=(report.predictions, None))
    lead = (
        *caveats(sides.before),
        *(gap_sentence(name, sides.before, None) for name in sides.before["gaps"]),
        auc_sentence(sides.before, None),
        f"Measured on {count(report.n)} cases.",
    )
    run = {"threshold": report.threshold, "content hash": report.content_hash}
    found = [
        sections.decision_section(sides),
        sections.groups_section(sides),
        sections.curves_section(sides),
        appendix.counts_section(sides.before, sides.before.get("skipped")),
        appendix.run_section({"Audit": run, "Versions": versions()}),
        appendix.limits_section(sides.before, evaluated_on=""),
    ]
    return Page(
        headline(sides.before, None, status="audit"), "audit", "Audit of one model", lead, _present(found), date
    )


def _debias_page(report: DebiasReport, date: str) -> Page:
    sides = _sides(report)
    status, words = _status(report)
    found = [
        sections.decision_section(sides),
        sections.groups_section(sides),
        sections.curves_section(sides),
        extras.epochs_section(_plain(report.history)),
        *_optional_sections(report),
        appendix.counts_section(sides.before, report.skipped),
        appendix.run_section(_facts(report)),
        appendix.limits_section(sides.before, evaluated_on=report.evaluated_on),
    ]
    title = headline(sides.before, sides.after, status=status)
    return Page(title, status, words, _lead(report, sides), _present(found), date)


def _status(report: DebiasReport) -> tuple[str, str]:
    if not report.accepted:
        return "kept", "Original kept: no candidate met the conditions"
    if any(entry.get("chosen") and entry.get("eligible") is False for entry in report.history):
        return "asked", "Taken as asked: the new model does not meet the conditions"
    return "accepted", "Accepted: the new model met the conditions"


def _optional_sections(report: DebiasReport) -> Iterator[Section]:
    extra: dict[str, Any] = _plain(report.extra)
    if report.mask:
        yield extras.mask_section(_plain(report.mask))
    if report.extra.get("pixels"):
        yield extras.pixels_section(report.extra["pixels"])
    makers: dict[str, Callable[[Any], Section]] = {
        "mask_stability": extras.stability_section,
        "evaluations": extras.sites_section,
        "leakage": extras.leakage_section,
        "search": search_section,
    }
    yield from (make(extra[name]) for name, make in makers.items() if extra.get(name))


def _sides(report: DebiasReport) -> Sides:
    """Both audits; only the original's where it was kept and there is nothing else to show."""
    before, after = _plain(report.before), _plain(report.after)
    if not report.accepted and before == after:
        return Sides(before, names=("Original", ""), predictions=(report.before.predictions, None))
    old, new = report.before.predictions, report.after.predictions
    changes: Changes = {}
    if old is not None and new is not None:
        changes = paired_changes(old, new, report.before.threshold, report.before.level)
    names = ("Before", "After") if report.accepted else ("Original", "Refused")
    return Sides(before, after, names, (old, new), changes)


def _lead(report: DebiasReport, sides: Sides) -> tuple[str, ...]:
    where = {
        "test": "the test split, which neither the fitting nor the choice of the epoch has seen",
        "select": "the select split, which also chose the epoch: expect somewhat less on new data",
    }.get(report.evaluated_on, report.evaluated_on)
    return (
        f"Why: {report.reason.rstrip('.').replace('->', '→')}.",
        *caveats(sides.after or sides.before),
        " ".join(gap_sentence(name, sides.before, sides.after) for name in sides.before["gaps"]),
        auc_sentence(sides.before, sides.after),
        f"Measured on {where} ({count(report.before.n)} cases).",
    )


def _facts(report: DebiasReport) -> dict[str, Mapping[str, Any]]:
    run = {"method": report.method, "threshold": report.before.threshold, "measured on": report.evaluated_on}
    return {
        "Run": run,
        "Settings": _plain(report.config),
        "Seconds": {name: round(value, 2) for name, value in report.seconds.items()},
        "Versions": report.versions,
        "SHA-256": report.hashes,
    }


def _front_matter(report: Report) -> str:
    """Of the model that came out: the original's figures where it was kept."""
    audit = report if isinstance(report, AuditReport) else report.after if report.accepted else report.before
    config = report.config if isinstance(report, DebiasReport) else {}
    return front_matter(
        _plain(audit),
        name=Path(str(config.get("checkpoint") or "model")).stem,
        data=Path(str(config.get("data") or "evaluation data")).stem,
        split=report.evaluated_on if isinstance(report, DebiasReport) else "evaluation",
    )


def _present(found: Sequence[Section | None]) -> tuple[Section, ...]:
    return tuple(section for section in found if section is not None)


def _plain(value: Any) -> Any:
    """Values JSON has. Pictures (bytes) are left out: the HTML holds them."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if not isinstance(item, bytes)}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
