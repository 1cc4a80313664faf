"""The operating point: how many of the fit set the original calls positive, and what holds a head to that."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from bmft import fairness


@dataclass(frozen=True)
class OperatingPoint:
    """How many of the fit set the original calls positive, ``(K,)``, and above which probability.

    A gap also shrinks when fewer of everybody are called positive, which is no help.
    """

    positive: torch.Tensor
    threshold: float

    @classmethod
    def of(cls, logits: torch.Tensor, threshold: float, *, multi_label: bool) -> Self | None:
        """That of these logits ``(n, K)``; None for classes, which have no such point."""
        if logits.shape[1] > 2 and not multi_label:
            return None
        probabilities = fairness.probabilities(logits, multi_label=multi_label)
        return cls((probabilities >= threshold).sum(0), threshold)

    @contextmanager
    def held(self, bias: nn.Parameter, place: int | None, logits: torch.Tensor) -> Iterator[None]:
        """Inside, the bias is shifted so that as many of these logits ``(n, K)`` are positive as the original's were.

        `place` is that of the one output that is meant, where it is one of many.
        """
        if logits.shape[1] > len(self.positive):
            logits = logits[:, 1:] - logits[:, :1]
        shift = _shift(logits, self.positive, self.threshold).to(bias)
        trained = bias.detach().clone()
        own = bias.detach() if place is None else bias.detach()[place, None]
        # Of two outputs the second's: the first is its reference.
        shift = torch.cat([shift.new_zeros(len(own) - len(shift)), shift])
        try:
            with torch.no_grad():
                own.add_(shift)
            yield
        finally:
            with torch.no_grad():
                bias.copy_(trained)


def _shift(logits: torch.Tensor, positive: torch.Tensor, threshold: float) -> torch.Tensor:
    """What to add to each column of ``(n, K)`` for `positive` of them to reach the threshold; 0 for none or all."""
    descending = logits.sort(0, descending=True).values
    inside = (positive > 0) & (positive < len(logits))
    place = positive.clamp(1, len(logits) - 1)[None]
    cut = (descending.gather(0, place - 1) + descending.gather(0, place))[0] / 2
    return torch.where(inside, math.log(threshold / (1 - threshold)) - cut, torch.zeros_like(cut))
