"""Forward and backward passes of a batch, in pieces where memory is short, shared between processes."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bmft.compute import AutocastMaker, Room, Share
from bmft.data import FLIPS, GroupedData, images_of, map_images, map_tensors
from bmft.errors import ConfigError, NonFiniteError
from bmft.models import forward_with_others, recomputing
from bmft.training.loss import PooledLoss
from bmft.training.masked_step import SelectedWeights


def take_gradient(
    model: nn.Module,
    chosen: SelectedWeights,
    pooled: PooledLoss,
    inputs: Any,
    index: Tensor,
    autocast: AutocastMaker,
    room: Room,
) -> Tensor:
    """Give the chosen weights the gradient of one batch's loss; returns the loss, which nothing waits for.

    The loss of all logits gives each logit's share of the gradient, which the passes of the pieces, and those of the
    other processes, carry on to the weights. `inputs` are this process's rows of the batch. What does not fit at once
    is run twice: without gradients for its logits, then piece by piece.
    """
    share = Share(len(index))
    length = share.rows.stop - share.rows.start

    def work(size: int) -> Tensor:
        for parameter in chosen.parameters:
            parameter.grad = None
        pieces = _pieces(inputs, length, size)
        again_in_backward = partial(recomputing, model, room.recompute)
        with torch.set_grad_enabled(len(pieces) == 1), autocast(), again_in_backward():
            logits = [forward_with_others(model, piece) for piece in pieces]
        known = share.gather(torch.cat(logits)).requires_grad_()
        value = pooled(known, index)
        (wanted,) = torch.autograd.grad(value, known)
        for piece, first, part in zip(pieces, logits, torch.split(wanted[share.rows], size), strict=True):
            with autocast(), again_in_backward():
                again = first if first.requires_grad else forward_with_others(model, piece)
            torch.autograd.backward(again, part)
        return value.detach()

    loss = room(work, length)
    chosen.collect_gradients()
    if chosen.vector.grad is not None:
        share.total(chosen.vector.grad)
    return loss


def _pieces(inputs: Any, length: int, size: int) -> list[Any]:
    def piece(rows: slice) -> Any:
        return map_tensors(lambda tensor: tensor[rows], inputs)

    return [piece(slice(start, start + size)) for start in range(0, length, size)]


def in_pieces(model: nn.Module, inputs: Any, length: int, size: int) -> Tensor:
    """Logits of a batch, `size` samples at once."""
    return torch.cat([forward_with_others(model, piece) for piece in _pieces(inputs, length, size)])


def finite(loss: float, epoch: int) -> float:
    """The loss itself.

    Raises:
        NonFiniteError: it is no number.
    """
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the loss is {loss} in epoch {epoch}: lower the learning rate, or check the inputs and weights for NaN"
        )
    return loss


def augmented(inputs: Any, augment: Sequence[str], share: Share, generator: torch.Generator) -> Any:
    """The images, each flipped at random as `augment` names."""
    if not augment:
        return inputs
    images = images_of(inputs)
    if not images or ("transpose" in augment and any(one.shape[-1] != one.shape[-2] for one in images)):
        raise ConfigError("augment needs square images of shape (n, c, h, w): turn it off for other inputs")
    for name in augment:
        # Drawn for the whole batch, so that it does not matter how many processes share it.
        chosen = (torch.rand(share.n, generator=generator) < 0.5)[share.rows].to(images[0].device)
        inputs = map_images(partial(_where, chosen[:, None, None, None], FLIPS[name]), inputs)
    return inputs


def _where(chosen: Tensor, flip: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.where(chosen, flip(images), images)


@torch.no_grad()
def logits_of(
    model: nn.Module, data: GroupedData, batch_size: int, device: torch.device, autocast: Callable[[], Any]
) -> Tensor:
    """Logits of every sample, without gradients."""
    share = Share(len(data))
    with autocast():
        batches = share.of(data).batches(batch_size)
        parts = [forward_with_others(model, batch.to(device).inputs).float() for batch in batches]
    return share.gather(torch.cat(parts))
