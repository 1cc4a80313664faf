"""An audit or a debiasing as JSON (versioned), Markdown (a model card's evaluation) and one HTML page."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bmft.report.values import OUT_OF_FOLD, DebiasReport, Report, to_json, versions

if TYPE_CHECKING:
    from bmft.report.reports import to_html, to_markdown, write_report
    from bmft.report.tracking import Log, log_to

__all__ = [
    "OUT_OF_FOLD",
    "DebiasReport",
    "Log",
    "Report",
    "log_to",
    "to_html",
    "to_json",
    "to_markdown",
    "versions",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # Pages need matplotlib and Jinja; the values and their JSON do not.
    if name not in __all__:
        raise AttributeError(f"module 'bmft.report' has no attribute {name!r}")
    place = "tracking" if name in ("Log", "log_to") else "reports"
    return getattr(import_module(f"bmft.report.{place}"), name)
