"""How the images looked that a network was trained on, where its file or one beside it says so."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights, get_weight

from bmft._common import short
from bmft.checkpoints.layout import settings_of
from bmft.checkpoints.processors import hugging_face_shaping, timm_defaults, timm_shaping
from bmft.data import Preprocessing

Known = tuple[Preprocessing | None, str]
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_CROPS = {"center": "shorter", "squash": "squash", "border": "pad"}  # timm's words
_TIMM = {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}  # what timm takes where it says nothing
_TIMMS_SCRIPT = {"img_size", "mean", "std", "crop_pct", "interpolation"}  # its checkpoints hold these, also as None
_SIZES = ("img_size", "image_size", "input_size", "val_crop_size")
_MEANS = ("mean", "image_mean", "pixel_mean", "norm_mean")
_LARGEST, _LONGEST = 10_000, 1 << 20


def known_pixels(folders: Iterable[Path], content: Any, model: Any = None) -> Known:
    """What is said about the images, and where: by files beside the checkpoint first, then by its own entries.

    Args:
        folders: where files beside the checkpoint may lie.
        content: the entries beside its weights.
        model: the model itself, where the file holds it.
    """
    for known, source in chain(*map(_beside, folders), _inside(content, model)):
        if known != Preprocessing():
            return known, source
    return None, ""


def _beside(folder: Path) -> Iterator[tuple[Preprocessing, str]]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = folder / name
        if isinstance(found := _json(file), Mapping):
            inner = found.get("image_processor", found)
            yield _hugging_face(inner if isinstance(inner, Mapping) else {}, file), f"{name} beside the checkpoint"
    found = _json(folder / "config.json")
    if isinstance(found, Mapping) and isinstance(inner := found.get("pretrained_cfg"), Mapping):
        yield _timm(inner), "timm's config.json beside the checkpoint"


def _inside(content: Any, model: Any) -> Iterator[tuple[Preprocessing, str]]:
    places = [({key: _parsed(value) for key, value in place.items()}, where) for place, where in settings_of(content)]
    if isinstance(inner := getattr(model, "pretrained_cfg", None), Mapping):
        places.append(({"pretrained_cfg": inner}, "the model"))
    for settings, where in places:
        loose = _settings(settings)
        if isinstance(inner := settings.get("pretrained_cfg"), Mapping):
            yield _timm({**inner, **_said(settings)}), f"{where}'s pretrained_cfg"
        if isinstance(name := settings.get("model"), str) and settings.keys() >= _TIMMS_SCRIPT:
            yield _timm({**timm_defaults(name), **_said(settings)}), f"{where} and timm's defaults for {short(name)}"
        for key in ("weights", "pretrained_weights"):
            if (name := _weights_name(settings.get(key), settings)) is not None:
                yield loose.over(_torchvision(name)), f"torchvision's {short(name)}, which {where} names"
        yield loose, where


def _json(path: Path) -> Any:
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST:
            return None
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


def _parsed(value: Any) -> Any:
    """A plain value; what its text stands for, as a safetensors file has texts only."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist() if np.prod(value.shape) <= 3 else None
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
    except (ValueError, RecursionError):
        return value


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("img_size", "input_size", "mean", "std", *_TIMM)
    return {key: settings[key] for key in keys if settings.get(key)}


def _settings(said: Mapping[str, Any]) -> Preprocessing:
    """What hyper-parameters say, by the names that timm's, torchvision's and Hugging Face's scripts use."""
    size = next((size for key in _SIZES if (size := _size(said.get(key))) is not None), None)
    resized = _size(said.get("val_resize_size"))
    fraction = size / resized if size and resized and size <= resized else _fraction(said.get("crop_pct"))
    mean = next((key for key in _MEANS if said.get(key) is not None), "mean")
    interpolation = said.get("interpolation")
    return Preprocessing(
        image_size=size,
        normalize=_normalize(said.get(mean), said.get(mean.replace("mean", "std"))),
        resize=_CROPS.get(str(said.get("crop_mode"))),
        crop_fraction=fraction,
        interpolation=interpolation if interpolation in _RESAMPLE.values() else None,
    )


def _timm(said: Mapping[str, Any]) -> Preprocessing:
    found, sides = _settings(said), _sides(said.get("img_size") or said.get("input_size"))
    if sides is None:
        return found
    whole = {**_TIMM, **{key: value for key, value in said.items() if value}}
    found = _settings({**whole, "img_size": sides})
    if None in (found.resize, found.crop_fraction, found.interpolation):
        return found
    colours = _numbers(said.get("mean")) or [0.485, 0.456, 0.406]
    shaped = timm_shaping(
        sides,
        tuple(colours),
        crop_fraction=float(whole["crop_pct"]),
        crop_mode=whole["crop_mode"],
        interpolation=whole["interpolation"],
    )
    odd = {"gives no square": sides[0] != sides[1], "adds the mean colour around it": found.resize == "pad"}
    lacking = next((what for what, is_so in odd.items() if is_so), "")
    return replace(found, shaped=shaped, library="timm", lacking=lacking)


