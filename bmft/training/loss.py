"""What a step minimises: the task's loss and the gap, the gap over the whole set."""

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Literal

import torch
from torch import Tensor, nn

from bmft import fairness
from bmft.data import GroupedData
from bmft.training.cells import CellMeans

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    r"""The loss that a step minimises: the terms task, bias, order and others, each times its weight.

    The task term is the weighted cross-entropy of the batch. The bias term is `objective`\ 's value: of the whole set
    (``whole_set=True``: the latest known logits of every sample; those of the batch carry the gradient, each scaled to
    stand for its share of its group x label cell), or of the batch alone, as published.

    The order term holds the ranking inside each group: the mean square of what each logit has moved by, less the
    batch's mean of that over its group, so that a group may move as a whole and nobody is reordered inside it.

    The others term, where one of many outputs is meant, holds the others: `distance` to what they were at the start.

    Attributes:
        balance: whose samples weigh the same in the task term: those of every ``"cell"`` (group x label), of every
            ``"label"``, or all (``"none"``).
        combine: how the objective's values for several attributes become one.
    """

    objective: Objective
    bias_weight: float = 1.0
    task_weight: float = 0.0
    balance: Literal["none", "label", "cell"] = "label"
    whole_set: bool = True
    combine: Literal["mean", "worst"] = "mean"
    order_weight: float = 0.0
    others_weight: float = 0.0


