"""A checkpoint as it lies in its file: the model's weights, found, and put back in their place."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bmft._common import Assumption
from bmft.checkpoints.folders import read_weights, write_weights
from bmft.checkpoints.formats import WeightFile
from bmft.checkpoints.inputs import KEY, inputs_by_patch, read_inputs, with_record
from bmft.checkpoints.layout import at, check_tensors, in_precision, made_with, named_arch, plain_values, refilled
from bmft.checkpoints.names import prefixes, spellings
from bmft.checkpoints.pixels import Known, known_pixels
from bmft.checkpoints.places import WeightSet, choose, opened_by_default, weight_sets, why
from bmft.errors import MismatchError
from bmft.models import fit_of, shapes_of
from bmft.tables import InputColumn

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file of weights and where in it the model is.

    Attributes:
        path: the file.
        container: what kind of file it is.
        chosen: the set of weights in the file that is meant.
        sets: all of them.
        said: whether `entry` named it.
        prefix: what precedes every weight's name, such as ``module.``.
        state: the model's tensors by name, without the prefix, in the file's order and precision.
        arch: the architecture that the file itself names, if it does.
        settings: what it says that its network was made with, such as Lightning's ``hyper_parameters``.
        metadata: the plain values beside the weights (epoch, learning rate, safetensors' own metadata).
        content_hash: SHA-256 of the file.
        assumed: what was inferred on the way from the file to the model.
    """

    path: Path
    container: str
    chosen: WeightSet
    sets: tuple[WeightSet, ...]
    said: bool
    prefix: str
    state: Mapping[str, Tensor]
    arch: str | None
    metadata: Mapping[str, Any]
    content_hash: str
    file: WeightFile = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False, default_factory=dict)
    assumed: tuple[Assumption, ...] = ()

    _names: Mapping[str, str] = field(repr=False, default_factory=dict)

    @property
    def entry(self) -> str | None:
        """Where the weights are in a dict, such as ``state_dict`` or ``ema/state_dict``; None at the top."""
        return "/".join(self.chosen.keys) or None

    @cached_property
    def pixels(self) -> Known:
        """How its images were prepared, where it or a file beside it says so, and where that is said."""
        beside = self.file.content if self.chosen.keys else self.file.metadata
        own = self.path if self.path.is_dir() else self.path.parent
        folders = [own, *([] if self.file.folder is None else [self.file.folder.path])]
        return known_pixels(dict.fromkeys(folders), beside, self.module)

    @cached_property
    def inputs(self) -> tuple[InputColumn, ...]:
        """What its network takes beside the image, where the file, or the patch beside it, records it."""
        if (found := self.metadata.get(KEY)) is not None:
            return read_inputs(found, self.path)
        return inputs_by_patch(self.path, self.state)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights' names and shapes, equal for checkpoints of one network."""
        return fingerprint(self.state)

    @property
    def module(self) -> nn.Module | None:
        """The model itself, where a trusted file holds one rather than its weights."""
        found = at(self.file.content, self.chosen.keys)
        return found if isinstance(found, nn.Module) else None

    def under(self, names: Iterable[str]) -> "Checkpoint":
        """The same with the prefix under which most of `names`, such as a state dict's, are found."""
        wanted, best, most = set(names), self, -1
        dotless = {name.replace(".", "") for name in wanted}
        for spelling in spellings(self.chosen.tensors):
            counts = Counter(
                key[:start]
                for key in spelling
                for start in (0, *(place + 1 for place, letter in enumerate(key) if letter == "."))
                if key[start:] in wanted
            )
            prefix = max([self.prefix, *sorted(counts)], key=counts.__getitem__)
            if counts[prefix] > most:
                best, most = self._with_prefix(prefix, spelling), counts[prefix]
        if not most and self.chosen.prefix:
            # Some averages keep weights as buffers, whose names have no dots.
            plain = {name.replace(".", ""): name for name in wanted}
            start = len(self.chosen.prefix)
            spelling = {plain[key[start:]]: key for key in self.chosen.tensors if key[start:] in dotless}
            return self._with_prefix("", spelling) if spelling else best
        return best

    def unwrapped(self) -> list["Checkpoint"]:
        """The same with every prefix that wrappers may have put there, the longest first."""
        inner = self.chosen.prefix
        found: dict[tuple[str, int], Checkpoint] = {}
        for any_name in (False, True):
            for place, spelling in enumerate(spellings(self.chosen.tensors)):
                start = inner if all(key.startswith(inner) for key in spelling) else ""
                for prefix in reversed(prefixes([key.removeprefix(start) for key in spelling], any_name=any_name)):
                    found.setdefault((start + prefix, place), self._with_prefix(start + prefix, spelling))
        return list(found.values())

    def refilled(self, state: Mapping[str, Tensor]) -> Any:
        """What the file holds, with `state` in the place of the weights.

        Where nobody said which set is meant, copies of the same network (a running average, a teacher) get it,
        too: whatever a library opens by its defaults is then what was measured.
        """
        content = self._refill(self.file.content, state)
        for _, twin in () if self.said else self.twins(state):
            shared = {name: in_precision(name, state[name], old) for name, old in twin.state.items() if name in state}
            content = twin._refill(content, shared)
        return content

    def _refill(self, content: Any, state: Mapping[str, Tensor]) -> Any:
        return refilled(content, self.chosen.keys, {self._names[name]: tensor for name, tensor in state.items()})

    def twins(self, names: Iterable[str] | None = None) -> list[tuple[WeightSet, "Checkpoint"]]:
        """The other sets that are copies of the same network, and their weights under this one's names."""
        names = list(self.state if names is None else names)
        found = []
        for one in self.sets:
            if one is self.chosen or not one.is_copy:
                continue
            twin = replace(self, chosen=one, prefix="").under(names)
            shared = {name: t for name, t in twin.state.items() if name in self.state}
            alike = all(t.shape == self.state[name].shape for name, t in shared.items())
            if alike and len(shared) >= 0.3 * len(self.state):
                found.append((one, replace(twin, state=shared)))
        return found

    def _with_prefix(self, prefix: str, spelling: Mapping[str, str]) -> "Checkpoint":
        names = {key.removeprefix(prefix): raw for key, raw in spelling.items() if key.startswith(prefix)}
        state = {name: self.chosen.tensors[raw] for name, raw in names.items()}
        return replace(self, prefix=prefix, state=state, _names=names)


