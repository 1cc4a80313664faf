"""What the readers of official releases share: files found, columns checked, groups coded, one layout out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bmft._common import did_you_mean
from bmft.errors import DataError
from bmft.tables import read_excel as read_excel, read_table

log = logging.getLogger(__name__)
LEADING = ("path", "label")
TRAILING = ("sex", "age", "skin_type", "race", "patient_id", "split")
IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".bmp", ".dcm")


def find(root: Path, *patterns: str, what: str) -> Path:
    """The first file under `root` that a glob pattern meets, patterns tried in order.

    Raises:
        DataError: none does; the message says what an official folder holds.
    """
    found = find_optional(root, *patterns)
    if found is None:
        raise DataError(
            f"{root}: not an official folder of {what}: expected {' or '.join(patterns)}"
            f"{'' if root.is_dir() else ', but there is no such folder'}."
        )
    return found


def find_optional(root: Path, *patterns: str) -> Path | None:
    """As `find`, but None where there is no such file."""
    for pattern in patterns:
        found = sorted(path for path in root.glob(pattern) if path.is_file())
        if found:
            return found[0]
    return None


def released(root: Path, pattern: str, parts: Mapping[str, str], what: str) -> list[tuple[Path, str, str]]:
    """Each part of a challenge that is there: the file of `pattern` with the part's name in it, that name, its split.

    Raises:
        DataError: none is.
    """
    found = [
        (path, part, split)
        for part, split in parts.items()
        for name in [pattern.format(part)]
        if (path := find_optional(root, name, f"*/{name}")) is not None
    ]
    return found or [(find(root, pattern.format(next(iter(parts))), what=what), "", "")]


def read(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A release's table as text; ``""`` is missing.

    Raises:
        DataError: the table cannot be read or lacks one of `columns`.
    """
    return check_columns(read_table(path), path, columns)


def check_columns(table: pd.DataFrame, path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """`table` itself, if it has these columns."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        hint = did_you_mean(missing[0], map(str, table.columns))
        raise DataError(f"{path}: the official file has a column {missing[0]!r}; this one has not. {hint}")
    return table


def floats(table: pd.DataFrame, path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """These columns as numbers.

    Raises:
        DataError: a value is no number; the first such row is named.
    """
    values: pd.DataFrame = table[list(columns)].apply(pd.to_numeric, errors="coerce")
    bad = values.isna()
    if bad.to_numpy().any():
        row, name = bad.any(axis=1).idxmax(), bad.any().idxmax()
        raise DataError(f"{path}: column {name!r} should hold numbers; row {row} does not.")
    return values


def images_under(root: Path, *folders: str) -> dict[str, str]:
    """File name without its ending -> path relative to `root`, for the images in these folders (globs)."""
    files = [file for folder in folders for file in sorted(root.glob(folder))]
    return {file.stem: file.relative_to(root).as_posix() for file in files if file.suffix.lower() in IMAGES}


def looked_up(values: pd.Series[str], known: Mapping[Any, str]) -> pd.Series[str]:
    """What `known` has for each value, else ``""``."""
    return values.map(lambda value: known.get(value, ""))


def coded(values: pd.Series[str], names: Mapping[str, str]) -> pd.Series[str]:
    """Group names for a release's codes, whatever their case; codes that are not in `names` are unknown."""
    return looked_up(values.str.strip().str.lower(), names)


SEX = {"m": "male", "male": "male", "f": "female", "female": "female"}


def numbers(values: pd.Series[str]) -> pd.Series[str]:
    """Whole numbers as text (``55.0`` and ``055Y`` are ``55``), anything else unknown."""
    parsed = pd.to_numeric(values.str.strip().str.rstrip("Yy"), errors="coerce")
    return parsed.map(lambda number: "" if np.isnan(number) else f"{number:g}")


def manifest(root: Path, table: pd.DataFrame, *, what: str, extra: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of a manifest in their usual order; rows whose `path` is empty are left out and counted.

    Raises:
        DataError: no row has an image.
    """
    names = [*LEADING, *extra, *TRAILING]
    present = table["path"] != ""
    if not present.any():
        raise DataError(f"{root}: none of the {len(table)} images of {what} was found beside its tables.")
    if not present.all():
        log.warning("%s: %d of %d images were not found and are left out", what, (~present).sum(), len(table))
    # No official split is an empty one: the same command then works on every set.
    table = table if "split" in table else table.assign(split="")
    result = table.loc[present, [name for name in names if name in table.columns]].reset_index(drop=True)
    result.attrs["left_out"] = int((~present).sum())
    return result
