"""`bmft prepare`: a public dataset's official folder, or a form that many sets come in, becomes a manifest."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click

from ..console import settings, table
from ..options import Command, argument, option, talking_options


def _list(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from bmft.datasets import DATASETS, FORMS

        for name in (*DATASETS, *FORMS):
            click.echo(name)
        ctx.exit()


def _names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from bmft.datasets import DATASETS, FORMS

    return [name for name in (*DATASETS, *FORMS) if name.startswith(incomplete.lower())]


@click.command(cls=Command)
@click.argument("dataset", shell_complete=_names)
@argument("root", required=False)
@option("--out", metavar="FILE", help="The manifest. [default: DATASET.csv in the current folder]")
@option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="Name the datasets.")
@option("--demographics", metavar="FILE", help="Table with sex, age, patients, ... to join to the images of a form.")
@option("--by", metavar="COL", help="Its column that names the images. [default: the one that matches most]")
@talking_options
def prepare(dataset: str, root: str | None, out: str | None, demographics: str | None, by: str | None) -> None:
    """Turn the official folder ROOT of a public DATASET into a manifest: label, groups, patients, splits.

    DATASET may also be a form that many sets come in: folder (one folder per class), medmnist (an npz), huggingface
    (save_to_disk or Parquet), dicom or webdataset (tars). Without ROOT it says which files are expected and how labels
    and groups are coded. Nothing is downloaded.

    \b
    Example:
      bmft prepare ham10000 --out ham10000.csv HAM10000/
      bmft prepare folder images/ --demographics people.csv
      bmft prepare --list
    """
    from bmft.datasets import DATASETS, FORMS, canonical, write_manifest

    if root is None:
        click.echo((import_module({**DATASETS, **FORMS}[canonical(dataset)]).__doc__ or "").strip())
        return
    if by and not demographics:
        raise click.UsageError("--by names a column of --demographics FILE: give both.")
    path = Path(out) if out else Path(f"{canonical(dataset)}.csv")
    manifest = write_manifest(dataset, root, path, demographics=demographics, by=by)
    click.echo(_contents(path))
    settings().say(f"next: bmft debias CHECKPOINT --data {manifest}{_options(path, root)}")
    click.echo(manifest)


def _options(path: Path, root: str) -> str:
    """The options that name what the manifest has: where the images are, labels, an attribute, patients, splits."""
    from bmft.tables import read_table

    rows = read_table(path)
    known = [name for name in rows.columns if (rows[name] != "").any()]
    grouped = [name for name in ("sex", "skin_type", "race") if name in known and len(set(rows[name]) - {""}) > 1]
    attribute = [*grouped, *(["age:60"] if "age" in known else []), "COLUMN"][0]
    rest = {"patient_id": "--cluster patient_id", "split": "--split-column split"}
    labels = [name for name in known if re.fullmatch(r"label\d*", str(name))] or ["COLUMN"]
    beside = "path" not in rows or (path.parent / rows["path"].iloc[0]).is_file()
    images = "" if beside else f" --images {root}"
    named = f"{images} {' '.join(f'--label {name}' for name in labels)} --sensitive {attribute}"
    return " ".join([named, *(option for name, option in rest.items() if name in known)])


def _contents(path: Path) -> str:
    """Every column's values with their counts; of many values only how many there are."""
    from bmft.tables import read_table

    found = read_table(path)
    rows = [["column", "values"]]
    for name in found.columns:
        counts = found[name].value_counts().sort_index()
        few = ", ".join(f"{value or 'unknown'} {count:,}" for value, count in counts.items())
        rows.append([str(name), few if len(counts) <= 12 else f"{len(counts):,} different"])
    return f"{len(found):,} rows\n{table(rows, left=2)}"
