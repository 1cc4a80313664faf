"""``--eval NAME=CSV``: other sites' data that an outcome is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .options import option
from .tables import audit_table

if TYPE_CHECKING:
    from bmft.auditing import AuditReport

Sites = tuple[tuple[str, str], ...]


class Site(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``NAME=CSV``: what a site is called in the reports, and its manifest."""

    name = "NAME=CSV"
    takes_list = True

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name and the manifest's path."""
        if isinstance(value, tuple):
            return value
        name, _, path = (part.strip() for part in str(value).partition("="))
        if not name or not path:
            self.fail(f"{value!r} is not NAME=CSV, such as clinic=clinic.csv.", param, ctx)
        return name, path


def _once(ctx: click.Context, param: click.Parameter, value: Sites) -> Sites:
    names = [name for name, _ in value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.BadParameter(f"{twice[0]!r} is given twice; each site needs its own name.", ctx, param)
    return value


sites_option = option(
    "--eval",
    "sites",
    type=Site(),
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
