"""Group x label cells of a set, and how splits and batches are cut so that every cell is in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bmft.errors import ConfigError, GroupError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Balance = Literal["none", "group", "group_in_label", "cell"]


def label_strata(targets: Tensor) -> Tensor:
    """``(n,)`` one label stratum per row: the class, or for ``(n, labels)`` the row's rarest positive label.

    >>> label_strata(torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0]])).tolist()
    [0, 1, 2, 0]
    """
    if targets.ndim == 1:
        return targets
    targets = targets.clamp(min=0)  # a label that is not known makes no stratum
    by_rarity = targets.sum(0).argsort(stable=True)
    ranked = targets[:, by_rarity]
    last = torch.ones(len(targets), 1, dtype=ranked.dtype)
    rank = torch.cat([ranked, last], dim=1).argmax(1)  # the first 1, or the column after the last label
    return torch.cat([by_rarity, torch.tensor([targets.shape[1]])])[rank]


def group_strata(groups: Tensor) -> Tensor:
    """``(n,)`` one group stratum per row: the observed combination of its attributes, -1 if one is unknown.

    >>> group_strata(torch.tensor([[0, 1], [1, 1], [0, -1], [0, 1]])).tolist()
    [0, 1, -1, 0]
    """
    known = (groups >= 0).all(1)
    strata = torch.full((len(groups),), -1, dtype=torch.int64)
    strata[known] = torch.unique(groups[known], dim=0, return_inverse=True)[1]
    return strata


def cells(targets: Tensor, groups: Tensor) -> Ints:
    """``(n,)`` one number per row for its group x label cell, numbered from 0 without holes."""
    pairs = torch.stack([label_strata(targets), group_strata(groups)], dim=1)
    return np.asarray(torch.unique(pairs, dim=0, return_inverse=True)[1].numpy(), dtype=np.int64)


def together(clusters: Ints | None, looks: npt.NDArray[np.uint64] | None) -> Ints | None:
    """``(n,)`` a number for what a split keeps whole: the clusters, joined where rows of two of them look the same.

    >>> together(np.array([0, 0, 1, 2]), np.array([5, 6, 7, 6], np.uint64)).tolist()
    [0, 0, 1, 0]
    """
    if looks is None or len(values := np.unique(looks, return_inverse=True)[1]) == int(values.max(initial=-1)) + 1:
        return clusters
    if clusters is None:
        return values
    # A quarter of a second that an audit does not need.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ids = np.unique(clusters, return_inverse=True)[1]
    first = int(ids.max()) + 1
    size = first + int(values.max()) + 1
    links = coo_array((np.ones(len(ids)), (ids, first + values)), shape=(size, size))
    return np.asarray(connected_components(links, directed=False)[1][ids], np.int64)


def split_cells(cell: Ints, fractions: Sequence[float], clusters: Ints | None, seed: int) -> Ints:
    """``(n,)`` the part each row goes to; -1 for rows beyond the fractions. Clusters stay whole.

    1. The clusters of several rows, largest first, each to the part that lacks its cells most.
    2. Single rows, cell by cell, fill what each part still lacks; the rounding of one cell is carried to the
       next, so that many small cells do not all end up in the largest part.

    Raises:
        ConfigError: a fraction is not positive, or they sum to more than 1.
    """
    shares = np.array(fractions, dtype=np.float64)
    if not len(shares) or not (shares > 0).all() or shares.sum() > 1 + 1e-9:
        raise ConfigError(f"fractions {tuple(fractions)}: expected positive numbers that sum to at most 1.")
    parts = np.append(shares, max(1 - shares.sum(), 0.0))  # the last part is left out
    counts = np.bincount(cell)
    need = np.asarray(parts[:, None] * counts, dtype=np.float64)
    rng = np.random.default_rng(seed)
    part = np.full(len(cell), -1, dtype=np.int64)
    single = _deal_clusters(part, cell, clusters, need, counts, rng)
    _deal_rows(part, cell, single, need, rng)
    return np.where(part == len(shares), -1, part)


def _deal_clusters(
    part: Ints, cell: Ints, clusters: Ints | None, need: Floats, counts: Ints, rng: np.random.Generator
) -> Ints:
    """Deal out the clusters of several rows; returns the rows that stand alone."""
    if clusters is None:
        return np.arange(len(cell))
    _, cluster, size = np.unique(clusters, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(size)[:-1])
    shuffled = rng.permutation(len(size))
    for index in shuffled[np.argsort(-size[shuffled], kind="stable")]:
        if size[index] == 1:
            continue
        cells_in, rows_in = np.unique(cell[members[index]], return_counts=True)
        # a rare cell weighs more; the second term keeps the sizes of the parts right
        lack = need[:, cells_in] @ (rows_in / counts[cells_in]) + need.sum(1) * (size[index] / len(cell))
        lack[need.sum(1) <= 0] = -np.inf
        chosen = int(lack.argmax())
        part[members[index]] = chosen
        need[chosen, cells_in] -= rows_in
    return np.flatnonzero(size[cluster] == 1)


def _deal_rows(part: Ints, cell: Ints, rows: Ints, need: Floats, rng: np.random.Generator) -> None:
    carry = np.zeros(len(need))
    for one in rng.permutation(need.shape[1]):
        members = rng.permutation(rows[cell[rows] == one])
        wanted = need[:, one] + carry
        quota = _apportion(wanted, len(members))
        part[members] = np.repeat(np.arange(len(need)), quota)
        carry = wanted - quota


def _apportion(wanted: Floats, total: int) -> Ints:
    """Whole numbers in proportion to `wanted` that sum to `total`, by largest remainder."""
    positive = np.clip(wanted, 0, None)
    if positive.sum() <= 0:
        positive = np.ones_like(wanted)
    exact = positive * (total / positive.sum())
    quota: Ints = np.floor(exact + 1e-9).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: total - quota.sum()]] += 1
    return quota


def batch_rows(
    targets: Tensor, groups: Tensor, batch_size: int, *, generator: torch.Generator, balance: Balance = "none"
) -> list[Tensor]:
    """Row numbers of one epoch's batches, at most `batch_size` each; see `data.stratified_batches`."""
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size}: expected 1 or more.")
    if balance not in get_args(Balance):
        raise ConfigError(f"balance {balance!r}: expected one of {', '.join(get_args(Balance))}.")
    if not len(targets):
        return []
    pairs = torch.stack([label_strata(targets), group_strata(groups)], dim=1)
    unique, cell = torch.unique(pairs, dim=0, return_inverse=True)
    members = [torch.nonzero(cell == index).flatten() for index in range(len(unique))]
    sizes = torch.tensor([len(rows) for rows in members], dtype=torch.float64)
    shares = cell_shares(unique[:, 0], unique[:, 1], sizes, balance)
    drawn = _apportion((shares * len(targets)).numpy(), len(targets))
    picked = [_draw(rows, int(n), generator) for rows, n in zip(members, drawn, strict=True)]
    dealt = torch.cat([picked[i] for i in torch.randperm(len(picked), generator=generator).tolist()])
    # Row i of the cell-by-cell order goes to batch i mod B: batches differ by at most one row of any cell,
    # and by at most one row in all.
    number = -(-len(dealt) // batch_size)
    batches = [dealt[start::number] for start in torch.randperm(number, generator=generator).tolist()]
    return [batch[torch.randperm(len(batch), generator=generator)] for batch in batches]


def cell_shares(label: Tensor, group: Tensor, sizes: Tensor, balance: Balance) -> Tensor:
    """Share of an epoch each cell gets; `label`, `group` and `sizes` are per cell."""
    if balance == "none":
        return sizes / sizes.sum()
    known = (group >= 0).double()
    if not known.any():
        raise GroupError(f"balance {balance!r} needs rows whose group is known; there are none.")
    sizes = sizes * known
    if balance == "cell":
        return known / known.sum()
    same_group, same_label = (column[:, None] == column[None, :] for column in (group, label))
    if balance == "group":
        shares = sizes / (same_group * sizes).sum(1).clamp(min=1)
    else:
        shares = known * (same_label * sizes).sum(1) / (same_label * known).sum(1).clamp(min=1)
    return shares / shares.sum()


def _draw(rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """`number` of these rows: each once in a new order before any comes again."""
    rounds = -(-number // len(rows))
    shuffled = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)]
    return torch.cat([*shuffled, rows[:0]])[:number]
