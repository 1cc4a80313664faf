"""A manifest's table (CSV, TSV, Parquet, Excel or JSON lines) as text columns."""

from __future__ import annotations

import gzip
import logging
import re
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyarrow import ArrowException

from bmft._common import Assumption, did_you_mean, short
from bmft.errors import DataError
from bmft.tables.sheets import read_excel, read_json_lines

log = logging.getLogger(__name__)
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.object_]


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a manifest into a table of text: missing values are ``""``, whole floats lose their ``.0``.

    Raises:
        DataError: no such file, not UTF-8, a duplicate column, a row that does not fit the header, no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give a CSV, TSV, Parquet, xlsx, jsonl or npz manifest.")
    suffix = path.suffix.lower()
    if suffix in {".parquet", ".pq"}:
        table = _read_parquet(path)
    elif suffix in {".csv", ".tsv", ".tab", ".txt", ".gz", ""}:
        tabs = path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab"))
        table = _read_csv(path, "\t" if tabs else ",")
    elif suffix == ".xlsx":
        table = read_excel(path)
    elif suffix in {".jsonl", ".ndjson"}:
        table = read_json_lines(path)
    else:
        raise DataError(f"{path}: a manifest ends in .csv, .tsv, .parquet, .xlsx, .jsonl or .npz, not {path.suffix!r}.")
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
            header = _header(path, options)
            if separator == "," and len(header) == 1 and ";" in header.iloc[0]:
                options["sep"] = ";"
                header = _header(path, options)
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
    table = pd.DataFrame(table.fillna(""))
    return _with_points(table, path) if options["sep"] == ";" else table


def _header(path: Path, options: dict[str, Any]) -> pd.Series[str]:
    first = pd.read_csv(path, header=None, nrows=1, **options).iloc[0]
    return pd.Series(first.astype(str).str.strip())


def _with_points(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Where semicolons separate the fields, commas are decimal: columns of such numbers get points."""
    for name in table.columns:
        text = table[name].str.strip()
        if text.str.fullmatch(r"([+-]?\d+(,\d+)?)?").all() and text.str.contains(",").any():
            log.warning("%s: column %r has decimal commas, read as points", path, short(name))
            table[name] = text.str.replace(",", ".")
    return table


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
        raise DataError(f"the manifest has no {role} column {short(name)!r}. {hint}")
    values = table[name].to_numpy(dtype=object).tolist()
    clean = {value: cleaned(value) for value in set(values)}
    return np.array([clean[value] for value in values], dtype=object)


def path_column(table: pd.DataFrame, name: str) -> tuple[str, Assumption | None]:
    """The column of image paths: `name`, or the only one with a name in use where that is the usual ``path``.

    Raises:
        DataError: several columns have such a name.

    >>> path_column(pd.DataFrame({"file_name": ["a.png"], "sex": ["f"]}), "path")[0]
    'file_name'
    """
    if name != PATH or name in table.columns:
        return name, None
    found = [str(one) for one in table.columns if str(one).strip().lower() in PATH_NAMES]
    if len(found) > 1:
        raise DataError(f"the image paths could be in {' or '.join(map(repr, found))}: say --path-column NAME.")
    if not found:
        return name, None
    said = Assumption("images", f"paths are in column {found[0]!r}", "its name, the only such one", "--path-column")
    return found[0], said


PATH = "path"
PATH_NAMES = ("file_name", "image", "image_path", "filepath", "filename", "img")
_WHOLE_FLOAT = re.compile(r"([+-]?[0-9]+)\.0+")


def cleaned(value: Any) -> str:
    """A value as `column` has it."""
    text = str(value).strip()
    if whole := _WHOLE_FLOAT.fullmatch(text):
        return whole[1]
    return "" if text.lower().lstrip("+-") == "nan" else text


def as_number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None
