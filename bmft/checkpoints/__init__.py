"""Checkpoints: a file in, a model out; changed weights in, the same kind of file and a patch out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bmft.checkpoints.checkpoint import (
        Checkpoint as Checkpoint,
        as_stored as as_stored,
        read_checkpoint as read_checkpoint,
        write_checkpoint as write_checkpoint,
    )
    from bmft.checkpoints.classes import class_names as class_names, output_names as output_names
    from bmft.checkpoints.exporting import write_hub_folder as write_hub_folder, write_onnx as write_onnx
    from bmft.checkpoints.folders import check_place as check_place
    from bmft.checkpoints.inputs import plain_inputs as plain_inputs, read_inputs as read_inputs
    from bmft.checkpoints.loading import (
        assembled as assembled,
        build_from as build_from,
        describe as describe,
        load_checkpoint as load_checkpoint,
    )
    from bmft.checkpoints.patch import WeightPatch as WeightPatch, own_threshold as own_threshold
    from bmft.checkpoints.patch_file import patch_summary as patch_summary

_PLACES = {
    "checkpoint": ("Checkpoint", "as_stored", "read_checkpoint", "write_checkpoint"),
    "classes": ("class_names", "output_names"),
    "exporting": ("write_hub_folder", "write_onnx"),
    "folders": ("check_place",),
    "inputs": ("plain_inputs", "read_inputs"),
    "loading": ("assembled", "build_from", "describe", "load_checkpoint"),
    "patch": ("WeightPatch", "own_threshold"),
    "patch_file": ("patch_summary",),
}
_PLACE = {name: place for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    # What a patch changed can be told without torch.
    if name not in _PLACE:
        raise AttributeError(f"module 'bmft.checkpoints' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"bmft.checkpoints.{_PLACE[name]}"), name)
    return value
