"""A manifest's table (CSV, TSV or Parquet) as text columns, and those columns as labels and groups."""

from __future__ import annotations

import difflib
import gzip
import itertools
import math
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyarrow import ArrowException

from bmft.errors import ConfigError, DataError, GroupError

Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.object_]
MAX_PLAIN_NUMBERS = 12  # more distinct numbers than this are a measurement to cut, not a list of groups
MAX_COMBINATIONS = 10_000  # of the groups of an intersection, each of which is kept, met or not


@dataclass(frozen=True)
class Attribute:
    """A sensitive attribute and its groups in the order of their ids.

    >>> Attribute("sex", ("female", "male"))
    Attribute(name='sex', groups=('female', 'male'))
    """

    name: str
    groups: tuple[str, ...]


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
        "sep": separator, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "index_col": False,
        "skipinitialspace": True,
    }  # fmt: skip
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
        raise DataError(
            f"{path}: not a readable CSV, or a row does not fit the header: {short(error)}"
        ) from error
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


def one_line(value: object) -> str:
    r"""Text on one line; what a terminal would obey and not show is a replacement character.

    >>> one_line("a\nb\x1b[31mc")
    'a b�[31mc'
    """
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(value)
    )


def short(value: object, limit: int = 120) -> str:
    """Text for a message: one line, cut to `limit` characters."""
    text = " ".join(one_line(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: object, limit: int = 80) -> str:
    """A value as Python writes it, for a message: one line, cut to `limit` characters.

    >>> shown("x" * 100, 12), shown(16**5000)
    ("'xxxxxxxx...", 'an int too large to show')
    """
    try:
        return short(repr(value), limit)
    # Python writes out no integer of thousands of digits, and nothing nested thousands deep.
    except (ValueError, RecursionError):
        kind = type(value).__name__
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} too large to show"


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The nearest option as a sentence, or the options themselves where none is near.

    >>> did_you_mean("Sex", ["age", "sex"])
    "Did you mean 'sex'?"
    >>> did_you_mean("colour", ["age", "sex"])
    "There are 'age', 'sex'."
    """
    known = [str(option) for option in options]
    lowered = {option.lower(): option for option in reversed(known)}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    if near:
        return f"Did you mean {lowered[near[0]]!r}?"
    shown = ", ".join(repr(short(option, 40)) for option in known[:12])
    return f"There are {shown}{', ...' if len(known) > 12 else ''}." if known else "There are none."


def listed(problems: Sequence[str], limit: int = 20) -> str:
    """Up to `limit` problems, one per line, then how many more there are."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


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


def encode_labels(
    table: pd.DataFrame, target: str | Sequence[str], classes: Sequence[str] | None = None
) -> tuple[Ints, tuple[str, ...], str]:
    """Labels as ``(n,)`` class numbers or ``(n, labels)`` 0/1, the class names, and the task. Empty is -1.

    One column of 0/1 is binary; other whole numbers are class numbers from 0; names are numbered in
    alphabetical order, or in the order of `classes`. Several columns are labels of 0/1 each.
    """
    names = (target,) if isinstance(target, str) else tuple(target)
    if len(names) == 1:
        codes, known = _encode_classes(names[0], column(table, names[0], role="label"), classes)
        return codes, known, "binary" if len(known) == 2 else "multiclass"
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"label columns {list(names)!r}: name each of them once.")
    if classes is not None and tuple(classes) != names:
        raise ConfigError("classes: for several label columns their names are the classes; leave it out.")
    columns = [_encode_classes(name, column(table, name, role="label"), ("0", "1"))[0] for name in names]
    return np.stack(columns, axis=1), names, "multilabel"


def _encode_classes(name: str, text: Texts, classes: Sequence[str] | None) -> tuple[Ints, tuple[str, ...]]:
    known = tuple(map(str, classes)) if classes is not None else _class_names(name, text[text != ""])
    if len(set(known)) < max(2, len(known)):
        raise ConfigError(f"classes {known!r}: two or more names are needed, each once.")
    code = {"": -1, **{class_name: index for index, class_name in enumerate(known)}}
    bad = [row for row, value in enumerate(text) if value not in code]
    if bad:
        shown = listed([f"row {row}: {short(text[row], 60)!r}" for row in bad])
        raise DataError(f"label column {name!r} has values other than {', '.join(known[:12])}:\n{shown}")
    return np.array([code[value] for value in text], dtype=np.int64), known