class PooledLoss:
    """A `Loss` of one set: knows the targets, groups, weight and latest logits of every sample.

    Attributes:
        start: the logits that the order and the others term compare with; by default those given.
        own: how many of their columns are meant; all by default. The rest are of other outputs.
        images: samples, each of which the data hold once for every view. The gap is of the latest view seen of each:
            in a table of all views most would be old.
        bias_weight: of the gap from now on; the loss's own at first.
    """

    def __init__(
        self,
        loss: Loss,
        data: GroupedData,
        logits: Tensor,
        multi_label: bool,
        start: Tensor | None = None,
        own: int | None = None,
        *,
        views: int = 1,
    ) -> None:
        device = logits.device
        self.objective = fairness.over_attributes(loss.objective, combine=loss.combine)
        self.loss, self.multi_label, self.bias_weight = loss, multi_label, loss.bias_weight
        self.start = (logits if start is None else start).detach().float().clone()
        self.images = len(data) // views
        self.logits = logits[: self.images].detach().float().clone()  # that of others stays
        self.groups = data.groups[: self.images].to(device)
        self.own = self.logits.shape[1] if own is None else own
        columns = fairness.probabilities(self.logits[:1, : self.own], multi_label=multi_label).shape[1]
        self.labels = data.targets[: self.images].to(device)
        self.targets = fairness.one_vs_rest(self.labels, columns)
        self.all_known = bool((self.targets >= 0).all())
        self.sample_weights = _sample_weights(data, loss.balance)[: self.images].to(device)
        self.cells = _cells(data, "cell")[: self.images].to(device)
        self.cell_sizes = torch.bincount(self.cells).to(self.logits.dtype)
        # Of several attributes, a group is a combination of theirs; so are the samples that lack one.
        self.blocs = torch.unique(self.groups, dim=0, return_inverse=True)[1]
        self.num_blocs = int(self.blocs.max()) + 1
        named = loss.whole_set and isinstance(loss.objective, FunctionType)
        compared = fairness.WITHIN_LABEL.get(loss.objective) if named else None
        self.compared, self.means = compared or (), CellMeans(self.targets, self.groups) if compared else None
        self.refresh()

    def put_back(self, logits: Tensor) -> None:
        """These are the latest logits of every sample."""
        self.logits.copy_(logits)
        self.refresh()

    def refresh(self) -> None:
        """Take the cells' means from all samples anew."""
        if self.means is not None:
            self.means.refresh(self._probabilities(self.logits))

    def __call__(self, logits: Tensor, index: Tensor) -> Tensor:
        """The loss of the samples `index`, whose logits these are."""
        logits, seen, index = logits.float(), index, index % self.images
        own, others = logits[:, : self.own], logits[:, self.own :]
        total = torch.zeros((), device=logits.device)
        if self.loss.task_weight:
            total = total + self.loss.task_weight * self._task(own, index)
        if self.bias_weight:
            total = total + self.bias_weight * self._bias(logits, index)
        if self.loss.order_weight:
            moved = own - self.start[seen, : self.own]
            total = total + self.loss.order_weight * reordering(moved, self.blocs[index], self.num_blocs)
        if self.loss.others_weight and others.shape[1]:
            total = total + self.loss.others_weight * distance(others, self.start[seen, self.own :])
        return total

    def _task(self, logits: Tensor, index: Tensor) -> Tensor:
        weights = self.sample_weights[index]
        losses = self._cross_entropy(logits, self.labels[index], self.targets[index].to(logits.dtype))
        return (weights * losses).mean()

    def _cross_entropy(self, logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """``(n,)``: binary on one logit, softmax over classes, the mean over the known labels."""
        if not self.multi_label and logits.shape[1] > 1:
            return nn.functional.cross_entropy(logits, labels, reduction="none")
        losses = nn.functional.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
        return losses.mean(1) if self.all_known else mean_of_known(losses, targets)

    def _bias(self, logits: Tensor, index: Tensor) -> Tensor:
        if not self.loss.whole_set:
            value = self._objective(logits[:, : self.own], self.targets[index], self.groups[index])
            # A batch without two groups to compare has no bias term.
            return torch.zeros_like(value) if value.isnan() else value
        before = self.logits[index]
        self.logits[index] = logits.detach()
        # A sample stands for its cell's share of the set, whatever share of the batch the cell was given.
        cell = self.cells[index]
        stands_for = self.cell_sizes[cell] / (cell[:, None] == cell).sum(1)
        moving = stands_for[:, None] * (logits - logits.detach())
        if self.means is None:
            pooled = self.logits.index_add(0, index, moving)
            return self._objective(pooled[:, : self.own], self.targets, self.groups)
        now = self._probabilities(self.logits[index] + moving)
        # A sample that the batch holds twice has changed once.
        times = (index[:, None] == index).sum(1)
        self.means.change(index, (now.detach() - self._probabilities(before)) / times[:, None])
        rates = self.means.rates(index, now - now.detach())
        return fairness.gap_of_rates(rates, self.compared, self.loss.combine)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return fairness.probabilities(logits[:, : self.own], multi_label=self.multi_label)

    def _objective(self, logits: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
        probabilities = self._probabilities(logits)
        return self.objective(probabilities, targets.to(probabilities.dtype), groups)


def reordering(moved: Tensor, groups: Tensor, number: int | None = None) -> Tensor:
    r"""How much samples moved against each other inside their groups: 0 where each group moved as a whole.

    :math:`\frac{1}{nK} \sum_{ik} (\delta_{ik} - \bar\delta_{a(i)k})^2`, the change :math:`\delta` of each logit and its
    mean :math:`\bar\delta_a` over the samples of group a.

    Args:
        moved: ``(n, K)`` change of each logit.
        groups: ``(n,)`` numbers from 0.
        number: of groups, where it is known.

    >>> moved = torch.tensor([[2.0], [2.0], [-1.0], [1.0]])
    >>> reordering(moved, torch.tensor([0, 0, 1, 1]))
    tensor(0.5000)
    """
    number = int(groups.max()) + 1 if number is None else number
    size = moved.new_zeros(number).index_add(0, groups, torch.ones_like(moved[:, 0])).clamp(min=1)
    means = moved.new_zeros(number, moved.shape[1]).index_add(0, groups, moved) / size[:, None]
    return (moved - means[groups]).square().mean()


def distance(logits: Tensor, start: Tensor) -> Tensor:
    r"""How far the probabilities of labels moved: 0 where none did, and else its slope is how far each did.

    :math:`\frac{1}{nK} \sum_{ik} KL(p_{ik} \| q_{ik})` of the original's yes or no from the new one's, the
    distillation of Hinton, Vinyals and Dean (2015, arXiv 1503.02531); what the original has no number for is left out.

    Args:
        logits: ``(n, K)``, one of a yes or no each.
        start: those of the original.

    >>> distance(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, -2.0]]))
    tensor(0.)
    """
    known = start.isfinite()
    start = torch.where(known, start, 0.0)
    target = torch.sigmoid(start)
    entropies = (
        nn.functional.binary_cross_entropy_with_logits(torch.where(known, each, 0.0), target, reduction="none")
        for each in (logits, start)
    )
    new, old = entropies
    return torch.where(known, new - old, 0.0).mean()


def mean_of_known(losses: Tensor, targets: Tensor) -> Tensor:
    """The mean of each row ``(n,)`` of `losses` over the labels that are known, of which each row has one or more.

    >>> mean_of_known(torch.tensor([[1.0, 5.0], [2.0, 4.0]]), torch.tensor([[1, -1], [0, 1]]))
    tensor([1., 3.])
    """
    known = targets >= 0
    return torch.where(known, losses, 0).sum(1) / known.sum(1)


def _sample_weights(data: GroupedData, balance: str) -> Tensor:
    """One weight per sample with mean 1, so that each label, or each group x label cell, adds up to the same."""
    if balance == "none":
        return torch.ones(len(data))
    cell = _cells(data, balance)
    counts = torch.bincount(cell)
    return len(data) / (len(counts) * counts[cell].float())


def _cells(data: GroupedData, by: str) -> Tensor:
    """The number of each sample's label, or of its group x label cell."""
    labels = data.targets if data.targets.dim() == 2 else data.targets[:, None]
    keys = labels if by == "label" else torch.cat([labels, data.groups], 1)
    cells: Tensor = torch.unique(keys, dim=0, return_inverse=True)[1]
    return cells
