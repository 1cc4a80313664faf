"""What moved: the exact difference of two sets of weights, as a file that applies and reverts bit for bit."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bmft._common import MOST, Assumption, html_table, in_order, put, short
from bmft.checkpoints.checkpoint import Checkpoint
from bmft.checkpoints.patch_file import FORMAT, Contents, read_contents, recorded_threshold, summarise
from bmft.errors import MismatchError, NonFiniteError
from bmft.models import differing, state_hash


@dataclass(frozen=True, eq=False, repr=False)
class Change:
    """Where one tensor changed, and its values there before and after.

    Attributes:
        index: ``(m,)`` int64 positions in the flattened tensor.
        before: ``(m,)`` values, in the tensor's own dtype.
        after: ``(m,)`` values.
        total: the number of elements of the tensor.
    """

    index: Tensor
    before: Tensor
    after: Tensor
    total: int

    def __repr__(self) -> str:
        return f"Change({len(self.index):,} of {self.total:,} values)"


@dataclass(frozen=True, eq=False, repr=False)
class WeightPatch:
    """The difference between two states of one model.

    Attributes:
        changes: tensor name -> its change; tensors that did not change are not in it.
        before_hash: of the whole state it applies to.
        after_hash: of the whole state it gives.
        recipe: how it was made (method, settings, hashes of the data).

    >>> before, after = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 3.0])}
    >>> patch = WeightPatch.between(before, after)
    >>> patch.apply(before)["w"], patch.revert(after)["w"]
    (tensor([1., 3.]), tensor([1., 2.]))
    """

    changes: Mapping[str, Change]
    before_hash: str
    after_hash: str
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        where = f"{self.moved:,} values in {len(self.changes)} tensors"
        return f"WeightPatch({where}, {self.before_hash[:8]} -> {self.after_hash[:8]})"

    def _repr_html_(self) -> str:
        changed = sorted(self.changes.items(), key=lambda item: -len(item[1].index))
        lines = [(name, f"{len(one.index):,}", f"{one.total:,}") for name, one in changed]
        more = f"; {len(lines) - MOST} tensors with fewer are not shown" if len(lines) > MOST else ""
        return html_table(f"{self!r}{more}", ("tensor", "moved", "values"), lines[:MOST])

    @classmethod
    def between(
        cls, before: Mapping[str, Tensor], after: Mapping[str, Tensor], recipe: Mapping[str, Any] | None = None
    ) -> "WeightPatch":
        """The patch that turns `before` into `after`; both are state dicts of one model.

        Raises:
            MismatchError: they differ in names, shapes or dtypes.
            NonFiniteError: `after` has a value that is not finite where it changed.
        """
        if list(before) != list(after):
            odd = sorted(set(before) ^ set(after)) or [next(a for a, b in zip(before, after, strict=True) if a != b)]
            raise MismatchError(f"the two states differ in names or order (first: {odd[0]!r}): not one model")
        changes: dict[str, Change] = {}
        for name, old in before.items():
            new = after[name]
            if old.shape != new.shape or old.dtype != new.dtype:
                raise MismatchError(
                    f"{name!r} is {old.dtype} {tuple(old.shape)} before and {new.dtype} {tuple(new.shape)} after"
                )
            a, b = old.detach().cpu().reshape(-1), new.detach().cpu().reshape(-1)
            index = differing(a, b)
            if len(index):
                if b.is_floating_point() and not bool(torch.isfinite(b[index]).all()):
                    raise NonFiniteError(f"{name!r} has values that are not finite after the change")
                changes[name] = Change(index, a[index], b[index], a.numel())
        return cls(changes, state_hash(before), state_hash(after), dict(recipe or {}))

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state after the change; `state` itself is not changed.

        Raises:
            MismatchError: `state` is not the one the patch was made from.
        """
        return self._move(state, self.before_hash, self.after_hash, forward=True)

    def revert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state before the change; `state` itself is not changed.

        Raises:
            MismatchError: `state` is not the one the patch gives.
        """
        return self._move(state, self.after_hash, self.before_hash, forward=False)

    def _move(self, state: Mapping[str, Tensor], expected: str, result: str, *, forward: bool) -> dict[str, Tensor]:
        if state_hash(state) != expected:
            what = "the original" if forward else "the debiased"
            hint = " It is already applied." if forward and state_hash(state) == self.after_hash else ""
            raise MismatchError(f"this is not {what} checkpoint the patch was made for: its weights differ.{hint}")
        moved = {name: tensor.detach().clone() for name, tensor in state.items()}
        for name, change in self.changes.items():
            if name not in moved or (moved[name].numel(), moved[name].dtype) != (change.total, change.after.dtype):
                raise MismatchError(f"the patch is damaged: {name!r} is not as it was made with")
            # A copy: what passes for contiguous may be a view of the tensor that is written below.
            flat = moved[name].cpu().contiguous().reshape(-1).clone()
            flat[change.index] = change.after if forward else change.before
            moved[name].copy_(flat.view(moved[name].shape))
        if state_hash(moved) != result:
            raise MismatchError("the patch is damaged: it does not give the weights it was made with")
        return moved

    @property
    def moved(self) -> int:
        """The number of values that changed."""
        return sum(len(change.index) for change in self.changes.values())

    def summary(self) -> dict[str, Any]:
        """Counts and norms (``moved``, ``l2_norm``, ``max_abs``), overall and per tensor in ``layers``, and the recipe.

        The norms are of the change, in the units of the weights.
        """
        totals = {name: change.total for name, change in self.changes.items()}
        values = {name: (c.before.double().numpy(), c.after.double().numpy()) for name, c in self.changes.items()}
        return summarise(Contents(totals, self.before_hash, self.after_hash, dict(self.recipe)), values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        for name, change in self.changes.items():
            # Numbers of positions stay below 2**31 for every layer in use; int64 is the exception.
            small = change.total < 2**31
            tensors[f"{name}:index"] = change.index.to(torch.int32) if small else change.index
            tensors[f"{name}:before"], tensors[f"{name}:after"] = change.before, change.after
        metadata = {
            "format": FORMAT,
            "kind": "bmft.patch",
            "before_hash": self.before_hash,
            "after_hash": self.after_hash,
            "totals": json.dumps({name: change.total for name, change in self.changes.items()}),
            "recipe": json.dumps(dict(self.recipe), sort_keys=True),
        }
        put(in_order(save(tensors, metadata)), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "WeightPatch":
        """Read a file that `save` wrote.

        Raises:
            MismatchError: the file is damaged, is no patch, or has a newer format number.
        """
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # A path with a NUL in it is a ValueError, a type of number that torch lacks one of the other two.
        except (SafetensorError, OSError, ValueError, LookupError, AttributeError) as error:
            raise MismatchError(f"{path} cannot be read as a patch: {short(error)}") from error
        contents = read_contents(path, metadata, tensors)
        changes = {name: _change(tensors, name, total) for name, total in contents.totals.items()}
        return cls(changes, contents.before_hash, contents.after_hash, contents.recipe)


def own_threshold(model: nn.Module, checkpoint: Checkpoint) -> tuple[float | None, tuple[Assumption, ...]]:
    """Where the model of a checkpoint decides, if the patch beside it says so; and what is to be told of that.

    Raises:
        MismatchError: that patch is damaged.
    """
    path = checkpoint.path.with_name(f"{checkpoint.path.stem}.patch.safetensors")
    found = recorded_threshold(path) if path.is_file() else None
    if found is None:
        return None, ()
    cut, where = f"{found[0]:.12g}", f"{path.name} beside the checkpoint"
    if found[1] == state_hash(checkpoint.under(model.state_dict()).state):
        return found[0], (Assumption("threshold", f"{cut}, where the calibrated model decides", where, "--threshold"),)
    return None, (Assumption("threshold", "0.5", f"{where} says {cut}, of other weights", "--threshold", guess=True),)


def _change(tensors: Mapping[str, Tensor], name: str, total: int) -> Change:
    index, before, after = (tensors[f"{name}:{part}"] for part in ("index", "before", "after"))
    return Change(index.long(), before, after, total)
