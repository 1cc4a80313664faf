"""How the images looked that a network was trained on, where its file or one beside it says so."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.models import get_weight

from bmft._text import short
from bmft.checkpoints.layout import settings_of
from bmft.data import Preprocessing

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_CROPS = {"center": "shorter", "squash": "squash", "border": "pad"}  # timm's words
_SIZES = ("img_size", "image_size", "input_size")
_LARGEST = 10_000


def known_pixels(path: Path, content: Any) -> tuple[Preprocessing | None, str]:
    """What is said about the images, and where: by files beside the checkpoint first, then by its own entries."""
    for found, source in _candidates(path, content):
        if any(value is not None for value in vars(found).values()):
            return found, source
    return None, ""


def _candidates(path: Path, content: Any) -> Iterator[tuple[Preprocessing, str]]:
    if isinstance(found := _json(path.with_name("preprocessor_config.json")), Mapping):
        yield _hugging_face(found), "preprocessor_config.json beside the checkpoint"
    if isinstance(found := _json(path.with_name("config.json")), Mapping):
        inner = found.get("pretrained_cfg")
        yield _timm(inner if isinstance(inner, Mapping) else {}), "timm's config.json beside the checkpoint"
    for settings, where in settings_of(content):
        if isinstance(inner := settings.get("pretrained_cfg"), Mapping):
            yield _timm(inner), f"{where}'s pretrained_cfg"
        for key in ("weights", "pretrained_weights"):
            if isinstance(name := settings.get(key), str):
                yield _torchvision(name), f"torchvision's {short(name)}, which {where} names"
        yield _timm(settings), where


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _timm(said: Mapping[str, Any]) -> Preprocessing:
    interpolation = said.get("interpolation")
    return Preprocessing(
        image_size=next((size for key in _SIZES if (size := _size(said.get(key))) is not None), None),
        normalize=_normalize(said.get("mean"), said.get("std")),
        resize=_CROPS.get(str(said.get("crop_mode"))),
        crop_fraction=_fraction(said.get("crop_pct")),
        interpolation=interpolation if interpolation in _RESAMPLE.values() else None,
    )


def _hugging_face(said: Mapping[str, Any]) -> Preprocessing:
    size = said.get("size") if said.get("do_resize", True) else None
    edges = size if isinstance(size, Mapping) else {"shortest_edge": size}
    shortest, crop = _size(edges.get("shortest_edge")), _size(said.get("crop_size"))
    cropped = crop if said.get("do_center_crop") and crop else None
    squashed = _size(edges.get("height"))
    resized = squashed or shortest
    fraction = cropped / resized if cropped and resized and cropped <= resized else _fraction(said.get("crop_pct"))
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    # Other factors than 1 / 255 would need a transform of its own.
    scaled = isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-3)
    normalized = _normalize(said.get("image_mean"), said.get("image_std")) if said.get("do_normalize", True) else "none"
    return Preprocessing(
        image_size=cropped or resized,
        normalize=normalized if scaled else None,
        resize="squash" if squashed else "shorter" if shortest else None,
        crop_fraction=fraction,
        interpolation=_RESAMPLE.get(said["resample"]) if isinstance(said.get("resample"), int) else None,
    )


def _torchvision(name: str) -> Preprocessing:
    if not re.fullmatch(r"\w+_Weights\.\w+", name):
        return Preprocessing()
    try:
        preset = get_weight(name).transforms()
    except (ValueError, AttributeError, KeyError):
        return Preprocessing()
    size, resized = _size(getattr(preset, "crop_size", None)), _size(getattr(preset, "resize_size", None))
    mode = getattr(getattr(preset, "interpolation", None), "value", None)
    return Preprocessing(
        image_size=size,
        normalize=_normalize(getattr(preset, "mean", None), getattr(preset, "std", None)),
        resize="shorter",
        crop_fraction=size / resized if size and resized and size <= resized else None,
        interpolation=mode if mode in _RESAMPLE.values() else None,
    )


def _normalize(mean: Any, std: Any) -> str | None:
    parts = [_numbers(mean), _numbers(std)]
    if not parts[0] or not parts[1] or min(parts[1]) <= 0:
        return None
    return "/".join(",".join(f"{number:g}" for number in part) for part in parts)


def _numbers(value: Any) -> list[float]:
    values = [value] if isinstance(value, int | float) else value
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) not in (1, 3):
        return []
    good = all(isinstance(one, int | float) and 0 <= one <= 1 for one in values)
    return [float(one) for one in values] if good else []


def _size(value: Any) -> int | None:
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, list | tuple) and value:
        value = value[-1] if len(value) == 1 or value[-1] == value[-2] else None
    good = isinstance(value, int) and not isinstance(value, bool) and 1 < value <= _LARGEST
    return value if good else None


def _fraction(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None
