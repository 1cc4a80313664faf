"""Move only the weights a mask allows: the step rule, the extractor step and the head step."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType

import torch
from torch import nn

from bmft.compute import AutocastMaker, Room, Share
from bmft.data import GroupedData, stratified_batches
from bmft.masks import WeightMask
from bmft.models import Tail, evaluating, trainable
from bmft.training.line_search import best_step
from bmft.training.loss import Loss, PooledLoss
from bmft.training.masked_step import SelectedWeights
from bmft.training.passes import augmented, logits_of, take_gradient
from bmft.training.settings import Step
from bmft.training.state import EpochKeeper, TrainingState

AfterEpoch = Callable[[int, float], bool]


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
) -> None:
    """Change `model`: minimise `loss` on `data`, moving only the weights of `mask`.

    1. The weights of the mask are gathered into one vector, which the optimizer owns.
    2. Every batch is stratified by group and label. Its loss is checked to be finite before anything moves.
    3. After every epoch ``after_epoch(epoch, mean loss)`` is called; if it returns true, training stops.

    Given the `tail` of the model whose activations the data hold, only that runs. Where `room` is short of a batch, its
    gradient is put together from pieces, exactly: the gap stays that of all its samples. Given a `keeper`, every epoch
    is kept, and the training goes on from what it holds; where an optimizer, an objective or statistics may hold more
    than it keeps, the training starts over. Training and gradient flags of the model are as before on the way out, also
    on failure.

    Raises:
        NonFiniteError: a loss is not finite; the model keeps the weights of the last good step.
        MismatchError: the mask was made for another model.
    """
    chosen = SelectedWeights(model, mask)
    device, runs, room = chosen.vector.device, tail or model, room or Room()
    with trainable(model, chosen.parameters), evaluating(model, step.norm_stats):
        plain = isinstance(step.optimizer, str) and isinstance(loss.objective, FunctionType)
        keeper = keeper if plain and step.norm_stats == "frozen" else None
        kept = keeper.read() if keeper else None
        logits = (
            kept["logits"].to(device)
            if kept
            else room(lambda size: logits_of(runs, data, size, device, autocast), step.batch_size)
        )
        pooled = PooledLoss(loss, data, logits, multi_label, kept["start"].to(device) if kept else None)
        rate = (
            float(kept["numbers"][0])
            if kept
            else step.lr
            or step.trust * best_step(runs, chosen, pooled, data, step, seed=generator.initial_seed(), room=room)
        )
        state = TrainingState(chosen, step.make_optimizer([chosen.vector], rate), pooled, generator, rate)
        if kept:
            state.load_state(kept)
        while state.epoch < step.epochs and not state.stopped:
            state.epoch += 1
            batches = list(stratified_batches(data, step.batch_size, generator=generator, balance=step.balance))
            batches = batches[: math.ceil(len(batches) * step.share)]
            total = 0.0
            own = (index[Share(len(index)).rows] for index in batches)
            for index, batch in zip(batches, data.iterate(own), strict=True):
                inputs = augmented(batch.to(device).inputs, step.augment, Share(len(index)), generator)
                at = index.to(device)
                total += take_gradient(runs, chosen, pooled, inputs, at, autocast, room, state.epoch)
                state.step(step.average, step.warmup)
            chosen.write_back(state.average)
            state.stopped = after_epoch(state.epoch, total / len(batches))
            chosen.write_back()
            if keeper:
                keeper.write(state.tensors())
        chosen.write_back(state.average)
