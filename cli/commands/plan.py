"""`bmft plan`: how many samples a gate needs."""

from __future__ import annotations

import click

from ..console import put, table
from ..options import Command, option, talking_options

_OPEN = {"min_open": True, "max_open": True}


@click.command(cls=Command)
@option(
    "--tolerance", type=click.FloatRange(0, 1, **_OPEN), required=True, metavar="D", help="The policy's max_difference."
)
@option(
    "--rate",
    type=click.FloatRange(0, 1, **_OPEN),
    required=True,
    metavar="P",
    help="The rate expected in every group, such as a true positive rate of 0.8.",
)
@option("--groups", type=click.IntRange(2), default=2, metavar="N", help="How many groups are compared.")
@option(
    "--power",
    type=click.FloatRange(0, 1, **_OPEN),
    default=0.8,
    metavar="P",
    help="How often the gate is to pass a model without a gap.",
)
@option(
    "--alpha",
    type=click.FloatRange(0, 0.5, **_OPEN),
    default=0.05,
    metavar="A",
    help="How often it may pass one whose gap is the tolerance.",
)
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
    tolerance: float,
    rate: float,
    groups: int,
    power: float,
    alpha: float,
    images_per_patient: float,
    icc: float,
    json: str | None,
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

    found = find(
        tolerance, rate, groups=groups, alpha=alpha, power=power, images_per_patient=images_per_patient, icc=icc
    )
    rows = [["samples per group", f"{found.per_group:,}"]]
    if images_per_patient > 1:
        rows.append(["patients per group", f"{found.patients_per_group:,}"])
        rows.append(["design effect", f"{found.design_effect:.2f}"])
    rows += [[f"in all {groups} groups", f"{found.total:,}"], ["power", f"{found.power:.1%}"]]
    click.echo(table(rows), err=json == "-")
    if json:
        put(dumps({"schema": 1, **found.to_dict()}, indent=2) + "\n", json)
