"""`bmft plan`: how many samples a gate needs."""

from __future__ import annotations

from typing import Any

import click

from ..console import put, table
from ..options import Command, Decorator, option, talking_options


def _part(name: str, metavar: str, help: str, most: float = 1, **more: Any) -> Decorator:
    """An option for a number between 0 and `most`, neither of them included."""
    kind = click.FloatRange(0, most, min_open=True, max_open=True)
    return option(name, type=kind, metavar=metavar, help=help, **more)


@click.command(cls=Command)
@_part("--tolerance", "D", "The policy's max_difference.", required=True)
@_part("--rate", "P", "The rate expected in every group, such as a true positive rate of 0.8.", required=True)
@option("--groups", type=click.IntRange(2), default=2, metavar="N", help="How many groups are compared.")
@_part("--power", "P", "How often the gate is to pass a model without a gap.", default=0.8)
@_part("--alpha", "A", "How often it may pass one whose gap is the tolerance.", 0.5, default=0.05)
@option(
    "--images-per-patient",
    type=click.FloatRange(1),
    default=1.0,
    metavar="M",
    help="Mean number of images of one patient.",
)
@option(
    "--icc",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="R",
    help="How alike the answers to one patient's images are: 0 not at all, 1 all the same.",
)
@option("--json", metavar="FILE", help="Write the numbers here; - is standard output.")
@talking_options
def plan(
    tolerance: float, rate: float, groups: int, images_per_patient: float, json: str | None, **more: float
) -> None:
    """Say how many samples per group a gate on the largest difference of a rate needs.

    They are of the kind the rate is taken among: positives for a true positive rate, negatives for a false
    positive rate, all for a selection rate.

    \b
    Example:
      bmft plan --tolerance 0.1 --rate 0.8 --groups 2
      bmft plan --tolerance 0.05 --rate 0.8 --groups 4 --images-per-patient 4 --icc 0.3
    """
    from json import dumps

    from bmft.gate import plan as find

    found = find(tolerance, rate, groups=groups, images_per_patient=images_per_patient, **more)
    rows = [["samples per group", f"{found.per_group:,}"]]
    if images_per_patient > 1:
        rows.append(["patients per group", f"{found.patients_per_group:,}"])
        rows.append(["design effect", f"{found.design_effect:.2f}"])
    rows += [[f"in all {groups} groups", f"{found.total:,}"], ["power", f"{found.power:.1%}"]]
    click.echo(table(rows), err=json == "-")
    if json:
        put(dumps({"schema": 1, **found.to_dict()}, indent=2) + "\n", json)
