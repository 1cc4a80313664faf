"""Rows that two sets share: the same picture or patient where one set learns and the other one judges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bmft._common import Assumption, short
from bmft.data.dataset import GroupedData
from bmft.data.loading import assumed_of
from bmft.errors import DataError
from bmft.tables import Ints

_ALLOWED = "--allow-shared-rows"
_SHOWN = 3


def apart(sets: Mapping[str, GroupedData], *, allow: bool = False) -> dict[str, GroupedData]:
    """The same sets, each with what was inferred about any of them, if no row of one is in another one too.

    Rows are the same where the model is shown the same, from whatever files, or where they are of one patient. Sets
    that were once allowed to share rows stay allowed.

    Args:
        sets: by their names, such as ``fit`` and ``test``.
        allow: take them as they are; how many rows they share is then among what was assumed.

    Raises:
        DataError: two of them share rows, some of which are listed.
    """
    assumed = assumed_of(*sets.values())
    if not any(one.option == _ALLOWED for one in assumed):
        shared = [one for a, b in itertools.combinations(sets, 2) for one in _shared(a, sets[a], b, sets[b])]
        if shared and not allow:
            raise DataError(
                f"{'; '.join(one.number for one in shared)}. What is measured on one leaks from another: keep each in "
                "one set, or give --allow-shared-rows (allow_shared_rows=True):\n"
                + "\n".join(f"  {line}" for one in shared for line in one.some)
            )
        assumed += tuple(Assumption("splits", one.number, "the rows, as allowed", _ALLOWED) for one in shared)
    # The same object where nothing is new: what is computed on a set is kept by the set.
    return {n: data if data.assumed == assumed else replace(data, assumed=assumed) for n, data in sets.items()}


def shared_with(fit: GroupedData, other: GroupedData, name: str) -> tuple[Assumption, ...]:
    """What is to be said where rows of `other`, called `name`, are in the fit set as well; nothing if none are."""
    return tuple(
        Assumption("splits", f"{one.number}: they are measured all the same", "the rows", "--eval", guess=True)
        for one in _shared("fit", fit, name, other)
    )


class _Shared(NamedTuple):
    number: str
    some: list[str]


def _shared(a: str, first: GroupedData, b: str, second: GroupedData) -> Iterator[_Shared]:
    """What is in both sets: samples that look the same to the model, then patients."""
    own, others = _same(*_looks(first, second))
    if len(own):
        where = zip(first.rows[own[:_SHOWN]].tolist(), second.rows[others[:_SHOWN]].tolist(), strict=True)
        some = [f"row {row} of {a} is row {same} of {b}" for row, same in where]
        yield _Shared(f"{len(own):,} of the {len(second):,} {b} rows are {a} rows too", some)
    own, others = _same(*_patients(first, second))
    if len(own):
        names = [] if second.patients is None else second.patients[others[:_SHOWN]].tolist()
        rows = first.rows[own[:_SHOWN]].tolist(), second.rows[others[:_SHOWN]].tolist()
        some = [
            f"patient {short(name, 60)}: row {row} of {a}, row {same} of {b}"
            for name, row, same in zip(names, *rows, strict=True)
        ]
        yield _Shared(f"{len(own):,} of the {len(second):,} {b} rows are of patients in {a}", some)


def _looks(first: GroupedData, second: GroupedData) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if first.looks is not None and second.looks is not None:
        return first.looks, second.looks
    # Inputs that tell no two samples apart: only the very same sample counts.
    both = (first._index.numpy(), second._index.numpy())
    return both if first._source is second._source else (both[0], both[1][:0])


def _patients(first: GroupedData, second: GroupedData) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """A number for each patient's name; of those without a name another one on each side."""
    if first.patients is None or second.patients is None:
        return np.zeros(1), np.zeros(0)
    codes = pd.factorize(np.concatenate([first.patients, second.patients]))[0]
    unnamed = np.concatenate([first.patients, second.patients]) == ""
    codes[unnamed] = -1 - np.arange(unnamed.sum())
    return codes[: len(first)], codes[len(first) :]


def _same(own: npt.NDArray[Any], others: npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """The places of `others` that hold what `own` does, after the first places in `own` that do."""
    values, place = np.unique(own, return_index=True)
    at = np.searchsorted(values, others).clip(max=len(values) - 1)
    hit = np.flatnonzero(values[at] == others)
    return place[at[hit]], hit