def read_checkpoint(
    path: str | os.PathLike[str], *, trust_pickle: bool = False, entry: str | None = None
) -> Checkpoint:
    """Read a file or folder of weights: what torch.save writes, safetensors, or a folder of Hugging Face's.

    Args:
        path: the file; its kind is recognised by its content, not by its name.
        trust_pickle: whether a file is read that holds more than plain tensors and settings, such as a whole model:
            unpickling it may run any code.
        entry: which of several sets of weights in the file is meant, such as ``state_dict_ema`` or ``ema_model``. By
            default it is the one that a library opens by its defaults, and what is written later goes to all copies.

    Raises:
        UntrustedPickleError: the file holds more and is not trusted; nothing of it has run.
        CheckpointError: it is no such file, is damaged, or holds no weights that could be tuned.
        ConfigError: it has no set of weights `entry`.
    """
    path = Path(path)
    file = read_weights(path, trust_pickle=trust_pickle)
    sets = weight_sets(file.content)
    chosen = choose(path, file.content, sets, entry)
    check_tensors(path, at(file.content, chosen.keys))
    said = {} if file.folder is None else file.folder.said
    beside = file.content if chosen.keys else {**file.metadata, **said}
    checkpoint = Checkpoint(
        path=path,
        container=file.kind,
        chosen=chosen,
        sets=tuple(sets),
        said=entry is not None,
        prefix="",
        state={},
        arch=named_arch(beside),
        metadata=plain_values(beside),
        settings=made_with(beside),
        content_hash=file.content_hash,
        file=file,
    )
    checkpoint = checkpoint.unwrapped()[0]
    return replace(checkpoint, assumed=_which_set(checkpoint))


def _which_set(checkpoint: Checkpoint) -> tuple[Assumption, ...]:
    """Which of several sets of weights is taken, where that was not said."""
    others = [one.name for one in checkpoint.sets if one is not checkpoint.chosen]
    if checkpoint.said or not others:
        return ()
    filled = ", ".join(one.name for one, _ in checkpoint.twins())
    note = f"; what is written there is written to {filled} too" if filled else ""
    source, guess = why(checkpoint.chosen)
    value = f"{checkpoint.chosen.name}, beside {', '.join(others)}{note}"
    return (Assumption("weights", value, source, "--entry", guess),)


def write_checkpoint(
    checkpoint: Checkpoint,
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[InputColumn] | None = (),
) -> None:
    """Write `state` in the checkpoint's place: everything else that came in goes out as it was.

    Container, entry, prefix, key order, precision, tied and strided weights and unrelated entries are those
    of the file that was read, and copies of the network in it get the same weights unless `read_checkpoint`
    was told which set is meant; values that did not change keep their bits. The file appears whole or not at
    all, and the same content gives the same bytes.

    Args:
        checkpoint: from `read_checkpoint`.
        state: name -> tensor, without the prefix, such as ``model.state_dict()``.
        path: where to write.
        inputs: what the network takes beside the image (`GroupedData.columns`), which a dict that holds the weights
            under an entry, and safetensors, then record; None takes that record away.

    Raises:
        MismatchError: `state` has other names or shapes, or differs between weights that are one in the file.
        NonFiniteError: a new value does not fit the file's precision.
        CheckpointError: the file cannot be written.
    """
    checkpoint = checkpoint.under(state)
    usual = opened_by_default(checkpoint.file.content, list(checkpoint.sets)) if checkpoint.said else None
    if usual is not None and usual.name != checkpoint.chosen.name:
        log.warning(
            "%s: only %s is changed, as was asked; what is opened there by default is %s, which is as it was",
            path,
            checkpoint.chosen.name,
            usual.name,
        )
    file, content = checkpoint.file, checkpoint.refilled(as_stored(checkpoint, state))
    if inputs or inputs is None:
        file, content = with_record(file, content, checkpoint.chosen.keys, inputs)
    write_weights(file, content, Path(path))


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
    return {name: in_precision(name, state[name].detach().cpu(), old) for name, old in checkpoint.state.items()}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and shapes, in whatever order they are.

    >>> import torch
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
