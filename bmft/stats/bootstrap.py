"""A stratified bootstrap of rows or clusters (patients), as counts instead of copies.

A resample is how often each unit was drawn, so a statistic is a function of counts: a rate is a quotient of
two matrix products, an area under a curve a cumulative sum over the units' sorted rows. Two models'
statistics taken in one call see the same resamples: that is the paired bootstrap.

    units = Units.of(clusters, strata=groups)
    auc = roc_auc(scores, targets, cells(groups, 2), units)
    replicates = bootstrap({"roc_auc": auc}, units, resamples=2000, seed=0)["roc_auc"]   # (2000, 2)

A *cell* is a set of rows a statistic is taken of, usually a group; `cells` makes them from group ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
# (units, resamples): the counts of one unit lie together, so that gathering units copies whole rows.
# float32 counts whole numbers exactly up to 2**24 rows.
Counts = NDArray[np.floating]
Cells = Sequence[NDArray[np.bool_]]
Statistic = Callable[[Counts], Array]  # counts -> (cells, resamples)

BATCH = 128  # resamples at once: 20,000 rows of float32 counts are 10 MB


@dataclass(frozen=True)
class Units:
    """What a bootstrap draws with replacement within strata: rows, or clusters of rows such as patients."""

    of_row: NDArray[np.intp]
    strata: tuple[NDArray[np.intp], ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self.strata))

    @staticmethod
    def of(clusters: ArrayLike | None, *, strata: ArrayLike) -> Units:
        """Clusters as units (rows without `clusters`); a cluster belongs to the stratum of its first row.

        >>> Units.of([7, 7, 3], strata=[0, 0, 1])
        Units(of_row=array([1, 1, 0]), strata=(array([1]), array([0])))
        """
        labels = np.asarray(strata)
        if clusters is None:
            of_row = np.arange(len(labels))
        else:
            _, first, of_row = np.unique(np.asarray(clusters), return_index=True, return_inverse=True)
            labels = labels[first]
        return Units(of_row, tuple(np.flatnonzero(labels == label) for label in np.unique(labels)))


def cells(groups: ArrayLike, num_groups: int) -> list[NDArray[np.bool_]]:
    """The rows of each group; group -1 is in none.

    >>> cells([0, 1, -1], 2)
    [array([ True, False, False]), array([False,  True, False])]
    """
    return [np.asarray(groups) == group for group in range(num_groups)]


def bootstrap(
    statistics: Mapping[str, Statistic], units: Units, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Array]:
    """Each statistic on the same `resamples` draws of the units: ``(resamples, cells)``.

    NaN where a resample left a cell without what the statistic needs.

    >>> units = Units.of(None, strata=[0, 0, 0, 0])
    >>> rate = mean([1, 1, 0, 0], cells([0, 0, 0, 0], 1), units)
    >>> replicates = bootstrap({"rate": rate}, units, resamples=500)["rate"]
    >>> replicates.shape, bool(0.2 < replicates.std() < 0.3)
    ((500, 1), True)
    """
    parts: dict[str, list[Array]] = {name: [] for name in statistics}
    with np.errstate(invalid="ignore", divide="ignore"):
        for counts in _draws(units, resamples, seed):
            for name, statistic in statistics.items():
                parts[name].append(statistic(counts))
    return {name: np.concatenate(part, axis=1).T for name, part in parts.items()}


def draw(units: Units, resamples: int, generator: np.random.Generator) -> Counts:
    """How often each unit is drawn in each of `resamples` draws: ``(units, resamples)``."""
    counts = np.empty((units.count, resamples), dtype=np.float32)
    columns = np.arange(resamples, dtype=np.int64)
    for members in units.strata:
        size = len(members)
        drawn = generator.integers(0, size, (size, resamples), dtype=np.int32) * np.int64(resamples) + columns
        counts[members] = np.bincount(drawn.ravel(), minlength=size * resamples).reshape(size, resamples)
    return counts


def _draws(units: Units, resamples: int, seed: int) -> Iterator[Counts]:
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, BATCH):
        yield draw(units, min(BATCH, resamples - start), generator)


def resampled_rows(units: Units, *, resamples: int, seed: int = 0) -> Iterator[NDArray[np.intp]]:
    """The rows of each resample that `bootstrap` draws, as often as they were drawn: for figures that know no counts.

    >>> rows = resampled_rows(Units.of([7, 7, 3], strata=[0, 0, 0]), resamples=50)
    >>> all((sample == 0).sum() == (sample == 1).sum() for sample in rows)
    True
    """
    everyone = np.arange(len(units.of_row))
    for counts in _draws(units, resamples, seed):
        yield from (np.repeat(everyone, column[units.of_row]) for column in counts.T.astype(np.intp))


def point(statistic: Statistic, units: Units) -> Array:
    """The statistic of the sample itself, ``(cells,)``: every unit once."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return statistic(np.ones((units.count, 1)))[:, 0]


