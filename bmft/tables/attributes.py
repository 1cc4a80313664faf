"""Sensitive attributes and their groups: names, cuts of numbers, products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bmft._common import listed, short
from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables.reading import Ints, Texts, as_number, column

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
    numbers = {value: as_number(value) for value in distinct}
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
    numbers = [as_number(cut) for cut in cuts.split(",")]
    values = [number for number in numbers if number is not None and np.isfinite(number)]
    if len(values) < len(numbers) or any(a >= b for a, b in itertools.pairwise(values)):
        raise ConfigError(f"attribute {short(factor)!r}: cuts are rising numbers, such as age:40,60.")
    return values


def _cut(name: str, text: Texts, cuts: list[float]) -> tuple[Attribute, Ints]:
    numbers = [np.nan if value == "" else as_number(value) for value in text]
    bad = [f"row {row}: {short(text[row], 60)!r}" for row, value in enumerate(numbers) if value is None]
    if bad:
        raise DataError(f"attribute {name!r} is cut by numbers but has other values:\n{listed(bad)}")
    values = np.array(numbers, dtype=np.float64)
    edges = [f"{cut:g}" for cut in cuts]
    groups = (f"<{edges[0]}", *(f"{a}-{b}" for a, b in itertools.pairwise(edges)), f"{edges[-1]}+")
    return Attribute(name, groups), np.where(np.isnan(values), -1, np.digitize(values, cuts)).astype(np.int64)