_TOLD = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}


def _hugging_face(said: Mapping[str, Any], file: Path) -> Preprocessing:
    shaped, all_said = hugging_face_shaping(file)
    said = {**said, **all_said}
    lacking = [
        f"has {key}" for key in sorted(map(str, said)) if key.startswith("do_") and said[key] and key not in _TOLD
    ]
    size = said.get("size") if said.get("do_resize", True) else None
    edges: Mapping[str, Any] = size if isinstance(size, Mapping) else {}
    shortest, squashed = _size(edges.get("shortest_edge")), _size(edges)
    crop = _size(said.get("crop_size")) if said.get("do_center_crop") else None
    fraction = _fraction(said.get("crop_pct")) if shortest else None
    resized = shortest or squashed
    if fraction and shortest and shortest >= 384:  # ConvNeXt's rule
        shortest, squashed, fraction = None, shortest, None
    if crop and resized:
        fraction = crop / resized
    if (size and not resized) or (shortest and not fraction) or (fraction or 0) > 1:
        lacking.append(f"resizes to {short(size)}")
    return Preprocessing(
        image_size=crop or resized,
        normalize=_rescaled(said),
        resize="squash" if squashed else "shorter" if shortest else None,
        crop_fraction=fraction if (fraction or 0) <= 1 else None,
        interpolation=_RESAMPLE.get(said["resample"]) if isinstance(said.get("resample"), int) else None,
        shaped=shaped,
        library="transformers",
        lacking=lacking[0] if lacking else "",
    )


def _rescaled(said: Mapping[str, Any]) -> str | None:
    """Rescaling and normalization as one ``MEAN/STD`` after scaling to [0, 1]."""
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        return None
    normalizes = said.get("do_normalize", True)
    means = _numbers(said.get("image_mean")) if normalizes else [0.0]
    stds = _numbers(said.get("image_std")) if normalizes else [1.0]
    if not means or not stds or min(stds) <= 0:
        return None
    offset = 1.0 if said.get("rescale_offset") and said.get("do_rescale", True) else 0.0
    return _text([(mean + offset) / (255 * factor) for mean in means], [std / (255 * factor) for std in stds])


def _weights_name(value: Any, settings: Mapping[str, Any]) -> str | None:
    """The full name of torchvision's weights entry; ``DEFAULT`` alone is the network's own."""
    if isinstance(value, WeightsEnum):
        return str(value)
    arch = settings.get("model", settings.get("arch"))
    try:
        if isinstance(value, str) and re.fullmatch(r"\w+_Weights\.\w+", value):
            return str(get_weight(value))
        if isinstance(value, str) and isinstance(arch, str) and re.fullmatch(r"[A-Z][A-Z0-9_]+", value):
            return str(get_model_weights(arch)[value])
    except (ValueError, AttributeError, KeyError):
        pass
    return None


def _torchvision(name: str) -> Preprocessing:
    preset = get_weight(name).transforms()
    size, resized = _size(getattr(preset, "crop_size", None)), _size(getattr(preset, "resize_size", None))
    mode = getattr(getattr(preset, "interpolation", None), "value", None)
    return Preprocessing(
        image_size=size,
        normalize=_normalize(getattr(preset, "mean", None), getattr(preset, "std", None)),
        resize="shorter" if size else None,
        crop_fraction=size / resized if size and resized and size <= resized else None,
        interpolation=mode if mode in _RESAMPLE.values() else None,
    )


def _normalize(mean: Any, std: Any) -> str | None:
    means, stds = _numbers(mean), _numbers(std)
    if not means or not stds or min(stds) <= 0:
        return None
    # Some say it for pixels up to 255.
    top = 255.0 if max(*means, *stds) > 4 else 1.0
    return _text([number / top for number in means], [number / top for number in stds])


def _text(*parts: Sequence[float]) -> str:
    text = "/".join(",".join(f"{number:.9g}" for number in part) for part in parts)
    return "none" if text == "0/1" else text


def _numbers(value: Any) -> list[float]:
    values = [value] if isinstance(value, int | float) else value
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) not in (1, 3):
        return []
    good = all(isinstance(one, int | float) and -255 <= one <= 255 for one in values)
    return [float(one) for one in values] if good else []


def _sides(value: Any) -> tuple[int, int] | None:
    """Height and width, from one number, two, or three with the channels first."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
    pair = pair * 2 if len(pair) == 1 else pair[-2:]
    good = [side for side in pair if isinstance(side, int) and not isinstance(side, bool) and 1 < side <= _LARGEST]
    return (good[0], good[1]) if len(good) == 2 else None


def _size(value: Any) -> int | None:
    sides = _sides(value)
    return sides[0] if sides and sides[0] == sides[1] else None


def _fraction(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None
