"""The learning rate whose first step would lower the loss most."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from itertools import islice

import torch
from torch import Tensor, nn

from bmft.compute import AutocastMaker, Room, Share
from bmft.data import GroupBatch, GroupedData, stratified_batches
from bmft.training.loss import PooledLoss
from bmft.training.masked_step import SelectedWeights
from bmft.training.passes import finite, in_pieces, take_gradient
from bmft.training.settings import Step

_FIRST_RATE, _FACTORS = 1e-3, 16


def best_step(
    model: nn.Module,
    chosen: SelectedWeights,
    pooled: PooledLoss,
    data: GroupedData,
    step: Step,
    *,
    seed: int,
    batches: int = 4,
    autocast: AutocastMaker = nullcontext,
    room: Room | None = None,
) -> float:
    """The learning rate whose single step along the first gradient would lower the loss most; the weights stay.

    The step is the one that the optimizer takes first. From the rate at which the slope alone would take the loss to 0
    it goes up or down by ``step.rate_factor`` for as long as the loss falls; a parabola through the slope would be
    quicker, but the gap's loss has a kink where the gap is 0. No step is longer than a tenth of the weights' norm: on
    weights that hardly matter any step may seem to help. With ``step.rate_between`` the rate is where the parabola
    through the losses of the best and its neighbours, over the logarithm of the rate, is lowest: which of two near ones
    is ahead is noise.

    Args:
        batches: of `data`, balanced as `step` says, whose mean loss this is.
        seed: of their choice.
        autocast: the precision of the passes.
        room: how many samples fit at once.
    """
    room, factor = room or Room(), step.rate_factor
    generator = torch.Generator().manual_seed(seed)
    indices = stratified_batches(data, step.batch_size, generator=generator, balance=step.balance)
    rows = list(islice(indices, batches))
    device = chosen.vector.device
    taken = [(index.to(device), data.take(index[Share(len(index)).rows]).to(device)) for index in rows]
    untouched, gradient = _mean_loss_and_gradient(model, chosen, pooled, taken, autocast, room)
    direction = _first_direction(chosen, step, gradient)
    start = chosen.vector.detach().clone()
    longest = (float(start.norm()) + 1) / 10 / max(float(direction.norm()), 1e-30)

    @cache
    def loss_after(power: int) -> float:
        rate = _FIRST_RATE * factor**power
        if rate > longest:
            return math.inf
        chosen.write_back(start - rate * direction)
        return _mean_loss(model, pooled, taken, autocast, room)

    best = _first_power(untouched, float(direction.dot(gradient)), longest, factor)
    way = 1 if loss_after(best) < untouched and loss_after(best + 1) < loss_after(best) else -1
    while abs(best) < _FACTORS and (loss_after(best + way) < loss_after(best) or not loss_after(best) < untouched):
        best += way
    shift = _lowest(loss_after(best - 1), loss_after(best), loss_after(best + 1)) if step.rate_between else 0.0
    chosen.write_back(start)
    return min(float(_FIRST_RATE * factor ** (best + shift)), longest)


def _lowest(before: float, here: float, after: float) -> float:
    """Where the parabola through these values at -1, 0 and 1 is lowest; 0 where the middle one is not the least.

    A value that is not finite says only on which side it is not.

    >>> _lowest(3.0, 1.0, 1.0), _lowest(2.0, 1.0, 2.0), _lowest(2.0, 1.0, math.inf), _lowest(3.0, 2.0, 1.5)
    (0.5, 0.0, 0.0, 0.0)
    """
    bend = before - 2 * here + after
    lowest = here <= min(before, after) and math.isfinite(bend) and bend > 0
    return (before - after) / (2 * bend) if lowest else 0.0


def _first_power(loss: float, slope: float, longest: float, factor: float) -> int:
    """The power of `factor` where the search begins: below where a line of that slope is 0, or the longest."""
    rate = min(loss / slope if loss > 0 and slope > 0 else _FIRST_RATE, longest)
    power = math.floor(math.log(rate / _FIRST_RATE, factor)) if rate > 0 else -_FACTORS
    return max(1 - _FACTORS, min(_FACTORS - 1, power))


def _mean_loss_and_gradient(
    model: nn.Module,
    chosen: SelectedWeights,
    pooled: PooledLoss,
    batches: Sequence[tuple[Tensor, GroupBatch]],
    autocast: AutocastMaker,
    room: Room,
) -> tuple[float, Tensor]:
    loss, gradient = 0.0, torch.zeros_like(chosen.vector)
    logits = pooled.logits.clone()
    for index, batch in batches:
        pooled.put_back(logits)
        found = take_gradient(model, chosen, pooled, batch.inputs, index, autocast, room)
        loss += finite(float(found), 0) / len(batches)
        gradient += _gradient(chosen) / len(batches)
    pooled.put_back(logits)
    return loss, gradient


@torch.no_grad()
def _mean_loss(
    model: nn.Module,
    pooled: PooledLoss,
    batches: Sequence[tuple[Tensor, GroupBatch]],
    autocast: AutocastMaker,
    room: Room,
) -> float:
    logits, total = pooled.logits.clone(), 0.0
    for index, batch in batches:
        pooled.put_back(logits)
        share, length = Share(len(index)), len(batch.targets)
        with autocast():
            found = share.gather(room(partial(in_pieces, model, batch.inputs, length), length))
        total += pooled(found, index).item() / len(batches)
    pooled.put_back(logits)
    # An overflow is as bad a step as there is.
    return total if math.isfinite(total) else math.inf


def _first_direction(chosen: SelectedWeights, step: Step, gradient: Tensor) -> Tensor:
    """What the optimizer's first step at learning rate 1 takes away from the weights."""
    probe = nn.Parameter(chosen.vector.detach().clone())
    probe.grad = gradient.clone()
    step.make_optimizer([probe], 1.0).step()
    return (chosen.vector.detach() - probe.detach()) * chosen.amount


def _gradient(chosen: SelectedWeights) -> Tensor:
    return torch.zeros_like(chosen.vector) if chosen.vector.grad is None else chosen.vector.grad
