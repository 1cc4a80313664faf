"""FairPrune: zero the weights that matter more to everybody else than to the worst-off group."""

import torch
from torch import Tensor, nn

from bmft import fairness
from bmft.errors import GroupError
from bmft.masks import WeightMask, weight_importances
from bmft.methods.run import Run
from bmft.training import mean_of_known

PRUNED = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35)  # fractions that select is offered

PRUNE_BETA = 0.33  # weight of the better-off in the saliency


def fairprune(run: Run) -> WeightMask:
    r"""Pruning by group saliency (FairPrune; Wu, Zeng, Xu, Shi and Hu 2022), without retraining.

    A weight's saliency for a group is the rise of its loss if the weight were zero, to second order:
    :math:`s = \tfrac12 h w^2` (LeCun, Denker and Solla 1990), with the squared gradient for the curvature h. Zeroed
    are the extractor's weights with the smallest :math:`s_{worse} - \beta s_{better}`: those that matter to
    everybody else more than to the group whose loss is largest. Select is offered several fractions.
    """
    worse, better = _worse_and_better(run)
    with run.course.timed("importance"):
        difference = {
            name: (worse_off - PRUNE_BETA * better_off[name]).cpu()
            for better_off in [_saliency(run, better)]
            for name, worse_off in _saliency(run, worse).items()
        }
    order = torch.cat([difference[name].flatten() for name in run.body]).argsort()
    mask = run.body_mask()
    for number, fraction in enumerate(PRUNED, 1):
        mask = _first(run, order, max(1, round(fraction * len(order))))
        with torch.no_grad():
            for name in run.body:
                parameter = run.model.get_parameter(name)
                parameter.masked_fill_(mask.tensors[name].to(parameter.device), 0)
        run.try_out(number, len(PRUNED))
    return mask


def _worse_and_better(run: Run) -> tuple[Tensor, Tensor]:
    """Rows of the fit set: the group with the largest mean loss, and everybody else of that attribute."""
    scores = run.predict(run.model, run.fit).scores
    targets = fairness.one_vs_rest(run.fit.targets, scores.shape[1]).double()
    losses = nn.functional.binary_cross_entropy(torch.from_numpy(scores), targets.clamp(min=0), reduction="none")
    loss = mean_of_known(losses, targets)
    found: list[tuple[float, Tensor, Tensor]] = []
    for column in run.fit.groups.T:
        for group in torch.unique(column[column >= 0]):
            rows = column == group
            found.append((float(loss[rows].mean()), rows, (column >= 0) & ~rows))
    comparable = [entry for entry in found if bool(entry[2].any())]
    if not comparable:
        raise GroupError("fairprune compares two groups, and the fit set has one")
    return max(comparable, key=lambda entry: entry[0])[1:]


def _saliency(run: Run, rows: Tensor) -> dict[str, Tensor]:
    """Half the mean squared gradient of these rows' cross-entropy, over batches of 8, times the weight squared."""
    (scores,) = weight_importances(
        run.model,
        [fairness.cross_entropy],
        run.fit.subset(rows.nonzero()[:, 0]),
        score=_half_curvature,
        exact=False,
        batch_size=8,
        multi_label=run.conditions.multi_label,
        autocast=run.autocast,
    )
    return dict(scores)


def _half_curvature(weight: Tensor, gradient: Tensor) -> Tensor:
    return 0.5 * (weight * gradient).square()


def _first(run: Run, order: Tensor, count: int) -> WeightMask:
    """The first `count` weights of the body in this order."""
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:count]] = True
    shapes = {name: parameter.shape for name, parameter in run.model.named_parameters()}
    parts = dict(zip(run.body, torch.split(chosen, [shapes[name].numel() for name in run.body]), strict=True))
    return WeightMask(
        {n: parts[n].view(s) if n in parts else torch.zeros(s, dtype=torch.bool) for n, s in shapes.items()}
    )
