"""Which flips a network was trained with, told from how it answers flipped images."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from bmft._common import Assumption
from bmft.compute import AT_ONCE, AutocastMaker
from bmft.data import GroupedData, images_of
from bmft.models import evaluating, forward_logits

ALIKE = 0.9  # correlation of the logits of images and of flipped images
ENOUGH = 256  # images that are looked at


def told_views(asked: Sequence[str], known: Sequence[str]) -> tuple[Assumption, ...]:
    """What is to be said of the flips that `known_views` found.

    >>> told_views(("auto",), ("hflip",))[0].value
    'step 1 also sees the fit images flipped (hflip)'
    """
    if tuple(asked) != ("auto",) or not known:
        return ()
    value = f"step 1 also sees the fit images flipped ({', '.join(known)})"
    return (Assumption("views", value, "how alike the network answers them", "--views"),)


@torch.no_grad()
def known_views(
    model: nn.Module, data: GroupedData, asked: Sequence[str], *, autocast: AutocastMaker = nullcontext
) -> tuple[str, ...]:
    """The flips that step 1 sees beside the images: those asked for; of ``auto`` those the network answers alike.

    A network that was trained with flipped images gives them nearly the same logits; one for chest X-rays, which was
    not, does not, and flipped images would teach it something else.
    """
    if tuple(asked) != ("auto",):
        return tuple(flip for flip in asked if flip != "none")
    sample = data.subset(torch.arange(len(data))[:: math.ceil(len(data) / ENOUGH)])
    if not images_of(sample.take(slice(0, 1)).inputs):
        return ()
    logits, twins = partial(_logits, model, autocast), torch.arange(len(sample), 2 * len(sample))
    plain = logits(sample)
    flipped = {flip: logits(sample.with_views([flip]).subset(twins)) for flip in ("hflip", "vflip")}
    return tuple(flip for flip, found in flipped.items() if _correlation(plain, found) >= ALIKE)


def _logits(model: nn.Module, autocast: AutocastMaker, data: GroupedData) -> Tensor:
    device = next(model.parameters()).device
    with evaluating(model), autocast():
        return torch.cat([forward_logits(model, batch.to(device).inputs).double() for batch in data.batches(AT_ONCE)])


def _correlation(first: Tensor, second: Tensor) -> float:
    """0 where it is not defined."""
    first, second = first - first.mean(0), second - second.mean(0)
    spread = first.norm() * second.norm()
    return float((first * second).sum() / spread) if spread > 0 else 0.0
