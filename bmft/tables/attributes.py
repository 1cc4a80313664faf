"""Sensitive attributes and their groups: names, cuts of numbers, products."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from bmft._common import Assumption, listed, short
from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables.reading import Ints, Texts, as_number, column
from bmft.tables.unknown import BY_DEFAULT, DOUBTFUL, Unknown, is_listed, plain_code, reasons, said_of_groups

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


class Groups(NamedTuple):
    """Several attributes of the same rows: names and groups, ids ``(n, attributes)``, and what was assumed of them."""

    attributes: tuple[Attribute, ...]
    ids: Ints
    assumed: tuple[Assumption, ...]


def encode_attribute(table: pd.DataFrame, spec: str, unknown: Unknown = BY_DEFAULT) -> tuple[Attribute, Ints]:
    """Groups of one attribute: ``"sex"``, ``"age:40,60"`` (half-open cuts) or a product ``"sex*age:60"``.

    Returns the attribute and ``(n,)`` group ids; -1 where the value, or a factor of a product, is not known: it is
    empty, one of the codes of `unknown`, or a negative number (unless one of the cuts is at 0 or below).

    >>> table = pd.DataFrame({"sex": ["f", "m", "N/A"], "age": ["39.5", "60", "7"]})
    >>> encode_attribute(table, "sex*age:40,60")
    (Attribute(name='sex*age', groups=('f*<40', 'f*40-60', 'f*60+', 'm*<40', 'm*40-60', 'm*60+')),
     array([ 0,  5, -1]))
    """
    return _together([_factor(table, name, unknown) for name in _factors(table, spec)])


def encode_attributes(
    table: pd.DataFrame, specs: str | Sequence[str], unknown: Unknown, rows: Ints, where: str = ""
) -> Groups:
    """Several attributes by `encode_attribute`, and what was assumed of those `rows`, which lie `where`.

    Raises:
        ConfigError: none is named, or one twice.
    """
    named = [_factors(table, spec) for spec in ([specs] if isinstance(specs, str) else specs)]
    factors = {name: _factor(table, name, unknown) for name in dict.fromkeys(itertools.chain(*named))}
    encoded = [_together([factors[name] for name in names]) for names in named]
    names = [attribute.name for attribute, _ in encoded]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"sensitive attributes {names}: name at least one, each once.")
    said = [said_of_groups(one.attribute.name, one.why, one.doubtful, rows, where) for one in factors.values()]
    said.append(unknown.unmet(table, dict.fromkeys(one.attribute.name for one in factors.values())))
    ids = np.stack([ids for _, ids in encoded], axis=1)
    return Groups(tuple(a for a, _ in encoded), ids, tuple(dict.fromkeys(itertools.chain(*said))))


def _factors(table: pd.DataFrame, spec: str) -> list[str]:
    return [spec] if spec in table.columns else [factor.strip() for factor in spec.split("*")]


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


class _Factor(NamedTuple):
    attribute: Attribute
    ids: Ints
    why: Texts  # the code of what is not known, else ""
    doubtful: Texts  # the code of what may not be known, else ""


def _together(factors: Sequence[_Factor]) -> tuple[Attribute, Ints]:
    if len(factors) == 1:
        return factors[0].attribute, factors[0].ids
    return product([one.attribute for one in factors], [one.ids for one in factors])


def _factor(table: pd.DataFrame, factor: str, unknown: Unknown) -> _Factor:
    name, _, cuts = (factor, "", "") if factor in table.columns else factor.partition(":")
    text = column(table, name, role="sensitive")
    said, default = unknown.codes_of(table, name)
    edges = _parse_cuts(factor, cuts) if cuts else []
    # Where a cut is at 0 or below, what is measured can be negative.
    below = bool(edges) and edges[0] <= 0
    ages = bool(edges) and edges[-1] < _OLDEST and "age" in re.split(r"[^a-z]+", name.casefold())

    def is_unknown(value: str) -> bool:
        number = as_number(value)
        if plain_code(value) in said or not default or number is None:
            return plain_code(value) in said or (default and is_listed(value))
        return (number < 0 and not below) or (ages and number in _NO_AGE)

    def is_doubtful(value: str) -> bool:
        number = as_number(value)
        odd = plain_code(value) in DOUBTFUL if not edges else ages and number is not None and number > _OLDEST
        return default and odd and not is_unknown(value)

    why, doubtful = reasons(text, is_unknown), reasons(text, is_doubtful)
    known = np.where(why == "", text, "")
    attribute, ids = _cut(name, known, edges) if edges else _named(name, known)
    return _Factor(attribute, ids, why, np.where(text == "", "", doubtful))


_OLDEST = 120  # years
_NO_AGE = (999, 9999)


def _named(name: str, text: Texts) -> tuple[Attribute, Ints]:
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
