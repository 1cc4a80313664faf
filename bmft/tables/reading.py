"""A manifest's table (CSV, TSV or Parquet) as text columns, and those columns as labels and groups."""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyarrow import ArrowException

from bmft._common import did_you_mean, short
from bmft.errors import DataError

Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.object_]


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a manifest into a table of text: missing values are ``""``, whole floats lose their ``.0``.

    Raises:
        DataError: no such file, not UTF-8, a duplicate column, a row that does not fit the header, no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give a CSV, TSV, Parquet or npz manifest.")
    suffix = path.suffix.lower()
    if suffix in {".parquet", ".pq"}:
        table = _read_parquet(path)
    elif suffix in {".csv", ".tsv", ".tab", ".txt", ".gz", ""}:
        tabs = path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab"))
        table = _read_csv(path, "\t" if tabs else ",")
    else:
        raise DataError(f"{path}: a manifest ends in .csv, .tsv, .parquet or .npz, not {path.suffix!r}.")
    if table.empty:
        raise DataError(f"{path}: the manifest has no rows.")
    return table


def _read_csv(path: Path, separator: str) -> pd.DataFrame:
    options: dict[str, Any] = {
        "sep": separator,
        "dtype": str,
        "keep_default_na": False,
        "encoding": "utf-8-sig",
        "index_col": False,
        "skipinitialspace": True,
    }
    try:
        with warnings.catch_warnings():
            # pandas drops surplus fields with no more than this warning
            warnings.simplefilter("error", pd.errors.ParserWarning)
            _check_size(path)
            header = pd.read_csv(path, header=None, nrows=1, **options).iloc[0].astype(str).str.strip()
            repeated = header[header.duplicated() & (header != "")]
            if len(repeated):
                raise DataError(f"{path}: column {short(repeated.iloc[0])!r} appears twice; rename one.")
            table = pd.read_csv(path, **options)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save the CSV as UTF-8.") from error
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty; expected a header and one row per image.") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable CSV, or a row does not fit the header: {short(error)}") from error
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    return pd.DataFrame(table.fillna(""))


def _check_size(path: Path) -> None:
    """Refuse a gzip file that unpacks to far more than a table does, before it fills the memory."""
    if path.suffix.lower() != ".gz":
        return
    left = _PACKED * path.stat().st_size + (64 << 20)
    with gzip.open(path) as file:
        while part := file.read(1 << 20):
            left -= len(part)
            if left < 0:
                raise DataError(f"{path}: unpacks to more than {_PACKED} times its size, which no manifest does.")


# Rows that differ in little but a number take about a thirtieth.
_PACKED = 200

# What is in a damaged file reaches pyarrow, and the notes of pandas in it pandas.
_PARQUET = (OSError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, ArrowException)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except _PARQUET as error:
        raise DataError(f"{path}: not a readable Parquet file: {short(error)}.") from error
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise DataError(f"{path}: column {short(repeated[0])!r} appears twice; rename one.")
    columns = {str(name): _as_text(table[name]) for name in table.columns}
    return pd.DataFrame(columns, index=range(len(table)), dtype=object)


def _as_text(values: pd.Series[Any]) -> Texts:
    missing = values.isna().to_numpy()
    text = values.astype(object).map(str).to_numpy(dtype=object, copy=True)
    text[missing] = ""
    return text


def column(table: pd.DataFrame, name: str, *, role: str) -> Texts:
    """One column's text, stripped; whole numbers without ``.0`` and ``nan`` as empty.

    Raises:
        DataError: there is no such column; the message names the nearest one.
    """
    if name not in table.columns:
        hint = did_you_mean(name, map(str, table.columns))
        if len(table.columns) == 1 and ";" in str(table.columns[0]):
            hint = "The header has one column with ';' in it: separate the fields with commas."
        raise DataError(f"the manifest has no {role} column {short(name)!r}. {hint}")
    return np.array([_clean(text) for text in table[name]], dtype=object)


def _clean(value: Any) -> str:
    text = str(value).strip()
    if text.endswith(".0") and text[:-2].lstrip("+-").isdigit():
        return text[:-2]
    return "" if text.lower().lstrip("+-") == "nan" else text


def as_number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None
