"""Columns of a table that a network takes beside the image: how each is given to it, as numbers or as integers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bmft._common import Assumption, listed, short
from bmft.errors import ConfigError, DataError
from bmft.tables.attributes import Attribute
from bmft.tables.reading import Ints, Texts, as_number, cleaned, column
from bmft.tables.unknown import BLANK, BY_DEFAULT, Unknown, counted, plain_code

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SCALE = re.compile(rf"\s*({_NUMBER})\s*/\s*({_NUMBER})\s*")
_CODED = re.compile(rf"(.*\S)\s*:\s*({_NUMBER})")
_FORMS = "MEAN/STD of numbers (62.5/14.2; 0/1 as they are), names in order (head,trunk,limb), or name:number pairs"
# Far from what a network is trained on: a standardised number has mean 0 and deviation 1.
_FAR, _NARROW, _WIDE = 3.0, 0.2, 5.0
_LARGEST = float(np.finfo(np.float32).max)
_MAYBE_CODES = ("-1", "999", "9999")


@dataclass(frozen=True)
class InputColumn:
    """A column that a network takes beside the image.

    Attributes:
        name: the column.
        mean, std: a number x is given to the network as (x - mean) / std.
        names: the values of a column of text, in the order of the integers that stand for them, from 0.
        codes: a number for each of the `names`, where they are given as numbers and not as integers.

    >>> str(InputColumn("age", 62.5, 14.2)), str(InputColumn("site", names=("head", "limb")))
    ('age=62.5/14.2', 'site=head,limb')
    """

    name: str
    mean: float = 0.0
    std: float = 1.0
    names: tuple[str, ...] = ()
    codes: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ConfigError(f"input {self.name!r}: {self.mean:g}/{self.std:g} is no mean and deviation above 0.")
        if self.names and (len(self.names) < 2 or len(set(self.names)) < len(self.names) or "" in self.names):
            raise ConfigError(
                f"input {self.name!r}: {short(','.join(self.names))!r} is not two or more names, each once."
            )
        if self.codes and len(self.codes) != len(self.names):
            raise ConfigError(f"input {self.name!r}: {len(self.codes)} numbers for {len(self.names)} names.")

    @property
    def is_category(self) -> bool:
        """Whether the network is given integers."""
        return bool(self.names) and not self.codes

    def __str__(self) -> str:
        """As ``--input`` has it."""
        if not self.names:
            return f"{self.name}={self.mean!r}/{self.std!r}"
        codes = [f":{code!r}" for code in self.codes] or [""] * len(self.names)
        return f"{self.name}={','.join(map(str.__add__, self.names, codes))}"

    @classmethod
    def parse(cls, text: str) -> InputColumn | str:
        """What ``--input`` says of a column; its name alone where nothing says how it is given.

        Raises:
            ConfigError: it is none of the forms.

        >>> InputColumn.parse("age = 62.5/14.2")
        InputColumn(name='age', mean=62.5, std=14.2, names=(), codes=())
        >>> InputColumn.parse("sex=female:0,male:1").codes, InputColumn.parse("age")
        ((0.0, 1.0), 'age')
        """
        name, said, how = (part.strip() for part in text.partition("="))
        if not name or (said and not how):
            raise ConfigError(f"--input {short(text)!r}: expected COLUMN, or COLUMN= and {_FORMS}.")
        if not said:
            return name
        if scale := _SCALE.fullmatch(how):
            return cls(name, float(scale[1]), float(scale[2]))
        parts = [part.strip() for part in how.split(",")]
        coded = [_CODED.fullmatch(part) for part in parts]
        if len(parts) < 2 or (any(coded) and not all(coded)):
            raise ConfigError(f"--input {name}={short(how)}: expected {_FORMS}.")
        if all(coded):
            pairs = [(one[1], float(one[2])) for one in coded if one]
            return cls(name, names=tuple(value for value, _ in pairs), codes=tuple(code for _, code in pairs))
        return cls(name, names=tuple(parts))


def input_columns(
    asked: Sequence[str | InputColumn], recorded: Sequence[InputColumn] = ()
) -> tuple[InputColumn | str, ...]:
    """The columns that are asked for, in order, each as it says itself, else as `recorded`; without any, all of those.

    Raises:
        ConfigError: one is none of the forms, or named twice.
    """
    known = {one.name: one for one in recorded}
    parsed = [InputColumn.parse(one) if isinstance(one, str) else one for one in asked]
    found = tuple(known.get(one, one) if isinstance(one, str) else one for one in parsed) or tuple(recorded)
    names = [_name(one) for one in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"--input names a column twice: {', '.join(names)}.")
    return found


def said_columns(asked: Sequence[str | InputColumn], recorded: Sequence[InputColumn] = ()) -> tuple[InputColumn, ...]:
    """The columns of `encode_inputs` where no table is at hand that shows what a column holds.

    Raises:
        ConfigError: nothing says how one is given to the network.
    """
    found = input_columns(asked, recorded)
    if unsaid := [one for one in found if isinstance(one, str)]:
        raise ConfigError(f"--input {unsaid[0]}: nothing says how the network is given it: add = and {_FORMS}.")
    return tuple(one for one in found if isinstance(one, InputColumn))


class Encoded(NamedTuple):
    """The columns as a network takes them, for every row of the table, and what is said of them."""

    columns: tuple[InputColumn, ...]
    arrays: tuple[npt.NDArray[np.float32] | Ints, ...]
    assumed: tuple[Assumption, ...]


def encode_inputs(
    table: pd.DataFrame,
    asked: Sequence[InputColumn | str],
    rows: Ints,
    *,
    attributes: Iterable[Attribute] = (),
    unknown: Unknown = BY_DEFAULT,
    source: str = "--input",
) -> Encoded:
    """The columns of a table as the inputs of a network: all numbers together, and every category by itself.

    The numbers are one float32 array ``(n, k)``, in the order in which they are named, and stand where the first of
    them is named; each category is an int64 array ``(n,)``. `rows` are those that are used, and must be complete.

    Raises:
        ConfigError: nothing says how a column is given to the network; the message shows what the rows hold.
        DataError: there is no such column, or rows without a value, or with an unknown one, each named.

    >>> table = pd.DataFrame({"age": ["50", "70"], "site": ["limb", "head"]})
    >>> asked = [InputColumn("age", 60, 10), InputColumn("site", names=("head", "limb"))]
    >>> encode_inputs(table, asked, np.arange(2)).arrays
    (array([[-1.],
           [ 1.]], dtype=float32), array([1, 0]))
    """
    texts = {_name(one): column(table, _name(one), role="input") for one in asked}
    if unsaid := [_ask(one, texts[one][rows]) for one in asked if isinstance(one, str)]:
        raise ConfigError(f"nothing says how the network was given {'; '.join(unsaid)}")
    columns = tuple(one for one in asked if isinstance(one, InputColumn))
    values = {one.name: _encoded(table, one, texts[one.name], rows, unknown) for one in columns}
    numbers = [one.name for one in columns if not one.is_category]
    arrays: list[npt.NDArray[np.float32] | Ints] = []
    for one in columns:
        if one.is_category:
            arrays.append(values[one.name].astype(np.int64))
        elif one.name == numbers[0]:
            arrays.append(np.stack([values[name] for name in numbers], 1).astype(np.float32))
    factors = {factor for attribute in attributes for factor in attribute.name.split("*")}
    said = [Assumption("inputs", inputs_in_words(columns), source, "--input")] if columns else []
    for one in columns:
        said += _remarks(one, texts[one.name][rows], values[one.name][rows], one.name in factors)
    return Encoded(columns, tuple(arrays), tuple(said))


def inputs_in_words(columns: Sequence[InputColumn]) -> str:
    """What a network is given beside the image, in order.

    >>> inputs_in_words([InputColumn("age", 62.5, 14.2), InputColumn("site", names=("head", "limb"))])
    'the image, numbers (n, 1): age=62.5/14.2, integers (n,): site=head,limb'
    """
    numbers = [one for one in columns if not one.is_category]
    parts = ["the image"]
    for one in columns:
        if one.is_category:
            parts.append(f"integers (n,): {one}")
        elif one is numbers[0]:
            parts.append(f"numbers (n, {len(numbers)}): {'; '.join(map(str, numbers))}")
    return ", ".join(parts)


def _name(one: InputColumn | str) -> str:
    return one if isinstance(one, str) else one.name


def _ask(name: str, text: Texts) -> str:
    """What is to be said of a column, with what it holds."""
    distinct = sorted(set(text) - {""})
    numbers = [as_number(value) for value in text if value != ""]
    found = np.array([number for number in numbers if number is not None and math.isfinite(number)])
    if len(found) == len(numbers) and len(found):
        own = f"{found.mean():.6g}/{found.std():.6g}"
        return (
            f"{name!r}: say --input {name}=MEAN/STD with the mean and deviation of its training (these rows' own are "
            f"{own}; 0/1 for numbers as they are), or --input {name}=A,B,... for categories"
        )
    return (
        f"{name!r}: say --input {name}=A,B,... with its values in the order of the network's integers (or "
        f"{name}=A:0,B:1 as numbers); these rows have {short(','.join(distinct))}"
    )


def _encoded(
    table: pd.DataFrame, one: InputColumn, text: Texts, rows: Ints, unknown: Unknown
) -> npt.NDArray[np.float64]:
    """One number for each row of the table, NaN where it has none; `rows` have one each."""
    codes = dict(zip(map(cleaned, one.names), one.codes or range(len(one.names)), strict=True))
    said, _ = unknown.codes_of(table, one.name)
    found: dict[str, float] = {}
    for value in set(text):
        number = codes.get(value) if one.names else as_number(value)
        scaled = math.nan if number is None or plain_code(value) in said else (number - one.mean) / one.std
        found[value] = scaled if abs(scaled) <= _LARGEST else math.nan
    values = np.array([found[value] for value in text], dtype=np.float64)
    if (missing := np.isnan(values[rows])).any():
        bad = rows[missing]
        expected = f"one of {short(', '.join(one.names))}" if one.names else "a finite number"
        counts = counted(value or BLANK for value in text[bad])
        lines = [f"row {row}: {short(text[row], 60)!r}" for row in bad]
        raise DataError(
            f"input {one.name!r}: {len(bad):,} of {len(rows):,} rows have no value that the network can be given "
            f"({counts}); expected {expected}. Fill them as in training, or leave these rows out:\n{listed(lines)}"
        )
    return np.where(np.isnan(values), 0.0, values)


def _remarks(one: InputColumn, text: Texts, values: npt.NDArray[np.float64], sensitive: bool) -> list[Assumption]:
    """What is worth a look in these rows."""
    said = []
    if sensitive:
        what = f"{one.name} is an attribute of the groups and an input: the network needs it of everyone it answers for"
        said.append((what, "nothing says that it is known and may be used there"))
    if len(set(values.tolist())) == 1:
        said.append((f"{one.name} is {short(text[0])!r} in all {len(text):,} rows", "a network was hardly trained so"))
    elif not one.names and (one.mean, one.std) != (0, 1):
        mean, std = values.mean(), values.std()
        if abs(mean) > _FAR or not _NARROW <= std <= _WIDE:
            what = f"{one} gives these rows the mean {mean:.3g} and the deviation {std:.3g}"
            said.append((what, "in training they were near 0 and 1"))
    if not one.names and (odd := [value for value in text if plain_code(value) in _MAYBE_CODES]):
        said.append((f"{one.name}: taken as numbers, rows of {counted(odd)}", "such a code may mean not known"))
    return [Assumption("inputs", what, why, "--input", guess=True) for what, why in said]
