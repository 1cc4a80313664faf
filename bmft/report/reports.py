"""A report as one HTML page and as Markdown, and the three files written from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmft._common import in_words, plain
from bmft.auditing import HEADLINE, AuditReport, changes_in_words, drifts_in_words
from bmft.report import appendix, extras, page, sections
from bmft.report.changes import Changes, paired_changes
from bmft.report.claim import corrected_gap_sentence, corrected_section, evidence_sentence, why_worse
from bmft.report.modelcard import front_matter
from bmft.report.page import Page, Section
from bmft.report.search_page import search_section
from bmft.report.sections import Sides
from bmft.report.values import OUT_OF_FOLD, DebiasReport, Report, to_json, versions
from bmft.report.wording import auc_sentence, caveats, count, gap_sentence, headline


def write_report(report: Report, folder: str | Path, *, date: str | None = None) -> Path:
    """Write ``report.html``, ``report.json`` and ``report.md`` into `folder`; returns the first's path.

    The folder is made if absent. The same report gives the same bytes; a date is in it only if given.
    """
    return page.write_pages(_build(report, date), folder, "report", to_json(report), front=_front_matter(report))


def to_markdown(report: Report, *, date: str | None = None) -> str:
    """The report as Markdown, opened by the metadata block of a Hugging Face model card."""
    return _front_matter(report) + page.markdown(_build(report, date))


def to_html(report: Report, *, date: str | None = None) -> str:
    """The report as one self-contained HTML page: no script, no network."""
    return page.html(_build(report, date))


def _build(report: Report, date: str | None) -> Page:
    if isinstance(report, DebiasReport):
        return _debias_page(report, date or "")
    return _audit_page(report, date or "")


def _audit_page(report: AuditReport, date: str) -> Page:
    sides = Sides(plain(report), names=("Value", ""), predictions=(report.predictions, None))
    lead = (
        *caveats(sides.before),
        *(gap_sentence(name, sides.before, None) for name in sides.before["gaps"]),
        auc_sentence(sides.before, None),
        *in_words(sides.before["assumed"]),
        f"Measured on {count(report.n)} cases.",
    )
    run = {"threshold": report.threshold, "content hash": report.content_hash}
    found = [
        sections.decision_section(sides),
        sections.groups_section(sides),
        sections.curves_section(sides),
        appendix.counts_section(sides.before, sides.before.get("skipped")),
        appendix.assumed_section(sides.before),
        appendix.run_section({"Audit": run, "Versions": versions()}),
        appendix.limits_section(sides.before, evaluated_on=""),
    ]
    return Page(
        headline(sides.before, None, status="audit"), "audit", "Audit of one model", lead, _present(found), date
    )


def _debias_page(report: DebiasReport, date: str) -> Page:
    sides = _sides(report)
    status, words = _status(report)
    corrected = plain(report.corrected)
    found = [
        corrected_section(corrected, sections.calibration_cells(sides))
        if corrected
        else sections.decision_section(sides, why_worse(report.config)),
        sections.groups_section(sides),
        sections.curves_section(sides),
        extras.epochs_section(plain(report.history)),
        *_optional_sections(report),
        appendix.counts_section(sides.before, report.skipped),
        appendix.assumed_section(sides.before),
        appendix.run_section(_facts(report)),
        appendix.limits_section(sides.before, evaluated_on=report.evaluated_on),
    ]
    gaps = {one["attribute"]: one["after"] for one in corrected if one["figure"] == HEADLINE}
    title = headline(sides.before, sides.after, status=status, corrected=gaps)
    return Page(title, status, words, _lead(report, sides), _present(found), date)


def _status(report: DebiasReport) -> tuple[str, str]:
    if not report.accepted:
        return "kept", "Original kept: no candidate met the conditions"
    if any(entry.get("chosen") and entry.get("eligible") is False for entry in plain(report.history)):
        return "asked", "Taken as asked: the new model does not meet the conditions"
    return "accepted", "Accepted: the new model met the conditions"


def _optional_sections(report: DebiasReport) -> Iterator[Section]:
    extra: dict[str, Any] = plain(report.extra)
    if report.mask:
        yield extras.mask_section(plain(report.mask))
    if report.other_outputs:
        yield extras.others_section(report.other_outputs, report.config.get("max_other_drift"))
    if report.extra.get("pixels"):
        yield extras.pixels_section(report.extra["pixels"])
    makers: dict[str, Callable[[Any], Section]] = {
        "evaluations": extras.sites_section,
        "leakage": extras.leakage_section,
        "search": search_section,
    }
    yield from (make(extra[name]) for name, make in makers.items() if extra.get(name))


def _sides(report: DebiasReport) -> Sides:
    """Both audits; only the original's where it was kept and there is nothing else to show."""
    before, after = plain(report.before), plain(report.after)
    if not report.accepted and before == after:
        return Sides(before, names=("Original", ""), predictions=(report.before.predictions, None))
    old, new = report.before.predictions, report.after.predictions
    changes: Changes = {}
    if old is not None and new is not None:
        at, own = report.before.threshold, report.after.threshold
        changes = paired_changes(old, new, at, report.before.level, after_at=own)
    names = ("Before", "After") if report.accepted else ("Original", "Refused")
    return Sides(before, after, names, (old, new), changes)


