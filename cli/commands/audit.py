"""`bmft audit`: measure."""

from __future__ import annotations

import click

from ..console import put, settings
from ..distributed import part_company
from ..options import Command, Common, argument, common_options, option
from ..tables import audit_table


@click.command(cls=Command)
@argument("checkpoint")
@option("--json", "json_file", metavar="FILE", help="Write audit.json here; - is standard output.")
@option("--report", metavar="DIR", help="Write report.html, report.json and report.md here.")
@common_options()
def audit(checkpoint: str, common: Common, json_file: str | None, report: str | None) -> None:
    """Measure CHECKPOINT group by group: rates, gaps, counts and intervals.

    With a split column the test split is measured, else every row of the data.

    \b
    Example:
      bmft audit model.pt --data isic.csv --label malignant --sensitive sex --json audit.json
    """
    from bmft.inference import audit as measure
    from bmft.report import to_json, write_report

    from ..job import load_job

    job = load_job(common, checkpoint)
    settings().announce(job.data.assumed)
    measured = measure(job.model, job.data, threshold=job.threshold, seed=common.seed, **job.measuring)
    part_company()
    where = f"{common.test!r} split" if common.split_column else "every row"
    # Standard output belongs to the JSON when it is asked for there.
    click.echo(f"{checkpoint}, {where} of {common.data}: n = {measured.n:,}", err=json_file == "-")
    click.echo(audit_table({"": measured}), err=json_file == "-")
    for flag in measured.flags:
        settings().say(f"warning: {flag}")
    if json_file:
        put(to_json(measured), json_file)
    if report:
        click.echo(write_report(measured, report), err=json_file == "-")
