"""Inputs of any modality in memory: a tensor, or a dict or tuple of tensors; and the ids beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables import Attribute

Inputs: TypeAlias = Any
"""A tensor ``(n, ...)``, or a dict or tuple of them (for ``model(**inputs)`` or ``model(*inputs)``)."""


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Apply `function` to a tensor, or to each tensor of a dict or tuple.

    >>> map_tensors(torch.sum, {"ids": torch.ones(3), "mask": torch.zeros(3)})
    {'ids': tensor(3.), 'mask': tensor(0.)}
    """
    if isinstance(inputs, Mapping):
        return {key: map_tensors(function, value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map_tensors(function, value) for value in inputs)
    return function(inputs)


def leaves(inputs: Inputs) -> Iterator[Tensor]:
    """Every tensor of a nested input."""
    if isinstance(inputs, (Mapping, tuple, list)):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from leaves(value)
    elif isinstance(inputs, Tensor):
        yield inputs


def images_of(inputs: Inputs) -> list[Tensor]:
    """The images ``(n, c, h, w)`` among inputs: of several inputs, such as an image and a table, those alone."""
    return [tensor for tensor in leaves(inputs) if tensor.dim() == 4]


def map_images(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Apply `function` to the images among inputs; what stands beside them stays.

    >>> images, table = map_images(lambda image: image.flip(-1), (torch.eye(2)[None, None], torch.ones(1, 3)))
    >>> images.flatten(), table
    (tensor([0., 1., 1., 0.]), tensor([[1., 1., 1.]]))
    """
    return map_tensors(lambda tensor: function(tensor) if tensor.dim() == 4 else tensor, inputs)


def as_inputs(inputs: Any) -> Inputs:
    """Arrays and tensors as detached CPU tensors; floating point becomes float32.

    Raises:
        DataError: something else than tensors, arrays, and dicts, tuples or lists of them.
    """
    if isinstance(inputs, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(inputs).detach().cpu()
        return tensor.float() if tensor.is_floating_point() else tensor
    if isinstance(inputs, Mapping):
        return {str(key): as_inputs(value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(as_inputs(value) for value in inputs)
    raise DataError(f"inputs hold a {type(inputs).__name__}; expected tensors, arrays, or dicts or tuples of them.")


def concatenate(parts: Sequence[Inputs]) -> Inputs:
    """Batches of inputs as one.

    Raises:
        DataError: samples differ in shape from batch to batch.
    """
    if isinstance(parts[0], Mapping):
        return {key: concatenate([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(concatenate(values) for values in zip(*parts, strict=True))
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise DataError(f"inputs change shape from batch to batch: {sorted(shapes)[:3]}; pad them to one shape.")
    return torch.cat(list(parts))


def whole_numbers(values: npt.ArrayLike | Tensor, name: str) -> Tensor:
    """``(n,)`` or ``(n, k)`` int64 from anything whose values are whole.

    Raises:
        DataError: fractions, text or another number of axes.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    expected = f"{name} {array.shape} of {array.dtype}: expected whole numbers, (n,) or (n, k)"
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2):
        raise DataError(f"{expected}.")
    if array.dtype.kind == "f" and not np.all(np.isfinite(array) & (array == np.rint(array))):
        raise DataError(f"{expected}, not fractions or NaN.")
    return torch.from_numpy(array.astype(np.int64))


def known_targets(targets: npt.ArrayLike | Tensor) -> Tensor:
    """``(n,)`` or ``(n, labels)`` class numbers or 0/1 as int64, with -1 where one is -1 or NaN: not known.

    Raises:
        DataError: fractions or text; or -1 and 1 and no 0, where -1 may be the negative class.
    """
    array = targets.detach().cpu().numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), -1, array)
    found = whole_numbers(array, "targets")
    for column in found.T if found.ndim == 2 else (found,):
        if set(column.unique().tolist()) == {-1, 1}:
            raise DataError("targets are -1 and 1: give 0 for the negative class, as -1 is a label that is not known.")
    return found


def class_names(y: Tensor, classes: Sequence[str] | None, task: str | None) -> tuple[str, tuple[str, ...]]:
    """The task that targets ``(n,)`` or ``(n, labels)`` make, and a name per class or label.

    Raises:
        DataError: the targets, the task and the classes do not fit each other.
    """
    several, low, high = y.ndim == 2, int(y.min()), int(y.max())
    number = y.shape[1] if several else max(high + 1, 2)
    names = tuple(map(str, classes)) if classes is not None else tuple(str(i) for i in range(number))
    fits = low >= -1 and high <= 1 and len(names) == number if several else low >= 0 and number <= len(names)
    if not fits:
        expected = f"0/1 for {number} labels" if several else f"class numbers from 0 to {len(names) - 1}"
        raise DataError(f"targets run from {low} to {high} with classes {names}; expected {expected}.")
    found = "multilabel" if several else "binary" if len(names) == 2 else "multiclass"
    if task not in (None, found):
        raise DataError(f"task {task!r} does not fit targets {tuple(y.shape)} with classes {names}: {found}.")
    return found, names


def is_first(names: Sequence[str], positive: str | None) -> bool:
    """Whether `positive` is the first of two classes.

    Raises:
        ConfigError: it is neither, or there are not two.
    """
    if positive is not None and (len(names) != 2 or positive not in names):
        raise ConfigError(f"positive {positive!r}: expected one of two classes; they are {', '.join(names)}.")
    return positive == names[0]


def name_attributes(
    ids: Tensor, given: Sequence[Attribute | str] | Mapping[str, Sequence[str]] | None
) -> tuple[Attribute, ...]:
    """An `Attribute` per column of ``(n, attributes)`` group ids.

    Raises:
        GroupError: the number of attributes, or an id, does not fit.
    """
    if given is None:
        given = ["group", *(f"group{i}" for i in range(1, ids.shape[1]))]
    entries = [Attribute(k, tuple(v)) for k, v in given.items()] if isinstance(given, Mapping) else list(given)
    if len(entries) != ids.shape[1]:
        raise GroupError(f"{len(entries)} attributes were named for {ids.shape[1]} column(s) of group ids.")
    return tuple(_name_groups(column, entry) for column, entry in zip(ids.T, entries, strict=True))


def _name_groups(ids: Tensor, entry: Attribute | str) -> Attribute:
    low, high = int(ids.min()), int(ids.max())
    if isinstance(entry, str):
        entry = Attribute(entry, tuple(str(i) for i in range(max(high + 1, 1))))
    if low < -1 or high >= len(entry.groups):
        raise GroupError(
            f"attribute {entry.name!r}: group ids run from {low} to {high}; expected -1 (unknown) or 0 to "
            f"{len(entry.groups) - 1} for {entry.groups}."
        )
    return entry
