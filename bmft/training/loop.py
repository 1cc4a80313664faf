"""Move only the weights a mask allows: the step rule, the extractor step and the head step."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType

import torch
from torch import nn

from bmft.compute import AutocastMaker, Room, Share
from bmft.data import GroupedData, stratified_batches
from bmft.errors import NonFiniteError
from bmft.masks import WeightMask
from bmft.models import Tail, evaluating, reading_of, trainable
from bmft.training.line_search import best_step
from bmft.training.loss import Loss, PooledLoss
from bmft.training.masked_step import SelectedWeights
from bmft.training.passes import augmented, finite, logits_of, take_gradient
from bmft.training.settings import Step
from bmft.training.state import EpochKeeper, Noted, TrainingState

_log = logging.getLogger(__name__)
AfterEpoch = Callable[[int, float], bool]
SETBACKS = 3  # as often a rate that was found may prove too large before the training ends


def tune(
    model: nn.Module,
    data: GroupedData,
    loss: Loss,
    mask: WeightMask,
    step: Step,
    *,
    generator: torch.Generator,
    multi_label: bool = False,
    autocast: AutocastMaker = nullcontext,
    after_epoch: AfterEpoch = lambda epoch, loss: False,
    tail: Tail | None = None,
    room: Room | None = None,
    keeper: EpochKeeper | None = None,
    logits: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
    remark: Callable[[str], None] = _log.warning,
) -> None:
    """Change `model`: minimise `loss` on `data`, moving only the weights of `mask`.

    1. The weights of the mask are gathered into one vector, which the optimizer owns.
    2. Every batch is stratified by group and label.
    3. The losses of an epoch are checked to be finite at its end; else what moved in it is taken back.
    4. After every epoch ``after_epoch(epoch, mean loss)`` is called; if it returns true, training stops.

    Given the `tail` of the model whose activations the data hold, only that runs. Where `room` is short of a batch, its
    gradient is put together from pieces, exactly: the gap stays that of all its samples. Given a `keeper`, every epoch
    is kept, and the training goes on from what it holds; where an optimizer, an objective or statistics may hold more
    than it keeps, the training starts over. `logits` ``(n, outputs)`` are the model's of every sample, where they are
    known and need not be computed. The loss's order term compares with the logits `start` ``(n, outputs)``, by
    default those at the beginning. Training and gradient flags of the model are as before on the way out, also on
    failure.

    Where a loss or a logit is not finite, the training goes back to the end of the epoch before. If the learning rate
    was found by `best_step`, it goes on from there at a third of it, up to three times; else it ends there. `remark` is
    told in words.

    Raises:
        NonFiniteError: a loss or a logit is not finite before any epoch was finished; the weights are as they were.
        MismatchError: the mask was made for another model.
    """
    chosen = SelectedWeights(model, mask)
    device, runs, room = chosen.vector.device, tail or model, room or Room()
    with trainable(model, chosen.parameters), evaluating(model, step.norm_stats):
        plain = isinstance(step.optimizer, str) and isinstance(loss.objective, FunctionType)
        keeper = keeper if plain and step.norm_stats == "frozen" else None
        kept = keeper.read() if keeper else None
        if kept:
            logits = kept["logits"].to(device)
        elif logits is None:
            logits = room(lambda size: logits_of(runs, data, size, device, autocast), step.batch_size)
        start = kept["start"].to(device) if kept else start
        columns = None if reading_of(runs).output is None else 1
        pooled = PooledLoss(loss, data, logits, multi_label, start, columns, views=step.copies)
        rate = (
            float(kept["numbers"][0])
            if kept
            else step.lr
            or step.trust
            * best_step(runs, chosen, pooled, data, step, seed=generator.initial_seed(), autocast=autocast, room=room)
        )
        state = TrainingState(chosen, step.make_optimizer([chosen.vector], rate), pooled, generator, rate)
        if kept:
            state.load_state(kept)
        while state.epoch < step.epochs and not state.stopped:
            good, statistics = state.noted(), _statistics(model, step)
            try:
                mean = _epoch(runs, state, data, step, autocast, room)
                chosen.write_back(state.average)
                state.stopped = after_epoch(state.epoch, mean)
                chosen.write_back()
            except NonFiniteError as error:
                for name, value in statistics.items():
                    model.get_buffer(name).copy_(value)
                _set_back(state, good, error, found=plain and not step.lr, remark=remark)
                continue
            if keeper:
                keeper.write(state.tensors())
        chosen.write_back(state.average)


def _epoch(
    runs: nn.Module, state: TrainingState, data: GroupedData, step: Step, autocast: AutocastMaker, room: Room
) -> float:
    """Take the steps of one more epoch; returns the mean loss."""
    state.epoch += 1
    if step.strengths:
        state.pooled.bias_weight = step.strengths[state.epoch - 1]
    state.pooled.refresh()
    device, generator = state.chosen.vector.device, state.generator
    total = torch.zeros((), device=device)
    batches = list(stratified_batches(data, step.batch_size, generator=generator, balance=step.balance))
    batches = batches[: math.ceil(len(batches) * step.share)]
    own = (index[Share(len(index)).rows] for index in batches)
    for index, batch in zip(batches, data.iterate(own), strict=True):
        inputs = augmented(batch.to(device).inputs, step.augment, Share(len(index)), generator)
        at = index.to(device)
        total = total + take_gradient(runs, state.chosen, state.pooled, inputs, at, autocast, room)
        state.step(step.average, step.warmup)
    # A device is asked once an epoch: what a loss that was none has moved by then is taken back.
    return finite(float(total) / len(batches), state.epoch)


def _set_back(
    state: TrainingState, good: Noted, error: NonFiniteError, *, found: bool, remark: Callable[[str], None]
) -> None:
    """Go back to the last good epoch, to go on from there at a smaller rate or, if it was none of ours, to end."""
    rate, epoch = state.rate, state.epoch
    again = found and state.setbacks < SETBACKS
    state.go_back(good, rate / 3 if again else rate)
    if not again and not good.epoch:
        raise error
    state.setbacks, state.stopped = state.setbacks + again, not again
    then = f"taken back, on at {state.rate:.2g}" if again else f"ended with epoch {good.epoch}; a lower --lr goes on"
    remark(f"in epoch {epoch} the training diverged at the learning rate {rate:.2g}: {then}")


def _statistics(model: nn.Module, step: Step) -> dict[str, torch.Tensor]:
    """Copies of the running statistics, where they move."""
    return {name: value.clone() for name, value in model.named_buffers()} if step.norm_stats == "update" else {}
