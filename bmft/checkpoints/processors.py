"""Libraries' own preparation of images: timm's and Hugging Face's, as their configurations say it, up to uint8."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

Shaping = Callable[[Image.Image], Tensor]
# What the libraries raise on configurations that make no sense to them.
_REFUSED = (AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def timm_shaping(
    size: tuple[int, int], mean: tuple[float, ...], *, crop_fraction: float, crop_mode: str, interpolation: str
) -> Shaping | None:
    """The resize and cut that timm ; None where timm is not installed."""
    if find_spec("timm") is None:
        return None
    from timm.data.transforms_factory import create_transform

    made: Shaping = create_transform(
        size, mean=mean, crop_pct=crop_fraction, crop_mode=crop_mode, interpolation=interpolation, normalize=False
    )
    return made


def timm_defaults(name: str) -> Mapping[str, Any]:
    """What timm's training script takes for a network where its options say nothing; nothing without timm."""
    if find_spec("timm") is None:
        return {}
    import timm

    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return {} if found is None else dict(vars(found))


def hugging_face_shaping(file: Path) -> tuple[Shaping | None, Mapping[str, Any]]:
    """The image processor that a file describes, and all that it is set to; None without transformers, or its word."""
    if find_spec("transformers") is None:
        return None, {}
    return _processor(file.parent, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _processor(folder: Path, _: int) -> tuple[Shaping | None, Mapping[str, Any]]:
    # Code that the folder brings along is not run.
    with _without_remarks():
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            said = processor.to_dict()
        except _REFUSED:
            return None, {}

    return partial(_shaped, processor), said


def _shaped(processor: Any, image: Image.Image) -> Tensor:
    # Its own rescaling and normalization are said by numbers, and come last.
    made = processor(images=image, return_tensors="pt", do_rescale=False, do_normalize=False)
    pixels: Tensor = made["pixel_values"][0]
    return pixels


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
