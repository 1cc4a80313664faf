"""Tables that are no CSV: Excel sheets and JSON lines."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from bmft._common import listed, short, shown
from bmft.errors import DataError, MissingExtraError


def read_excel(path: Path, **options: Any) -> pd.DataFrame:
    """The first Excel sheet as text; ``""`` is missing.

    Raises:
        MissingExtraError: openpyxl is not installed.
        DataError: the file is no Excel sheet.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise MissingExtraError(f"{path}: Excel files need openpyxl: pip install 'bmft[medical]'")
    try:
        table: pd.DataFrame = pd.read_excel(path, dtype=str, keep_default_na=False, engine="openpyxl", **options)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable Excel file: {short(error)}.") from error
    return pd.DataFrame(table.fillna(""))


def read_json_lines(path: Path) -> pd.DataFrame:
    """One JSON object per line as text columns, as Hugging Face's ``metadata.jsonl``; null and absent are ``""``.

    Raises:
        DataError: lines that are no objects, or hold a list or an object, each named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text.") from error
    rows: list[dict[str, str]] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: {short(error, 80)}")
            continue
        if not isinstance(values, dict):
            problems.append(f"line {number}: {shown(values, 40)}")
        elif nested := [key for key, value in values.items() if isinstance(value, list | dict)]:
            problems.append(f"line {number}: {shown(nested[0], 40)} holds several values")
        else:
            # Python's json writes NaN for what is missing in a data frame.
            missing = {key for key, value in values.items() if value is None or value != value}
            rows.append({key: "" if key in missing else str(value) for key, value in values.items()})
    if problems:
        raise DataError(f"{path}: expected one JSON object of single values per line:\n{listed(problems)}")
    return pd.DataFrame(rows, dtype=object).fillna("")