def mean(values: ArrayLike, where: Cells, units: Units) -> Statistic:
    """Mean of `values` in each cell: rates, accuracy, Brier score."""
    return quotient(values, np.ones(len(units.of_row)), where, units)


def quotient(values: ArrayLike, sizes: ArrayLike, where: Cells, units: Units) -> Statistic:
    """Sum of `values` over sum of `sizes` in each cell."""
    above = _sums([np.where(cell, values, 0) for cell in where], units)
    below = _sums([np.where(cell, sizes, 0) for cell in where], units)

    def statistic(counts: Counts) -> Array:
        return _product(above, counts) / _product(below, counts)

    return statistic


def roc_auc(scores: ArrayLike, targets: ArrayLike, where: Cells, units: Units) -> Statistic:
    """Area under the ROC curve in each cell, ties half: negatives cumulated, read at each positive."""
    plans = [_Ranked.of(scores, targets, cell, units) for cell in where]

    def one(plan: _Ranked, counts: Counts) -> Array:
        negatives = _cumulated(counts, plan.negatives)
        positives = counts[plan.positives]
        below = negatives[plan.below]
        if plan.tied:
            below = (below + negatives[plan.up_to]) / 2
        wins = np.einsum("nb,nb->b", positives, below, dtype=np.float64)
        return np.asarray(wins / (positives.sum(axis=0, dtype=np.float64) * negatives[-1]))

    return lambda counts: np.stack([one(plan, counts) for plan in plans])


def average_precision(scores: ArrayLike, targets: ArrayLike, where: Cells, units: Units) -> Statistic:
    """Mean over the positives of each cell of the precision at their own score (as scikit-learn's)."""
    plans = [_Ranked.of(-np.asarray(scores, dtype=np.float64), targets, cell, units) for cell in where]

    def one(plan: _Ranked, counts: Counts) -> Array:
        negatives = _cumulated(counts, plan.negatives)[plan.up_to]
        positives = counts[plan.positives]
        found = _cumulated(counts, plan.positives)
        above = found[1:] if plan.last_equal is None else found[plan.last_equal]
        # A score none of whose rows was drawn has no precision and no weight.
        precision = above / np.maximum(above + negatives, 1)
        return np.asarray(np.einsum("nb,nb->b", positives, precision, dtype=np.float64) / found[-1])

    return lambda counts: np.stack([one(plan, counts) for plan in plans])


@dataclass(frozen=True)
class _Ranked:
    """One cell's rows by score: units of the positives and negatives, and where each positive stands."""

    positives: NDArray[np.intp]  # units, by ascending score
    negatives: NDArray[np.intp]
    below: NDArray[np.intp]  # per positive, how many negatives have a lower score
    up_to: NDArray[np.intp]  # ... a lower or the same
    last_equal: NDArray[np.intp] | None  # ... how many positives have; None where that is its own place

    @property
    def tied(self) -> bool:
        return not np.array_equal(self.below, self.up_to)

    @staticmethod
    def of(scores: ArrayLike, targets: ArrayLike, cell: NDArray[np.bool_], units: Units) -> _Ranked:
        values, positive = np.asarray(scores, dtype=np.float64)[cell], np.asarray(targets)[cell].astype(bool)
        of_row = units.of_row[cell]
        hits, misses = (np.argsort(values[label], kind="stable") for label in (positive, ~positive))
        high, low = values[positive][hits], values[~positive][misses]
        places = np.searchsorted(high, high, side="right")
        return _Ranked(
            of_row[positive][hits],
            of_row[~positive][misses],
            np.searchsorted(low, high, side="left"),
            np.searchsorted(low, high, side="right"),
            None if np.array_equal(places, np.arange(1, len(high) + 1)) else places,
        )


def _cumulated(counts: Counts, members: NDArray[np.intp]) -> Counts:
    """Cumulated counts of `members`, with a leading 0: ``(len(members) + 1, resamples)``."""
    total = np.zeros((len(members) + 1, counts.shape[1]), dtype=counts.dtype)
    np.cumsum(counts[members], axis=0, out=total[1:])
    return total


def _sums(values: Sequence[ArrayLike], units: Units) -> Array:
    """Sums of each row of `values` over the units: ``(len(values), units)``."""
    return np.stack([np.bincount(units.of_row, np.asarray(value, float), units.count) for value in values])


def _product(sums: Array, counts: Counts) -> Array:
    # In the counts' own precision: a mixed product would copy the counts.
    return (sums.astype(counts.dtype) @ counts).astype(np.float64)
