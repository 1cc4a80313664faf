"""An audit or a debiasing as JSON (versioned), Markdown (a model card's evaluation) and one HTML page."""

from bmft.report.reports import DebiasReport, Report, to_html, to_json, to_markdown, versions, write_report

__all__ = ["DebiasReport", "Report", "to_html", "to_json", "to_markdown", "versions", "write_report"]
