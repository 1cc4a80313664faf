"""The step rule: an optimizer's step changes only the weights a mask allows, and those only as far as it allows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bmft.errors import ConfigError
from bmft.masks import WeightMask


@contextmanager
def masked(optimizer: torch.optim.Optimizer, model: nn.Module, mask: WeightMask) -> Iterator[None]:
    r"""Inside, every step of `optimizer` changes `model` only as far as `mask` allows; for people with their own loop.

    After a step, a weight is :math:`\mathrm{lerp}(before, after, M)`: untouched to the last bit where :math:`M = 0`,
    the optimizer's own result where :math:`M = 1`. The step is masked, not the gradient, since weight decay and
    momentum move weights whose gradient is zero and Adam divides a scaled gradient by its own scale. Works with every
    torch optimizer, also under gradient scaling; the hooks are removed on the way out.

    Args:
        mask: fits the model's parameters by name and shape.

    Raises:
        MismatchError: the mask was made for another model.

    >>> net = nn.Linear(2, 1)
    >>> before = net.weight.detach().clone()
    >>> mask = WeightMask({"weight": torch.tensor([[True, False]]), "bias": torch.tensor([False])})
    >>> optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    >>> with masked(optimizer, net, mask):
    ...     net(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> (net.weight != before).tolist()
    [[True, False]]
    """
    parameters = dict(model.named_parameters())
    mask.check_fits({name: p.shape for name, p in parameters.items()})
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    amounts = {n: mask.tensors[n].to(p.device) for n, p in parameters.items() if id(p) in owned}
    kept: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, amount in amounts.items():
            parameter = parameters[name]
            kept[name] = parameter.detach().clone()
            if parameter.grad is not None:
                parameter.grad.masked_fill_(amount == 0, 0)

    def restore(*_: Any) -> None:
        with torch.no_grad():
            for name, amount in amounts.items():
                parameters[name].copy_(_blend(kept[name], parameters[name], amount))
        kept.clear()

    with optimizer.register_step_pre_hook(keep), optimizer.register_step_post_hook(restore):
        yield


def _blend(before: Tensor, after: Tensor, amount: Tensor) -> Tensor:
    """``lerp(before, after, amount)``, and exactly `before` where `amount` is 0, whatever `after` is there."""
    if amount.dtype == torch.bool:
        return torch.where(amount, after, before)
    # 0 * NaN is NaN: without the outer choice a non-finite step would reach frozen weights.
    return torch.where(amount > 0, torch.lerp(before, after, amount.to(before.dtype)), before)


class SelectedWeights:
    """The weights a mask selects, gathered into one 1-D parameter that an optimizer can own.

    An optimizer of this vector computes and keeps state for the selected weights only, and the step is the same to the
    last bit as `masked` gives for optimizers that treat every element alike (SGD, Adam, AdamW, RMSprop, Adagrad).
    The model itself is changed by `write_back` only.

    >>> net = nn.Linear(2, 1)
    >>> chosen = SelectedWeights(net, WeightMask.by_name(net, "weight"))
    >>> chosen.vector.shape
    torch.Size([2])
    """

    def __init__(self, model: nn.Module, mask: WeightMask) -> None:
        parameters = dict(model.named_parameters())
        mask.check_fits({name: p.shape for name, p in parameters.items()})
        self._parts: list[tuple[nn.Parameter, Tensor | None]] = []
        amounts: list[Tensor] = []
        for name, parameter in parameters.items():
            amount = _in_memory_order(mask.tensors[name].to(parameter.device), parameter)
            chosen = amount != 0
            if not bool(chosen.any()):
                continue
            index = None if bool(chosen.all()) else chosen.nonzero().squeeze(1)
            self._parts.append((parameter, index))
            amounts.append(amount if index is None else amount[index])
        if not self._parts:
            raise ConfigError("the mask is empty: no weight would move")
        self._amount = None if mask.hard else torch.cat([a.float() for a in amounts])
        self._lengths = [a.numel() for a in amounts]
        self.vector = nn.Parameter(self.values())
        self._gradient: Tensor | None = None

    @property
    def amount(self) -> Tensor | float:
        """How far each weight follows a step: the soft mask's values, 1 for a hard mask."""
        return 1.0 if self._amount is None else self._amount

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The model's parameters that hold a selected weight."""
        return [parameter for parameter, _ in self._parts]

    def values(self) -> Tensor:
        """The selected weights as the model has them now."""
        return torch.cat([self._pick(p.detach(), p, index) for p, index in self._parts])

    @staticmethod
    def _pick(tensor: Tensor, like: Tensor, index: Tensor | None) -> Tensor:
        flat = _in_memory_order(tensor, like)
        return flat if index is None else flat.index_select(0, index)

    def collect_gradients(self) -> None:
        """Set the vector's gradient from the gradients of the model's parameters; without one it is 0.

        The next call writes into the same memory.
        """
        if self._gradient is None:
            # One for all steps: to get memory for it anew takes ten times as long as to fill it.
            self._gradient = torch.empty_like(self.vector)
        for (parameter, index), part in zip(self._parts, torch.split(self._gradient, self._lengths), strict=True):
            if parameter.grad is None:
                part.zero_()
            elif index is None:
                part.copy_(_in_memory_order(parameter.grad, parameter))
            else:
                torch.index_select(_in_memory_order(parameter.grad, parameter), 0, index, out=part)
        self.vector.grad = self._gradient

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take one step of `optimizer`, scaled by a soft mask, and write the result into the model."""
        before = None if self._amount is None else self.vector.detach().clone()
        optimizer.step()
        if before is not None and self._amount is not None:
            with torch.no_grad():
                self.vector.copy_(_blend(before, self.vector, self._amount))
        self.write_back()

    @torch.no_grad()
    def write_back(self, values: Tensor | None = None) -> None:
        """Copy the vector, or `values` in its place, into the model's parameters."""
        source = self.vector if values is None else values
        for (parameter, index), part in zip(self._parts, torch.split(source, self._lengths), strict=True):
            flat = _in_memory_order(parameter.detach(), parameter)
            if index is None:
                flat.copy_(part)
            else:
                # No row twice, so a scatter is exact; it takes a fifth of the time of `flat[index] = part`.
                flat.scatter_(0, index, part)


def _in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` as 1-D in the order in which `like` lies in memory: a view when they have the same layout."""
    order = sorted(range(like.dim()), key=like.stride, reverse=True)
    return tensor.permute(order).reshape(-1)
