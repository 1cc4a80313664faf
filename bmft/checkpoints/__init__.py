"""Checkpoints: a file in, a model out; changed weights in, the same kind of file and a patch out."""

from bmft.checkpoints.checkpoint import Checkpoint, as_stored, read_checkpoint, write_checkpoint
from bmft.checkpoints.loading import build_from, describe, load_checkpoint
from bmft.checkpoints.patch import WeightPatch

__all__ = [
    "Checkpoint",
    "WeightPatch",
    "as_stored",
    "build_from",
    "describe",
    "load_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]
