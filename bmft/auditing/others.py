"""The other outputs of a network of which one is debiased: how far their probabilities moved."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bmft.auditing.predictions import Floats, Predictions


class Drift(NamedTuple):
    """How far one output's probability moved on the rows of a set.

    Attributes:
        mean: of the absolute change over all rows.
        largest: absolute change of any row.
        drift: what is limited, at least `mean`: see `drift_of`.
    """

    mean: float
    largest: float
    drift: float


def drift_of(before: NDArray[Any], after: NDArray[Any]) -> Drift:
    r"""How far a probability ``(n,)`` moved.

    A finding that one row in twenty has can be lost with a mean change of .05 only. So the change is averaged twice,
    once over the rows in which the original sees it and once over the rest, each row counted by how much the original
    does (and does not), and the larger one is the drift:

    .. math:: \max\left(\frac{\sum_i p_i |q_i - p_i|}{\max(1, \sum_i p_i)},
        \frac{\sum_i (1 - p_i) |q_i - p_i|}{\max(1, \sum_i (1 - p_i))}\right)

    with the original's probabilities p and the new ones q, or the mean over all rows, should that be larger: what adds
    up to less than one row says little by itself.

    >>> before = np.array([0.9] + [0.0] * 19)
    >>> drift_of(before, np.zeros(20))
    Drift(mean=0.045, largest=0.9, drift=0.81)
    """
    change = np.abs(after - before)
    sides = [(weight * change).sum() / max(1.0, weight.sum()) for weight in (before, 1 - before)]
    mean = float(change.mean())
    return Drift(mean, float(change.max()), float(np.max([mean, *sides])))


def other_drifts(before: Predictions | None, after: Predictions | None) -> Mapping[str, Drift]:
    """Each other output by its name -> how far it moved; none where these are not of one output of many.

    What the original gives no number for is left out.
    """
    if before is None or after is None or before.others is None or after.others is None:
        return {}
    sides: tuple[Floats, Floats] = (before.others, after.others)
    columns = zip(before.other_outputs, sides[0].T, sides[1].T, strict=True)
    return {name: drift_of(old, new) for name, old, new in columns if not np.isnan(old).any()}


def drifts_in_words(drifts: Mapping[str, Mapping[str, Drift]], limit: float | None) -> str:
    """The drifts of some sets, by the sets' names, in one line; "" without any.

    >>> drifts_in_words({"fit": {"Mass": Drift(0.01, 0.2, 0.02)}, "select": {"Mass": Drift(0.02, 0.3, 0.03)}}, 0.05)
    'other outputs (1): drift at most 0.020 on fit (Mass), 0.030 on select (Mass); limit 0.05'
    """
    parts = []
    for where, found in drifts.items():
        if found:
            most = max(found, key=lambda name: found[name].drift)
            parts.append(f"{found[most].drift:.3f} on {where} ({most})")
    count = max((len(found) for found in drifts.values()), default=0)
    allowed = "" if limit is None else f"; limit {limit:g}"
    return f"other outputs ({count}): drift at most {', '.join(parts)}{allowed}" if parts else ""