def _class_names(name: str, text: Texts) -> tuple[str, ...]:
    distinct = set(text)
    numbers = {value for value in distinct if _number(value) is not None}
    if not numbers and len(distinct) > 1:
        return tuple(sorted(distinct))
    if not numbers:
        raise DataError(
            f"label column {name!r} holds {'one name only: ' + short(*distinct) if distinct else 'nothing'}. "
            "Labels are 0/1, class numbers from 0, or two or more names (name all classes to allow a part)."
        )
    # No class number has ten digits, and Python turns no text of thousands of them into a number.
    odd = sorted(value for value in distinct if not (value.isascii() and value.isdigit() and len(value) < 10))
    highest = max((int(value) for value in distinct - set(odd)), default=0)
    # a class or two may be missing from a sample, but most being absent means these are no class numbers
    if odd or highest > 4 * len(distinct) + 16 or ("0" not in distinct and distinct != {"1"}):
        raise DataError(
            f"label column {name!r} has {short(', '.join(odd or sorted(distinct)), 80)}: expected 0/1, class "
            "numbers 0, 1, 2, ..., or names for every class. Recode the column, or name its classes."
        )
    return tuple(str(number) for number in range(max(highest, 1) + 1))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def encode_attribute(table: pd.DataFrame, spec: str) -> tuple[Attribute, Ints]:
    """Groups of one attribute: ``"sex"``, ``"age:40,60"`` (half-open cuts) or a product ``"sex*age:60"``.

    Returns the attribute and ``(n,)`` group ids; -1 where the value, or a factor of a product, is empty.

    >>> table = pd.DataFrame({"sex": ["f", "m", ""], "age": ["39.5", "60", "7"]})
    >>> encode_attribute(table, "sex*age:40,60")
    (Attribute(name='sex*age', groups=('f*<40', 'f*40-60', 'f*60+', 'm*<40', 'm*40-60', 'm*60+')),
     array([ 0,  5, -1]))
    """
    factors = [spec] if spec in table.columns else spec.split("*")
    encoded = [_encode_factor(table, factor.strip()) for factor in factors]
    if len(encoded) == 1:
        return encoded[0]
    return product([attribute for attribute, _ in encoded], [ids for _, ids in encoded])


def product(attributes: Sequence[Attribute], ids: Sequence[Ints]) -> tuple[Attribute, Ints]:
    """The intersection of several attributes; every combination is a group, met in the data or not."""
    name = "*".join(attribute.name for attribute in attributes)
    number = math.prod(len(attribute.groups) for attribute in attributes)
    if number > MAX_COMBINATIONS:
        raise GroupError(
            f"attribute {short(name)!r} has {number} combinations of groups, more than {MAX_COMBINATIONS}: cross fewer "
            "attributes, or ones with fewer groups."
        )
    groups = tuple("*".join(names) for names in itertools.product(*(a.groups for a in attributes)))
    codes = np.zeros_like(ids[0])
    for attribute, factor in zip(attributes, ids, strict=True):
        codes = codes * len(attribute.groups) + np.maximum(factor, 0)
    unknown = np.any([factor < 0 for factor in ids], axis=0)
    return Attribute(name, groups), np.where(unknown, -1, codes)


def _encode_factor(table: pd.DataFrame, factor: str) -> tuple[Attribute, Ints]:
    name, _, cuts = (factor, "", "") if factor in table.columns else factor.partition(":")
    text = column(table, name, role="sensitive")
    if cuts:
        return _cut(name, text, _parse_cuts(factor, cuts))
    distinct = set(text) - {""}
    numbers = {value: _number(value) for value in distinct}
    if None not in numbers.values():
        if len(distinct) > MAX_PLAIN_NUMBERS:
            raise GroupError(
                f"attribute {name!r} has {len(distinct)} different numbers; say where to cut it into groups, "
                f"such as {name}:40,60 for <40, 40-60 and 60+."
            )
        groups = tuple(sorted(distinct, key=lambda value: float(value)))
    else:
        groups = tuple(sorted(distinct))
    code = {"": -1, **{group: index for index, group in enumerate(groups)}}
    return Attribute(name, groups), np.array([code[value] for value in text], dtype=np.int64)


def _parse_cuts(factor: str, cuts: str) -> list[float]:
    numbers = [_number(cut) for cut in cuts.split(",")]
    values = [number for number in numbers if number is not None and np.isfinite(number)]
    if len(values) < len(numbers) or any(a >= b for a, b in itertools.pairwise(values)):
        raise ConfigError(f"attribute {short(factor)!r}: cuts are rising numbers, such as age:40,60.")
    return values


def _cut(name: str, text: Texts, cuts: list[float]) -> tuple[Attribute, Ints]:
    numbers = [np.nan if value == "" else _number(value) for value in text]
    bad = [f"row {row}: {short(text[row], 60)!r}" for row, value in enumerate(numbers) if value is None]
    if bad:
        raise DataError(f"attribute {name!r} is cut by numbers but has other values:\n{listed(bad)}")
    values = np.array(numbers, dtype=np.float64)
    edges = [f"{cut:g}" for cut in cuts]
    groups = (f"<{edges[0]}", *(f"{a}-{b}" for a, b in itertools.pairwise(edges)), f"{edges[-1]}+")
    return Attribute(name, groups), np.where(np.isnan(values), -1, np.digitize(values, cuts)).astype(np.int64)