def _lead(report: DebiasReport, sides: Sides) -> tuple[str, ...]:
    gaps = [corrected_gap_sentence(one) for one in plain(report.corrected) if one["figure"] == HEADLINE]
    plainly = () if gaps else (auc_sentence(sides.before, sides.after),)
    evidence = evidence_sentence(plain(report.claim))
    return (
        f"Why: {report.reason.rstrip('.').replace('->', '→')}.",
        *caveats(sides.after or sides.before),
        " ".join(gaps or [gap_sentence(name, sides.before, sides.after) for name in sides.before["gaps"]]),
        *plainly,
        *(changes_in_words(report.before, report.after) if sides.after and not gaps else ()),
        *in_words(sides.before["assumed"]),
        *others_sentence(report),
        *([evidence] if evidence else []),
        *report.calibrated_in_words,
        f"Measured on {report.kind_in_words} ({_where(report)}, {count(report.before.n)} cases).",
    )


def _where(report: DebiasReport) -> str:
    folds = report.config.get("folds")
    return f"{folds} folds" if report.evaluated_on == OUT_OF_FOLD else f"the {report.evaluated_on} split"


def others_sentence(report: DebiasReport) -> list[str]:
    """How far the other outputs moved, where one of many was debiased."""
    found = drifts_in_words(report.other_outputs, report.config.get("max_other_drift"))
    return [f"{found[0].upper()}{found[1:]}."] if found else []


def _facts(report: DebiasReport) -> dict[str, Mapping[str, Any]]:
    run = {"method": report.method, "threshold": report.before.threshold, "measured on": report.evaluated_on}
    run |= {"folds": report.config["folds"]} if "folds" in report.config else {}
    if report.after.threshold != report.before.threshold:
        run["threshold of the new model"] = report.after.threshold
    return {
        "Run": run,
        "Settings": plain(report.config),
        "Seconds": {name: round(value, 2) for name, value in report.seconds.items()},
        "Versions": report.versions,
        "SHA-256": report.hashes,
    }


def _front_matter(report: Report) -> str:
    """Of the model that came out: the original's figures where it was kept."""
    audit = report if isinstance(report, AuditReport) else report.after if report.accepted else report.before
    config = report.config if isinstance(report, DebiasReport) else {}
    return front_matter(
        plain(audit),
        name=Path(str(config.get("checkpoint") or "model")).stem,
        data=Path(str(config.get("data") or "evaluation data")).stem,
        split=report.evaluated_on if isinstance(report, DebiasReport) else "evaluation",
        debiased=report if isinstance(report, DebiasReport) else None,
    )


def _present(found: Sequence[Section | None]) -> tuple[Section, ...]:
    return tuple(section for section in found if section is not None)
