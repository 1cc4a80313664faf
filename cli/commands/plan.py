"""`bmft plan`: how many samples a gate needs, or what to expect of debiasing from so many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..console import put, table
from ..options import Command, Decorator, option, talking_options

if TYPE_CHECKING:
    from bmft.gate import DebiasPlan

_OF_A_GATE = ("tolerance", "groups", "power", "alpha", "images_per_patient", "icc")
_OF_A_DEBIASING = ("per_cell", "reduction", "changed")


def _part(name: str, metavar: str, help: str, most: float = 1, **more: Any) -> Decorator:
    """An option for a number between 0 and `most`, neither of them included."""
    kind = click.FloatRange(0, most, min_open=True, max_open=True)
    return option(name, type=kind, metavar=metavar, help=help, **more)


@click.command(cls=Command)
@_part("--tolerance", "D", "The policy's max_difference.")
@_part("--rate", "P", "The rate expected in every group, such as a true positive rate of 0.8.")
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
@option("--debias", is_flag=True, help="Say what to expect of debiasing instead; needs --per-cell.")
@option(
    "--per-cell",
    type=click.IntRange(1),
    metavar="N",
    help="With --debias, rows of the scarcest group and label together, such as positives under 60.",
)
@_part("--reduction", "D", "With --debias, by how much smaller a gap is to be shown.", default=0.05)
@_part("--changed", "P", "With --debias, the share of decisions that differ between the two models.", default=0.1)
@option("--json", metavar="FILE", help="Write the numbers here; - is standard output.")
@talking_options
@click.pass_context
def plan(context: click.Context, rate: float | None, debias: bool, json: str | None, **values: Any) -> None:
    """Say how many samples per group a gate on the largest difference of a rate needs, or what debiasing can do.

    For a gate they are of the kind the rate is taken among: positives for a true positive rate, negatives for a
    false positive rate, all for a selection rate.

    \b
    Example:
      bmft plan --tolerance 0.1 --rate 0.8 --groups 2
      bmft plan --tolerance 0.05 --rate 0.8 --groups 4 --images-per-patient 4 --icc 0.3
      bmft plan --debias --per-cell 60
    """
    from json import dumps

    given = [name for name in values if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if odd := [name for name in given if name in (_OF_A_GATE if debias else _OF_A_DEBIASING)]:
        name = odd[0].replace("_", "-")
        raise click.UsageError(f"--{name} is not read {'with' if debias else 'without'} --debias: leave it out.")
    needed = {"per_cell": values["per_cell"]} if debias else {"tolerance": values["tolerance"], "rate": rate}
    for name, value in needed.items():
        if value is None:
            raise click.UsageError(f"Missing option '--{name.replace('_', '-')}'.")
    if debias:
        from bmft.gate import plan_debias

        found: Any = plan_debias(
            **{name: values[name] for name in _OF_A_DEBIASING}, **({} if rate is None else {"rate": rate})
        )
        text = _of_debiasing(found)
    else:
        from bmft.gate import plan as find

        found = find(rate=rate, **{name: values[name] for name in _OF_A_GATE})
        text = _of_a_gate(found, values["groups"], values["images_per_patient"])
    click.echo(text, err=json == "-")
    if json:
        put(dumps({"schema": 1, **found.to_dict()}, indent=2) + "\n", json)


def _of_a_gate(found: Any, groups: int, images_per_patient: float) -> str:
    rows = [["samples per group", f"{found.per_group:,}"]]
    if images_per_patient > 1:
        rows.append(["patients per group", f"{found.patients_per_group:,}"])
        rows.append(["design effect", f"{found.design_effect:.2f}"])
    return table([*rows, [f"in all {groups} groups", f"{found.total:,}"], ["power", f"{found.power:.1%}"]])


def _of_debiasing(found: DebiasPlan) -> str:
    n = f"{found.per_cell:,}"
    lines = [f"debiasing from {n} rows in the smallest cell of group and label"]
    if found.expected:
        rows = [
            [
                "attribute",
                "gap removed",
                "written",
                "shown",
                "likely",
                "none",
                "larger gap",
                "cells of",
                "trainings",
                "divisions",
            ]
        ]
        for one in found.expected:
            chances = (one.accepted, *(one.words[word] for word in ("shown", "likely", "none")), one.larger)
            between = " and ".join(map(str, dict.fromkeys(one.between)))
            shares = [f"{one.removed:.0%} (sd {one.spread:.0%})", *(f"{chance:.0%}" for chance in chances)]
            rows.append([one.attribute, *shares, between, str(one.trainings), str(one.divisions)])
        lines += [table(rows), f"measured on {found.study}: one checkpoint and one kind of image; sd over divisions"]
    known = {one.attribute for one in found.expected}
    lines += [
        f"{name}: nothing is expected, as only {low:,} to {high:,} rows per cell were measured"
        for name, (low, high) in found.ranges.items()
        if name not in known
    ]
    if not found.ranges:
        lines.append("no curve was measured for this version: nothing is expected")
    return "\n".join(
        [
            *lines,
            f"standard error of the average odds gap of two groups on {n} rows per cell: {found.gap_error:.3f}",
            f"standard error of its change between two models on them: {found.change_error:.3f}",
            f"rows per cell, of those that choose, that would show it smaller by {found.reduction:g}: at least "
            f"{found.rows_to_show:,}",
        ]
    )
