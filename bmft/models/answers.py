"""Logits out of whatever a model's forward pass returns."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from bmft.errors import ArchitectureError


def forward_logits(model: nn.Module, inputs: Any) -> Tensor:
    """The model's logits for a batch, whatever shape its answer has.

    Taken are a tensor, an object with ``.logits`` (Hugging Face, Inception in training mode), a dict with
    ``"logits"``, and a tuple or list that begins with one of these.

    Args:
        model: called as ``model(inputs)``.
        inputs: a tensor of n samples; a dict is passed by keyword, a tuple or list by position.

    Returns:
        ``(n, outputs)``.

    Raises:
        ArchitectureError: the answer holds no logits, or not one row of them per sample.

    >>> import torch
    >>> forward_logits(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), torch.zeros(3, 4)).shape
    torch.Size([3, 1])
    """
    if isinstance(inputs, Mapping):
        answer = model(**inputs)
    elif isinstance(inputs, tuple | list):
        answer = model(*inputs)
    else:
        answer = model(inputs)
    return _rows(_logits_in(answer), next(tensors_in(inputs)).shape[0])


def _logits_in(answer: Any) -> Tensor:
    if isinstance(answer, Tensor):
        return answer
    if hasattr(answer, "logits"):
        return _logits_in(answer.logits)
    if isinstance(answer, Mapping) and "logits" in answer:
        return _logits_in(answer["logits"])
    if isinstance(answer, tuple | list) and answer:
        return _logits_in(answer[0])
    raise ArchitectureError(
        f"the model answers with a {type(answer).__name__}: expected a tensor of logits, an object or "
        "dict with `logits`, or a tuple that begins with one. Wrap the model in one that does."
    )


def _rows(logits: Tensor, n: int) -> Tensor:
    rows = logits.shape[:1] == (n,)
    if logits.dim() == 2 and rows:
        return logits
    # A model that squeezes gives (n,) for one output, (outputs,) or () for a single sample.
    squeezed = logits.dim() < 2 and (rows or n == 1)
    pooled = logits.dim() > 2 and rows and logits[0].numel() == logits.shape[1]
    if not squeezed and not pooled:
        raise ArchitectureError(
            f"the model answers with shape {tuple(logits.shape)} for {n} samples: expected ({n}, outputs)"
        )
    return logits.reshape(n, -1)


def tensors_in(inputs: Any) -> Iterator[Tensor]:
    """Every tensor of a nested input."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, Mapping):
        yield from tensors_in(list(inputs.values()))
    elif isinstance(inputs, tuple | list):
        for value in inputs:
            yield from tensors_in(value)
