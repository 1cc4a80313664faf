"""Activation checkpointing: a network's blocks keep only what enters them and run again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bmft.models.block_structure import repeated_blocks


@contextmanager
def recomputing(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Inside, a forward pass with gradients keeps what enters each block of `model`, no more (Chen et al. 2016).

    The backward pass, which may come later, runs the block again: the same gradients for a third more time. A network
    without blocks of several layers runs as ever, as does a block that somebody hooked into. What counts its passes
    (normalization statistics in training) would count them twice.

    >>> net = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)) for _ in range(3)))
    >>> with recomputing(net):
    ...     loss = net(torch.ones(1, 2)).sum()
    >>> loss.backward()
    """
    changed = [module for module in (repeated_blocks(model) if on else ()) if "forward" not in module.__dict__]
    for module in changed:
        # An attribute of the instance comes before the class's method, and is gone with `pop`.
        module.forward = _run_again(module, module.forward)
    try:
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def _run_again(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    alone = _Alone(block, forward)

    # Of the block itself the hooks have run when its forward begins.
    def hooked(module: nn.Module) -> bool:
        own = "forward" in module.__dict__ or module._forward_pre_hooks or module._forward_hooks
        return module is not block and bool(own)

    def run(*arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled() or any(map(hooked, block.modules())):
            return forward(*arguments, **keywords)
        # Whatever weights it has now: outside of `functional_call`, where it runs again, it has its own.
        tensors = {f"block.{name}": tensor for name, tensor in [*block.named_parameters(), *block.named_buffers()]}

        def again(*inputs: Any, **options: Any) -> Any:
            return torch.func.functional_call(alone, tensors, inputs, options)

        return checkpoint(again, *arguments, use_reentrant=False, **keywords)

    return run


class _Alone(nn.Module):
    """A block's forward pass without the block's hooks."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.block, self._run = block, forward

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """What the block gives."""
        return self._run(*arguments, **keywords)
