"""A model of two classes whose outputs have the positive one first, read and tuned with it last.

What is last is what every rate, threshold and objective is about. Such a model's logits are turned where it is only
measured; where it is tuned, a copy's head is turned before and turned back after: both are exact.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bmft.data import GroupedData
from bmft.errors import ConfigError
from bmft.models.answers import Reading, forward_logits, mark, reading_of
from bmft.models.head import find_head
from bmft.models.modes import evaluating
from bmft.models.weights import copied, working_copy


def positive_first(model: nn.Module, data: GroupedData) -> bool:
    """Whether the outputs have the positive class of these data first; the one that is meant of many is its own."""
    return data.outputs_reversed and reading_of(model).output is None


def turned(logits: Tensor) -> Tensor:
    """Logits ``(n, 2)`` or ``(n, 1)`` of the other class.

    Raises:
        ConfigError: they are of more classes.

    >>> turned(torch.tensor([[1.0, 3.0]])), turned(torch.tensor([[2.0]]))
    (tensor([[3., 1.]]), tensor([[-2.]]))
    """
    if logits.shape[1] > 2:
        raise ConfigError(f"the positive class is one of two, but the model has {logits.shape[1]} outputs")
    return logits.flip(1) if logits.shape[1] == 2 else -logits


def turned_model(
    model: nn.Module, example: Any, *, head: str | None = None, reading: Reading | None = None
) -> nn.Module:
    """A copy of the model whose outputs are turned, by its head's weights.

    Args:
        model: of one output or two.
        example: inputs of a few rows.
        head: the module that makes the logits, if it is not the one found.
        reading: how its answer is read, where `settle` found that out on a copy.

    Raises:
        ConfigError: no exchange of the head's weights does that.
    """
    result, where = copied(model), next(model.parameters()).device
    before = _read_as(working_copy(model, where), reading)
    layer = find_head(before, example, name=head)
    turn_head(dict(result.named_parameters()), layer.parameters, layer.num_outputs)
    after = _read_as(working_copy(result, where), reading)
    with torch.no_grad(), evaluating(before), evaluating(after):
        wanted, found = turned(forward_logits(before, example)), forward_logits(after, example)
    if not torch.allclose(wanted, found, rtol=1e-4, atol=1e-5):
        raise ConfigError(
            f"the outputs of head {layer.name!r} cannot be exchanged to have the positive class last: name the "
            "second of --classes as --positive"
        )
    return result


def _read_as(model: nn.Module, reading: Reading | None) -> nn.Module:
    if reading is not None:
        mark(model, reading)
    return model


def turn_head(tensors: Mapping[str, Tensor], names: tuple[str, ...], num_outputs: int, *, sign: bool = True) -> None:
    """Change the head's `tensors`: two rows change places; of one row the sign, if `sign` says so."""
    with torch.no_grad():
        for name in names:
            if num_outputs == 2:
                tensors[name].copy_(tensors[name].flip(0))
            elif sign:
                tensors[name].neg_()
