"""`bmft prepare`: a public dataset's official folder becomes a manifest."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from ..console import settings
from ..options import Command, argument, option, talking_options


def _list(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from bmft.datasets import DATASETS

        for name in DATASETS:
            click.echo(name)
        ctx.exit()


def _names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from bmft.datasets import DATASETS

    return [name for name in DATASETS if name.startswith(incomplete.lower())]


@click.command(cls=Command)
@click.argument("dataset", shell_complete=_names)
@argument("root", required=False)
@option("--out", metavar="FILE", help="The manifest. [default: DATASET.csv in the current folder]")
@option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="Name the datasets.")
@talking_options
def prepare(dataset: str, root: str | None, out: str | None) -> None:
    """Turn the official folder ROOT of a public DATASET into a manifest: label, groups, patients, splits.

    Without ROOT it says which files are expected and how labels and groups are coded. Nothing is downloaded.

    \b
    Example:
      bmft prepare ham10000 --out ham10000.csv HAM10000/
      bmft prepare --list
    """
    from bmft.datasets import DATASETS, canonical, write_manifest

    if root is None:
        click.echo((import_module(DATASETS[canonical(dataset)]).__doc__ or "").strip())
        return
    table = Path(out) if out else Path(f"{canonical(dataset)}.csv")
    manifest = write_manifest(dataset, root, table)
    click.echo(_contents(table))
    folder = "" if manifest.suffix == ".npz" else f" --images {root}"
    settings().say(f"next: bmft debias CHECKPOINT --data {manifest}{folder} --label label{_options(table)}")
    click.echo(manifest)


def _options(path: Path) -> str:
    """The options that name what the manifest has: an attribute, the patients, the splits."""
    from bmft.tables import read_table

    table = read_table(path)
    known = [name for name in table.columns if (table[name] != "").any()]
    grouped = [name for name in ("sex", "skin_type", "race") if name in known and len(set(table[name]) - {""}) > 1]
    attribute = [*grouped, *(["age:60"] if "age" in known else []), "COLUMN"][0]
    rest = {"patient_id": "--cluster patient_id", "split": "--split-column split"}
    return " ".join([f" --sensitive {attribute}", *(option for name, option in rest.items() if name in known)])


def _contents(path: Path) -> str:
    """Every column's values with their counts; of many values only how many there are."""
    from bmft.tables import read_table

    table = read_table(path)
    rows = [["column", "values"]]
    for name in table.columns:
        counts = table[name].value_counts().sort_index()
        few = ", ".join(f"{value or 'unknown'} {count:,}" for value, count in counts.items())
        rows.append([str(name), few if len(counts) <= 12 else f"{len(counts):,} different"])
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"{len(table):,} rows", *(f"{name.ljust(width)}  {values}" for name, values in rows)])
