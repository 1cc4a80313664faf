"""``--eval NAME=CSV``: other sites' data that an outcome is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from .options import Assigned, option
from .tables import audit_table

if TYPE_CHECKING:
    from bmft.auditing import AuditReport

Sites = tuple[tuple[str, str], ...]


def _once(ctx: click.Context, param: click.Parameter, value: Sites) -> Sites:
    names = [name for name, _ in value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.BadParameter(f"{twice[0]!r} is given twice; each site needs its own name.", ctx, param)
    return value


sites_option = option(
    "--eval",
    "sites",
    type=Assigned("NAME=CSV", "clinic=clinic.csv"),
    multiple=True,
    metavar="NAME=CSV",
    callback=_once,
    help="Measure before and after on another site's manifest too: the same options, every row, image paths "
    "relative to that manifest. Repeatable.",
)


def sites_table(audits: Mapping[str, Mapping[str, AuditReport]]) -> str:
    """Before and after on every site."""
    return "\n".join(
        f"\nmeasured on {name} (n = {sides['before'].n:,})\n{audit_table(sides)}" for name, sides in audits.items()
    )
