"""`bmft gate`: decide."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import put, settings
from .options import Command, Common, common_options, load_job, option

if TYPE_CHECKING:
    from bmft.audit import AuditReport
    from bmft.gate import Policy, Verdict

    from .job import Job


@click.command(cls=Command)
@click.argument("checkpoint", required=False)
@option("--policy", "policy_file", default="fairness.toml", metavar="TOML", help="What has to be shown.")
@option("--baseline", metavar="CHECKPOINT", help="The model that this one may not be worse than.")
@option("--predictions", metavar="CSV",
        help="Gate these instead of a checkpoint: y_true, y_score and the attributes.")
@option("--baseline-predictions", metavar="CSV", help="The baseline's, row for row.")
@option("--patch", metavar="FILE", help="What CHECKPOINT was debiased by. [default: its .patch.safetensors]")
@option("--json", "json_file", metavar="FILE", help="Write gate.json here; - is standard output.")
@option("--junit", metavar="FILE", help="Write JUnit XML here.")
@option("--summary", metavar="FILE", help="Write Markdown here; to $GITHUB_STEP_SUMMARY it is appended.")
@option("--init", is_flag=True, help="Measure, and write a commented policy to start from to --policy.")
@common_options(sensitive_required=False, data_required=False)
def gate(
    checkpoint: str | None,
    common: Common,
    policy_file: str,
    baseline: str | None,
    predictions: str | None,
    baseline_predictions: str | None,
    patch: str | None,
    json_file: str | None,
    junit: str | None,
    summary: str | None,
    init: bool,
) -> None:  # fmt: skip
    """Decide by a policy whether CHECKPOINT passes: exit 0 pass, 1 fail, 3 the data cannot tell.

    The policy names the attributes. With a split column the test split is judged, else every row.

    \b
    Example:
      bmft gate model.pt --data isic.csv --label malignant --sensitive sex --init
      bmft gate model.pt --data isic.csv --label malignant --policy fairness.toml --junit gate.xml
      bmft gate --predictions predictions.csv --policy fairness.toml
    """
