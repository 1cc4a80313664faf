"""`bmft audit`: measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..console import put, settings
from ..distributed import part_company
from ..options import Command, Common, argument, common_options, option
from ..predictions import audits_of_tables, check_one_source, test_rows
from ..tables import audit_table, warn_of
from ..tracking import log_option, tell

if TYPE_CHECKING:
    from bmft.auditing import AuditReport


@click.command(cls=Command)
@argument("checkpoint", required=False)
@option("--predictions", metavar="FILE", help="Scores to measure instead: y_true, y_score and the attributes.")
@option("--json", "json_file", metavar="FILE", help="Write audit.json here; - is standard output.")
@option("--report", metavar="DIR", help="Write report.html, report.json and report.md here.")
@log_option
@common_options(data_required=False)
def audit(
    checkpoint: str | None, predictions: str | None, common: Common, json_file: str | None, report: str | None
) -> None:
    """Measure CHECKPOINT group by group: rates, gaps, counts and intervals.

    With a split column the test split is measured, else every row of the data. Predictions of any model in any
    framework are measured with --predictions instead: a table with y_true, y_score and the attributes.

    \b
    Example:
      bmft audit model.pt --data isic.csv --label malignant --sensitive sex --json audit.json
      bmft audit --predictions predictions.csv --sensitive sex --report report
    """
    check_one_source(checkpoint, predictions, common)
    if checkpoint is None:
        what, measured = "", audits_of_tables(common, str(predictions), intervals=True)[0]
        splits = test_rows(common, str(predictions)).get("split")
    else:
        what, (measured, splits) = f"{checkpoint}, ", _of_model(checkpoint, common)
    part_company()
    where = f"{', '.join(map(repr, splits))} split" if splits else "every row"
    # Standard output belongs to the JSON when it is asked for there.
    click.echo(f"{what}{where} of {predictions or common.data}: n = {measured.n:,}", err=json_file == "-")
    click.echo(audit_table({"": measured}), err=json_file == "-")
    warn_of(measured)
    tell(measured, config={"checkpoint": checkpoint, "data": predictions or common.data})
    if json_file:
        from bmft.report import to_json

        put(to_json(measured), json_file)
    if report:
        from bmft.report import write_report

        click.echo(write_report(measured, report), err=json_file == "-")


def _of_model(checkpoint: str, common: Common) -> tuple[AuditReport, tuple[str, ...]]:
    from bmft.inference import audit as measure

    from ..job import load_job

    job = load_job(common, checkpoint)
    settings().announce(job.data.assumed)
    report = measure(job.model, job.data, threshold=job.threshold, seed=common.seed, **job.measuring)
    return report, job.splits["test"] if job.splits else ()
