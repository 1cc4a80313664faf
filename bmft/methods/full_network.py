"""The baselines a user would pick instead: every weight, the head alone, robust loss, pruning, another threshold."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from bmft.data import GroupedData
from bmft.masks import WeightMask
from bmft.methods.losses import extractor_loss, whole_step
from bmft.methods.run import Run
from bmft.tables import Attribute
from bmft.training import Loss, mean_of_known

DRO_RATE = 0.1  # of the group weights; published 0.01 is for runs of many thousand steps


def full(run: Run) -> WeightMask:
    """Fine-tune every weight on balanced batches; the bias term as the settings weigh it. One step, all epochs."""
    return _every_weight(run, extractor_loss(run.settings))


def selective(run: Run) -> WeightMask:
    """Plain fine-tuning of the weights that `tune` and `freeze` name, and of the head, in one step.

    The inner loop of FairTune (Dutt et al. 2024), whose outer search picks the weights.
    """
    mask = run.body_mask() | run.head_mask()
    step = whole_step(run.settings)
    run.tune_extractor(mask, extractor_loss(run.settings), step)
    return mask


def bias_gradient_descent(run: Run) -> WeightMask:
    """Bias gradient descent (Marcinkevics, Ozkan and Vogt 2022): the gap alone, every weight, chosen on select.

    The published method descends or ascends by the sign of the bias; ours is the gap's size, so it only descends.
    """
    gap_alone = replace(extractor_loss(run.settings), task_weight=0.0, bias_weight=1.0)
    return _every_weight(run, gap_alone)


def group_dro(run: Run) -> WeightMask:
    """Group distributionally robust optimisation (Sagawa et al. 2020) of every weight on the small fit set.

    The loss is the sum of each group x label cell's mean loss, weighted by q; after every batch q grows by
    exp(rate x loss) and is normalised, so that the cell with the largest loss comes to count most.
    """
    fit = one_attribute(run.fit)
    robust = _RobustLoss(DRO_RATE, multi_label=run.conditions.multi_label)
    loss = Loss(robust, whole_set=False, others_weight=run.settings.others_weight)
    return _every_weight(replace(run, fit=fit), loss)


def _every_weight(run: Run, loss: Loss) -> WeightMask:
    everything = run.movable()
    run.tune_extractor(everything, loss, whole_step(run.settings))
    return everything


class _RobustLoss:
    """Group DRO's loss of a batch; remembers how much each group x label cell counts."""

    def __init__(self, rate: float, *, multi_label: bool) -> None:
        self.rate, self.multi_label = rate, multi_label
        self.weights = torch.ones(0)

    def __call__(self, scores: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
        losses = nn.functional.binary_cross_entropy(scores, targets.clamp(min=0), reduction="none")
        losses = mean_of_known(losses, targets)
        known = groups >= 0
        cells = self._cells(targets, groups)[known]
        size = max(int(cells.max()) + 1 if len(cells) else 0, len(self.weights))
        totals = losses.new_zeros(size).index_add(0, cells, losses[known])
        means = totals / torch.bincount(cells, minlength=size).clamp_min(1)
        weights = torch.ones(size, device=losses.device)
        weights[: len(self.weights)] = self.weights.to(losses.device)
        weights = weights * torch.exp(self.rate * means.detach())
        # Scaled to a mean of 1: a cell first seen later starts with the weight the others started with.
        weights = weights / weights.mean()
        if torch.is_grad_enabled():
            # Without, a line search only asks: it would compare losses of other weights.
            self.weights = weights
        return (weights / size * means).sum()

    def _cells(self, targets: Tensor, groups: Tensor) -> Tensor:
        """Group x label; with several labels per sample, the group."""
        if self.multi_label:
            return groups
        if targets.shape[1] == 1:
            return groups * 2 + targets[:, 0].long()
        return groups * targets.shape[1] + targets.argmax(1)


def one_attribute(data: GroupedData) -> GroupedData:
    """The combinations of all attributes that occur, as one; unknown where any is."""
    if len(data.attributes) == 1:
        return data
    combined, ids = torch.unique(data.groups, dim=0, return_inverse=True)
    names = tuple(str(row) for row in combined.tolist())
    ids = torch.where((data.groups < 0).any(1), -1, ids)
    return replace(data, attributes=(Attribute("*".join(a.name for a in data.attributes), names),), groups=ids[:, None])
