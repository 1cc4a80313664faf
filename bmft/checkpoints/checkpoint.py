"""A checkpoint as it lies in its file: the model's weights, found, and put back in their place."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmft._assumed import Assumption
from bmft.checkpoints.formats import WeightFile, read_file, write_file
from bmft.checkpoints.layout import (
    at,
    check_tensors,
    find_entry,
    named_arch,
    plain_values,
    prefixes,
    refilled,
    same_bits,
    tensors_of,
    what_is_there,
)
from bmft.errors import CheckpointError, MismatchError, NonFiniteError
from bmft.models import fit_of, shapes_of


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file of weights and where in it the model is.

    Attributes:
        path: the file.
        container: what kind of file it is.
        entry: where the weights are in a dict, such as ``state_dict`` or ``ema/state_dict``; None at the top.
        prefix: what precedes every weight's name, such as ``module.``.
        state: the model's tensors by name, without the prefix, in the file's order and precision.
        arch: the architecture that the file itself names, if it does.
        metadata: the plain values beside the weights (epoch, learning rate, safetensors' own metadata).
        content_hash: SHA-256 of the file.
        assumed: what was inferred on the way from the file to the model.
    """

    path: Path
    container: str
    entry: str | None
    prefix: str
    state: Mapping[str, Tensor]
    arch: str | None
    metadata: Mapping[str, Any]
    content_hash: str
    file: WeightFile = field(repr=False)
    assumed: tuple[Assumption, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights' names and shapes: equal for checkpoints of one network."""
        return fingerprint(self.state)

    @property
    def module(self) -> nn.Module | None:
        """The model itself, where a trusted file holds one rather than its weights."""
        return self._found if isinstance(self._found, nn.Module) else None

    def under(self, names: Iterable[str]) -> "Checkpoint":
        """The same with the prefix under which most of `names`, such as a state dict's, are found."""
        tensors, wanted = tensors_of(self._found), set(names)
        counts = Counter(
            key[:start]
            for key in tensors
            for start in (0, *(place + 1 for place, letter in enumerate(key) if letter == "."))
            if key[start:] in wanted
        )
        return self._with_prefix(max([self.prefix, *sorted(counts)], key=counts.__getitem__))

    def unwrapped(self) -> list["Checkpoint"]:
        """The same with every prefix that wrappers may have put there, the longest first."""
        return [self._with_prefix(prefix) for prefix in reversed(prefixes(tensors_of(self._found)))]

    def refilled(self, state: Mapping[str, Tensor]) -> Any:
        """What the file holds, with `state` in the place of the weights."""
        return refilled(self.file.content, self._keys, {self.prefix + name: state[name] for name in state})

    def _with_prefix(self, prefix: str) -> "Checkpoint":
        tensors = tensors_of(self._found)
        state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        return replace(self, prefix=prefix, state=state)

    @property
    def _keys(self) -> tuple[str, ...]:
        return tuple(self.entry.split("/")) if self.entry else ()

    @property
    def _found(self) -> Any:
        return at(self.file.content, self._keys)


def read_checkpoint(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> Checkpoint:
    """Read a file of weights: what torch.save writes (bare, under a usual entry, Lightning's) or safetensors.

    Args:
        path: the file; its kind is told by its content.
        trust_pickle: allow a file that holds more than plain tensors (a whole model, a Namespace), which runs
            code.

    Raises:
        UntrustedPickleError: the file holds more and is not trusted; nothing of it has run.
        CheckpointError: it is no such file, is damaged, or holds no weights that could be tuned.
    """
    path = Path(path)
    file = read_file(path, trust_pickle=trust_pickle)
    keys = find_entry(file.content)
    if keys is None:
        raise CheckpointError(f"{path} holds no weights by name: {what_is_there(file.content)}")
    check_tensors(path, at(file.content, keys))
    beside = file.content if keys else file.metadata
    checkpoint = Checkpoint(
        path=path,
        container=file.kind,
        entry="/".join(keys) or None,
        prefix="",
        state={},
        arch=named_arch(beside),
        metadata=plain_values(beside),
        content_hash=file.content_hash,
        file=file,
    )
    return checkpoint.unwrapped()[0]


def write_checkpoint(checkpoint: Checkpoint, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write `state` in the checkpoint's place: everything else that came in goes out as it was.

    Container, entry, prefix, key order, precision, tied and strided weights and unrelated entries are those
    of the file that was read; values that did not change keep their bits. The file appears whole or not at
    all, and the same content gives the same bytes.

    Args:
        checkpoint: from `read_checkpoint`.
        state: name -> tensor, without the prefix, such as ``model.state_dict()``.
        path: where to write.

    Raises:
        MismatchError: `state` has other names or shapes, or differs between weights that are one in the file.
        NonFiniteError: a new value does not fit the file's precision.
        CheckpointError: the file cannot be written.
    """
    checkpoint = checkpoint.under(state)
    write_file(checkpoint.file, checkpoint.refilled(as_stored(checkpoint, state)), Path(path))


def as_stored(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` in the checkpoint's order and precision; values that did not change keep the file's bits.

    Raises:
        MismatchError: `state` has other names or shapes.
        NonFiniteError: a new value does not fit the file's precision.
    """
    checkpoint = checkpoint.under(state)
    fit = fit_of(shapes_of(state), shapes_of(checkpoint.state))
    extra = [name for name in fit.missing if not _is_alias(name, state, checkpoint.state)]
    if extra or fit.unexpected or fit.reshaped:
        raise MismatchError(f"these are not the weights of {checkpoint.path}: in the file {fit.notes}")
    return {name: _in_precision(name, state[name].detach().cpu(), old) for name, old in checkpoint.state.items()}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and shapes, in whatever order they are.

    >>> a, b = torch.zeros(2), torch.zeros(3)
    >>> fingerprint({"a": a, "b": b}) == fingerprint({"b": b + 1, "a": a})
    True
    """
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_alias(name: str, state: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> bool:
    """Whether the tensor is tied to one that is kept, of which safetensors files hold only one."""
    tensor = state[name]
    return any(tensor.data_ptr() == state[n].data_ptr() and tensor.shape == state[n].shape for n in kept if n in state)


def _in_precision(name: str, new: Tensor, old: Tensor) -> Tensor:
    if new.dtype == old.dtype:
        return new
    # A float64 weight does not survive a model in float32: where nothing changed it is the file's.
    cast = torch.where(same_bits(old.to(new.dtype), new), old, new.to(old.dtype))
    if new.is_floating_point() and bool((torch.isfinite(new) & ~torch.isfinite(cast)).any()):
        raise NonFiniteError(
            f"new values of {name!r} are too large for {old.dtype}, in which the checkpoint keeps them"
        )
    return cast
