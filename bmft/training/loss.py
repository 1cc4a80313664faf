"""What a step minimises: the task's loss and the gap, the gap over the whole set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bmft import fairness
from bmft.data import GroupedData

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    r"""What a step minimises: task, bias, order and others, each times its weight.

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
        self.logits = logits[: self.images].detach().float()
        self.groups = data.groups[: self.images].to(device)
        self.own = self.logits.shape[1] if own is None else own
        columns = fairness.probabilities(self.logits[:1, : self.own], multi_label=multi_label).shape[1]
        self.labels = data.targets[: self.images].to(device)
        self.targets = fairness.one_vs_rest(self.labels, columns)
        self.sample_weights = _sample_weights(data, loss.balance)[: self.images].to(device)
        self.cells = _cells(data, "cell")[: self.images].to(device)
        self.cell_sizes = torch.bincount(self.cells).to(self.logits.dtype)
        # Of several attributes, a group is a combination of theirs; so are the samples that lack one.
        self.blocs = torch.unique(self.groups, dim=0, return_inverse=True)[1]

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
            total = total + self.loss.order_weight * reordering(moved, self.blocs[index])
        if self.loss.others_weight and others.shape[1]:
            total = total + self.loss.others_weight * distance(others, self.start[seen, self.own :])
        return total

    def _task(self, logits: Tensor, index: Tensor) -> Tensor:
        weights = self.sample_weights[index]
        losses = _cross_entropy(logits, self.labels[index], self.targets[index], self.multi_label)
        return (weights * losses).mean()

    def _bias(self, logits: Tensor, index: Tensor) -> Tensor:
        if not self.loss.whole_set:
            value = self._objective(logits[:, : self.own], self.targets[index], self.groups[index])
            # A batch without two groups to compare has no bias term.
            return torch.zeros_like(value) if value.isnan() else value
        self.logits[index] = logits.detach()
        # A sample stands for its cell's share of the set, whatever share of the batch the cell was given.
        cell = self.cells[index]
        stands_for = self.cell_sizes[cell] / torch.bincount(cell, minlength=len(self.cell_sizes))[cell]
        pooled = self.logits.index_add(0, index, stands_for[:, None] * (logits - logits.detach()))
        return self._objective(pooled[:, : self.own], self.targets, self.groups)

    def _objective(self, logits: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
        probabilities = fairness.probabilities(logits, multi_label=self.multi_label)
        return self.objective(probabilities, targets.to(probabilities.dtype), groups)


def reordering(moved: Tensor, groups: Tensor) -> Tensor:
    r"""How much samples moved against each other inside their groups: 0 where each group moved as a whole.

    :math:`\frac{1}{nK} \sum_{ik} (\delta_{ik} - \bar\delta_{a(i)k})^2`, the change :math:`\delta` of each logit and its
    mean :math:`\bar\delta_a` over the samples of group a.

    Args:
        moved: ``(n, K)`` change of each logit.
        groups: ``(n,)`` numbers from 0.

    >>> moved = torch.tensor([[2.0], [2.0], [-1.0], [1.0]])
    >>> reordering(moved, torch.tensor([0, 0, 1, 1]))
    tensor(0.5000)
    """
    size = torch.bincount(groups).clamp(min=1).to(moved.dtype)
    means = moved.new_zeros(len(size), moved.shape[1]).index_add(0, groups, moved) / size[:, None]
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


def _cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Per-sample cross-entropy ``(n,)``: binary on one logit, softmax over classes, the mean over the known labels."""
    if multi_label or logits.shape[1] == 1:
        targets = targets.to(logits.dtype)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
        return mean_of_known(losses, targets)
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def mean_of_known(losses: Tensor, targets: Tensor) -> Tensor:
    """The mean of each row ``(n,)`` of `losses` over the labels that are known, of which each row has one or more.

    >>> mean_of_known(torch.tensor([[1.0, 5.0], [2.0, 4.0]]), torch.tensor([[1, -1], [0, 1]]))
    tensor([1., 3.])
    """
    known = targets >= 0
    if bool(known.all()):
        return losses.mean(1)
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
