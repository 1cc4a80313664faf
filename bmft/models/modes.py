"""Guards that put a model's training and gradient flags back on the way out, also on failure."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module, norm_stats: str = "frozen") -> Iterator[None]:
    """Inside, the model is in evaluation mode; with ``norm_stats="update"`` but for its normalization layers.

    >>> net = nn.Dropout()
    >>> with evaluating(net):
    ...     net.training
    False
    >>> net.training
    True
    """
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        if norm_stats == "update":
            for module in before:
                module.training = hasattr(module, "running_mean")
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def trainable(model: nn.Module, parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Inside, only `parameters` ask for gradients, so that nothing below the first of them is computed backwards.

    Their gradients are gone afterwards.
    """
    before = {p: p.requires_grad for p in model.parameters()}
    wanted = set(parameters)
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in wanted)
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)
            parameter.grad = None
