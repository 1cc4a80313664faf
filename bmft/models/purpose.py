"""What a network is for, by its weights' names and by its answer to an image: classes, or something else."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from bmft._common import short
from bmft.data import drawn_columns, input_names
from bmft.errors import ArchitectureError
from bmft.models.answers import not_its_inputs, parts
from bmft.models.architectures import Shapes
from bmft.models.modes import evaluating
from bmft.tables import InputColumn

# Parts of names that networks of other kinds have, and no classifier in use.
_NAMES = {
    "detects objects": (
        "rpn.",
        "roi_heads.",
        "bbox_embed",
        "bbox_predictor",
        ".dfl.conv",
        "bbox_head",
        "head.classification_head.",
    ),
    "segments images": (
        "segmentation_head.",
        "decode_head.",
        "mask_head",
        "decoder.blocks.",
        "outc.",
        "aux_classifier.",
        "low_classifier.",
        "classifier.0.convs.",
    ),
    "makes images": ("time_embed", "quant_conv.", "to_rgb", "mapping_network", "denoise_fn", "decoder.up."),
}
_BOXES = ("boxes", "pred_boxes", "bboxes", "keypoints")
_SIZES = (224, 256, 64, 32, 299, 384, 512)
_INSTEAD = "expected a classifier of images, whose answer is (n, classes)"


def purpose_of(shapes: Shapes) -> str | None:
    """What a network with weights of these names does, in words, if it is no classifier of images; else None.

    >>> purpose_of({"rpn.head.conv.weight": (256, 256, 3, 3)}), purpose_of({"fc.weight": (2, 512)})
    ('detects objects', None)
    """
    if any(len(shape) == 5 for shape in shapes.values()):
        return "takes volumes, of three dimensions"
    return next(
        (does for does, marks in _NAMES.items() if any(mark in name for name in shapes for mark in marks)), None
    )


def check_takes_images(model: nn.Module) -> None:
    """Refuse a network of volumes.

    Raises:
        ArchitectureError: it is one.
    """
    if any(isinstance(module, nn.Conv3d) for module in model.modules()):
        raise ArchitectureError(f"{type(model).__name__} takes volumes, of three dimensions: {_INSTEAD}")


def answer_to_an_image(model: nn.Module, columns: Sequence[InputColumn] = ()) -> str:
    """Describe what the model answers to two images of noise; it runs in evaluation mode and is left as it was.

    Args:
        model: any network.
        columns: what it takes beside the image.

    Raises:
        ArchitectureError: the answer is no classes.

    >>> answer_to_an_image(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    '2 outputs for an image of 3 x 224 x 224'
    """
    check_takes_images(model)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    reasons = []
    for size in dict.fromkeys([*_own_sizes(model), *_SIZES]):
        drawn = torch.Generator().manual_seed(0)
        inputs = (torch.rand(2, channels, size, size, generator=drawn), *drawn_columns(columns, 2, drawn))
        if problem := not_its_inputs(model, inputs):
            return f"it could not be run on an image of noise: {problem}"
        try:
            with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
                answer = model(*inputs)
        # Whatever a network of another size or with other inputs raises.
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            reasons.append(short(error))
            continue
        beside = f" and {', '.join(input_names(columns)[1:])}" if columns else ""
        return f"{_outputs(model, answer)} for an image of {channels} x {size} x {size}{beside}"
    return f"it could not be run on an image of noise: {reasons[0]}"


def _own_sizes(model: nn.Module) -> Iterator[int]:
    """The sizes that the libraries note at their networks."""
    config = getattr(model, "config", None)
    noted = (
        (getattr(model, "pretrained_cfg", None) or {}).get("input_size"),
        getattr(getattr(model, "patch_embed", None), "img_size", None),
        getattr(model, "image_size", None),
        getattr(config, "image_size", None),
        getattr(getattr(config, "vision_config", None), "image_size", None),
    )
    for size in noted:
        last = size[-1] if isinstance(size, tuple | list) and size else size
        if isinstance(last, int) and last > 0:
            yield last


def _outputs(model: nn.Module, answer: Any) -> str:
    found = parts(answer)
    name = type(model).__name__
    if any(path.rpartition("/")[2] in _BOXES for path in found):
        raise ArchitectureError(f"{name} detects objects (it answers with {', '.join(found)}): {_INSTEAD}")
    rows = {path: tensor for path, tensor in found.items() if tensor.shape[:1] == (2,)}
    flat = {path: tensor for path, tensor in rows.items() if tensor[0].numel() in (*tensor.shape[1:2], 1)}
    if flat:
        sizes = {path: tensor[0].numel() for path, tensor in flat.items()}
        return " and ".join(f"{size} outputs{f' ({path})' if path else ''}" for path, size in sizes.items())
    maps = next((tensor for tensor in rows.values() if tensor.dim() == 4), None)
    if maps is not None:
        shape = "x".join(map(str, maps.shape[1:]))
        raise ArchitectureError(f"{name} segments or makes images (it answers with {shape} for each): {_INSTEAD}")
    shapes = (
        ", ".join(f"{path} {tuple(tensor.shape)}".strip() for path, tensor in found.items()) or type(answer).__name__
    )
    raise ArchitectureError(f"{name} answers 2 images with {short(shapes)}: {_INSTEAD}")
