"""The mean score of every group x label cell of a set, kept while scores change: what a gap between rates rests on."""

import torch
from torch import Tensor

_AT_ONCE = 65536  # rows that are summed at once


class CellMeans:
    """Sums of the scores ``(n, K)`` of every cell of every attribute, from which a step takes off and to which it adds.

    A step's time does not depend on n. A target of -1 is not known, a group of -1 neither: such a sample is in no cell.

    >>> cells = CellMeans(torch.tensor([[1], [1], [0]]), torch.tensor([[0], [0], [1]]))
    >>> cells.refresh(torch.tensor([[0.5], [0.25], [0.75]]))
    >>> cells.rates(torch.tensor([0]), torch.tensor([[0.25]]))[0][0][:, 1, 0].tolist()  # the first one rose by .25
    [0.5, 0.0]
    """

    def __init__(self, targets: Tensor, groups: Tensor) -> None:
        self.targets, self.groups = targets.long(), groups
        self.sizes = [int(ids.max().clamp(min=-1)) + 1 for ids in groups.T]
        first = torch.tensor([0, *self.sizes[:-1]], device=groups.device).cumsum(0)
        self.first, self.number = first, sum(self.sizes)
        self.counts = self._all(torch.ones_like(self.targets))
        self.sums = torch.zeros_like(self.counts)

    def refresh(self, scores: Tensor) -> None:
        """Add all up anew; what rounding left in the sums is gone."""
        self.sums = self._all(scores)

    def _all(self, scores: Tensor) -> Tensor:
        parts = (slice(start, start + _AT_ONCE) for start in range(0, len(scores), _AT_ONCE))
        return torch.stack([self._sums(rows, scores[rows].double()) for rows in parts]).sum(0)

    def change(self, index: Tensor, by: Tensor) -> None:
        """The scores of these samples changed `by` so much, ``(len(index), K)``."""
        self.sums = self.sums + self._sums(index, by.double())

    def rates(self, index: Tensor, extra: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each attribute the mean score ``(groups, 2, K)`` of every cell, and which cells have samples.

        As if the scores of the samples `index` were `extra` ``(len(index), K)`` more, which carries the gradient on.
        """
        sums = self.sums + self._sums(index, extra.double())
        means, known = (sums / self.counts.clamp(min=1)).to(extra.dtype), self.counts > 0
        parts = (torch.split(each, self.sizes) for each in (means, known))
        return list(zip(*parts, strict=True))

    def _sums(self, rows: Tensor | slice, values: Tensor) -> Tensor:
        """``(groups of all attributes, 2, K)``, by a product with the membership: the same bits every time."""
        groups, targets = self.groups[rows], self.targets[rows]
        places = torch.where(groups < 0, -1, groups + self.first)
        member = (places[:, :, None] == torch.arange(self.number, device=places.device)).sum(1).to(values.dtype)
        by_label = [member.T @ torch.where(targets == label, values, 0) for label in (0, 1)]
        return torch.stack(by_label, 1)
