"""Which of a column's splits is for fitting, which for choosing and which for measuring, as people name them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from bmft._common import did_you_mean, short
from bmft.errors import DataError
from bmft.tables.reading import column, read_table

ROLES: Mapping[str, tuple[str, ...]] = {
    "fit": ("fit", "train", "training"),
    "select": ("select", "val", "valid", "validate", "validation", "dev", "development"),
    "test": ("test", "testing"),
}
"""Role -> the names it goes by, in any case; the first is ours and goes before the others."""


def split_names(path: str | Path, split_column: str) -> tuple[str, ...]:
    """The splits that a table's column names, in alphabetical order; none where all of it is empty.

    Raises:
        DataError: the table cannot be read, or has no such column.
    """
    return tuple(sorted(set(column(read_table(path), split_column, role="split")) - {""}))


def splits_by_role(
    names: Collection[str], asked: Mapping[str, Sequence[str]] | None = None
) -> dict[str, tuple[str, ...]]:
    """The splits that are for fitting, choosing and measuring; empty where a column has none of a role's names.

    Args:
        names: what a column names its splits.
        asked: role -> the splits that were asked for, which are taken as they are.

    Raises:
        DataError: a role could be either of two splits.

    >>> splits_by_role(["Train", "valid", "test"])
    {'fit': ('Train',), 'select': ('valid',), 'test': ('test',)}
    >>> splits_by_role(["0", "1"], {"fit": ["0"]})
    {'fit': ('0',), 'select': (), 'test': ()}
    """
    found: dict[str, tuple[str, ...]] = {}
    for role, known in ROLES.items():
        if wanted := tuple((asked or {}).get(role, ())):
            found[role] = wanted
            continue
        alike = sorted(name for name in names if name.strip().lower() in known)
        own = [name for name in alike if name.strip().lower() == role]
        if len(own or alike) > 1:
            raise DataError(
                f"{' and '.join(map(repr, own or alike))} could each be the {role} split: say --{role} NAME, once "
                "for each that is meant."
            )
        found[role] = tuple(own or alike)
    return found


def no_split(role: str, column: str, names: Collection[str]) -> DataError:
    """The error to raise where none of a column's splits is for the role (fitting, choosing or measuring)."""
    there = ", ".join(repr(short(name, 40)) for name in sorted(names)[:12])
    hint = did_you_mean(role, sorted(names), otherwise=f"There are {there}." if names else "It is empty.")
    return DataError(
        f"column {column!r} has no {role} split (named {', '.join(ROLES[role])}). {hint} Say --{role} NAME."
    )
