"""Checkpoints: a file in, a model out; changed weights in, the same kind of file and a patch out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bmft.checkpoints.checkpoint import Checkpoint, as_stored, read_checkpoint, write_checkpoint
    from bmft.checkpoints.loading import build_from, describe, load_checkpoint
    from bmft.checkpoints.patch import WeightPatch
    from bmft.checkpoints.patch_file import patch_summary

_PLACES = {
    "checkpoint": ("Checkpoint", "as_stored", "read_checkpoint", "write_checkpoint"),
    "loading": ("build_from", "describe", "load_checkpoint"),
    "patch": ("WeightPatch",),
    "patch_file": ("patch_summary",),
}
_PLACE = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "Checkpoint",
    "WeightPatch",
    "as_stored",
    "build_from",
    "describe",
    "load_checkpoint",
    "patch_summary",
    "read_checkpoint",
    "write_checkpoint",
]


def __getattr__(name: str) -> Any:
    # What a patch changed can be told without torch.
    if name not in _PLACE:
        raise AttributeError(f"module 'bmft.checkpoints' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"bmft.checkpoints.{_PLACE[name]}"), name)
    return value
