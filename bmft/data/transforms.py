"""What happens to pixels between the decoded image and the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from bmft._assumed import Assumption
from bmft._text import short
from bmft.data.images import Pixels, fit
from bmft.errors import ConfigError, DataError


class Normalization(NamedTuple):
    """``pixel * factor + shift``: scaling to [0, 1], then mean and standard deviation, in one step."""

    factor: Tensor
    shift: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Float32 ``(n, c, h, w)`` from uint8 ``(n, c, h, w)``."""
        return pixels.to(torch.float32).mul_(self.factor).add_(self.shift)

    def on(self, device: torch.device) -> Normalization:
        """The same on `device`."""
        return Normalization(self.factor.to(device), self.shift.to(device))


def parse_normalization(text: str, channels: int) -> Normalization:
    """Read ``imagenet``, ``none`` or ``MEAN/STD`` (one number, or one per channel, each).

    Raises:
        ConfigError: anything else, a wrong count, or a standard deviation that is not positive.

    >>> parse_normalization("0.5/0.25", 1)(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten()
    tensor([-2.,  2.])
    """
    known = {"none": "0/1", "imagenet": "0.485,0.456,0.406/0.229,0.224,0.225"}
    try:
        mean, std = (
            torch.tensor([float(number) for number in part.split(",")], dtype=torch.float64)
            for part in known.get(text, text).split("/")
        )
    except ValueError:
        mean = std = torch.zeros(0, dtype=torch.float64)
    sizes_fit = len(mean) in (1, channels) and len(std) in (1, channels)
    # The largest value that comes out has to be a float32.
    if not sizes_fit or not bool((std > 0).all() and ((1 + mean.abs()) / std).float().isfinite().all()):
        raise ConfigError(
            f"normalize {short(text)!r}: expected imagenet (3 channels), none, or MEAN/STD with {channels} numbers "
            "each, such as 0.76,0.55,0.57/0.14,0.15,0.17."
        )
    return Normalization((1 / (255 * std))[:, None, None].float(), (-mean / std)[:, None, None].float())


RESIZES = ("shorter", "squash", "pad")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_OPTIONS = "--normalize, --image-size, --resize, --crop-fraction, --interpolation, --transform"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; None where nothing says so.

    Attributes:
        image_size: the side of the square; None leaves images as they are.
        normalize: ``imagenet``, ``none`` or ``MEAN/STD`` after scaling to [0, 1].
        resize: ``shorter`` (the shorter side, then the centre is cut out), ``squash`` (both sides) or ``pad``
            (the longer side, then black is added).
        crop_fraction: share of the resized side that is cut out.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        transform: a function of a PIL image that gives a ``(channels, height, width)`` tensor, in place of all
            the others.

    >>> Preprocessing(resize="squash").over(Preprocessing(resize="pad", image_size=64)).image_size
    64
    """

    image_size: int | None = None
    normalize: str | None = None
    resize: str | None = None
    crop_fraction: float | None = None
    interpolation: str | None = None
    transform: Callable[[Image.Image], Any] | None = None

    def over(self, other: Preprocessing | None) -> Preprocessing:
        """What this says, else what `other` says."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name, None)) for f in fields(self))
        return Preprocessing(**{name: theirs if own is None else own for name, own, theirs in pairs})

    def check(self) -> None:
        """Raise unless every value is one of those it can have.

        Raises:
            ConfigError: one is not.
        """
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"image size {self.image_size}: expected a positive number of pixels.")
        for name, value, known in (
            ("resize", self.resize, RESIZES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if value is not None and value not in known:
                raise ConfigError(f"{name} {short(value)!r}: expected {', '.join(known)}.")
        if self.crop_fraction is not None and not 0 < self.crop_fraction <= 1:
            raise ConfigError(f"crop fraction {self.crop_fraction}: expected more than 0 and at most 1.")

    @property
    def usual(self) -> bool:
        """Whether images are resized by their shorter side, bilinearly, and the whole centre is taken."""
        whole = (self.crop_fraction or 1.0) == 1.0
        return self.transform is None and whole and self.resize in (None, "shorter") and self._mode == "bilinear"

    @property
    def _mode(self) -> str:
        return self.interpolation or "bilinear"

    def normalization(self, channels: int) -> Normalization:
        """The last step, for what `prepared` gives."""
        if self.transform is not None:
            return Normalization(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
        return parse_normalization(self.normalize or "imagenet", channels)

    def prepared(self, pixels: Pixels) -> npt.NDArray[Any]:
        """``(height, width, channels)`` uint8 -> ``(channels, height, width)``: uint8, or float32 of `transform`.

        Raises:
            DataError: `transform` gives something else.
        """
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        if self.transform is not None:
            return self._transformed(image)
        if self.image_size is not None:
            image = fit(image, self.image_size) if self.usual else self._resized(image, self.image_size)
        return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)

    def _resized(self, image: Image.Image, size: int) -> Image.Image:
        # As timm and torchvision do: 224 of 0.875 is a resize to 256. The small number is for 224 / (224 / 232).
        side = math.floor(size / (self.crop_fraction or 1.0) + 1e-6)
        mode = InterpolationMode(self._mode)
        if self.resize == "squash":
            image = functional.resize(image, [side, side], mode)
        elif self.resize == "pad":
            scale = side / max(image.size)
            width, height = (max(1, round(length * scale)) for length in image.size)
            image = functional.resize(image, [height, width], mode)
            left, top = (side - width) // 2, (side - height) // 2
            image = functional.pad(image, [left, top, side - width - left, side - height - top])
        else:
            image = functional.resize(image, [side], mode)
        cut: Image.Image = functional.center_crop(image, [size, size])
        return cut

    def _transformed(self, image: Image.Image) -> npt.NDArray[np.float32]:
        made = self.transform(image) if self.transform else None
        if not isinstance(made, Tensor | np.ndarray) or made.ndim != 3:
            shape = f" {tuple(made.shape)}" if isinstance(made, Tensor | np.ndarray) else ""
            raise DataError(f"the transform gives a {type(made).__name__}{shape}: expected (channels, height, width)")
        return np.asarray(torch.as_tensor(made).to(torch.float32))

    def assumed(self, known: Preprocessing | None, source: str) -> tuple[Assumption, ...]:
        """What the options leave to `known`, found in `source`, and else to ImageNet's."""
        if self.transform is not None:
            return ()
        final = self.over(known)
        words = {
            "normalize": f"normalized by {final.normalize or 'imagenet'}",
            "image_size": f"image size {final.image_size}",
            "resize": f"resized by {final.resize or 'shorter'}"
            + (" side, centre cut out" if final.resize in (None, "shorter") else ""),
            "crop_fraction": f"crop fraction {final.crop_fraction or 1:g}",
            "interpolation": self._mode if known is None else (final.interpolation or "bilinear"),
        }
        names = [name for name in words if getattr(self, name) is None]
        found = [name for name in names if known is not None and getattr(known, name) is not None]
        # Sizes that nobody gives are the files' own, and then nothing is resized.
        left = [name for name in names if name not in found and (name == "normalize" or final.image_size is not None)]
        left = [name for name in left if name != "image_size"]

        def one(which: list[str], where: str, guess: bool) -> Iterator[Assumption]:
            if which:
                yield Assumption("pixels", ", ".join(words[name] for name in which), where, _OPTIONS, guess)

        return (*one(found, source, False), *one(left, "nothing says how the network was trained", "normalize" in left))
