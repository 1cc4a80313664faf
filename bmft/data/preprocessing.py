"""How an image becomes the network's input: what was said, what is known, and else ImageNet's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from bmft._common import Assumption, short
from bmft.data.images import Pixels
from bmft.data.transforms import Normalization, parse_normalization
from bmft.errors import ConfigError, DataError, MissingExtraError

RESIZES = ("shorter", "squash", "pad")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_SHAPING = ("image_size", "resize", "crop_fraction", "interpolation")
_SETTINGS = ("normalize", *_SHAPING)
_CUT = {
    "shorter": "the shorter side, centre cut out",
    "squash": "both sides",
    "pad": "the longer side, black around it",
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; a field is None where nothing says it.

    Attributes:
        image_size: the side of the square; None leaves images as they are.
        normalize: ``imagenet``, ``half`` (0.5/0.5), ``none`` or ``MEAN/STD`` after scaling to [0, 1].
        resize: ``shorter`` (the shorter side, then the centre is cut out), ``squash`` (both sides) or ``pad``
            (the longer side, then black is added).
        crop_fraction: share of the resized side that is cut out.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        transform: a function of a PIL image that gives a ``(channels, height, width)`` tensor, used as it is in place
            of all the others.
        shaped: a library's own function of a PIL image that gives uint8 ``(channels, height, width)``, in place of
            the settings but `normalize`, which it is described by.
        library: whose function that is, also where it is not installed.
        lacking: what the library does and the settings do not say, where that is something.

    >>> Preprocessing(resize="squash").over(Preprocessing(resize="pad", image_size=64)).image_size
    64
    """

    image_size: int | None = None
    normalize: str | None = None
    resize: str | None = None
    crop_fraction: float | None = None
    interpolation: str | None = None
    transform: Callable[[Image.Image], Any] | None = None
    shaped: Callable[[Image.Image], Any] | None = field(default=None, compare=False)
    library: str = field(default="", compare=False)
    lacking: str = ""

    def over(self, other: Preprocessing | None) -> Preprocessing:
        """What this says, else what `other` says.

        Raises:
            ConfigError: this says a part of what `other` does in a way that the settings do not tell.
        """
        if other is None or self.transform is not None:
            return self
        said = {name: value for name in _SETTINGS if (value := getattr(self, name)) is not None}
        both = replace(other, **said)
        changed = [name for name in _SHAPING if getattr(both, name) != getattr(other, name)]
        left = [name for name in _SHAPING if getattr(self, name) is None]
        if changed and other.lacking and left:
            raise ConfigError(
                f"{_option(changed[0])}: what is known of the pixels {other.lacking}, which cannot be combined with "
                f"that: say {', '.join(map(_option, left))} too, or --transform."
            )
        return replace(both, shaped=None, lacking="") if changed else both

    def check(self) -> None:
        """Raise unless every value is one of those it can have.

        Raises:
            ConfigError: one is not, or a transform goes with settings that it stands for.
        MissingExtraError: only a library that is not installed does what is known.
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
        beside = [name for name in _SETTINGS if getattr(self, name) is not None]
        if self.transform is not None and beside:
            raise ConfigError(f"--transform makes the whole input: leave out {', '.join(map(_option, beside))}.")
        if self.lacking and self.shaped is None:
            raise MissingExtraError(
                f"what is known of the pixels {self.lacking}, which {self.library} does (pip install "
                f"'bmft[{self.library}]'): say --transform where it cannot."
            )

    @property
    def own(self) -> bool:
        """Whether the settings say it all, and no transform of others."""
        return self.transform is None and self.shaped is None

    def keeps(self, height: int, width: int) -> bool:
        """Whether images of this size stay as they are but for the normalization."""
        whole = self.crop_fraction in (None, 1.0)
        return self.own and (self.image_size is None or (whole and height == width == self.image_size))

    def normalization(self, channels: int) -> Normalization | None:
        """The last step, for what `prepared` gives; None where `transform` does it all."""
        if self.transform is not None:
            return None
        return parse_normalization(self.normalize or "imagenet", channels)

    def prepared(self, pixels: Pixels) -> npt.NDArray[Any]:
        """``(height, width, channels)`` uint8 -> ``(channels, height, width)``: uint8, or float32 of `transform`.

        Raises:
            DataError: `transform` gives something else.
        """
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        if self.transform is not None:
            return np.asarray(_made(self.transform, image, pixels.shape[2]).to(torch.float32))
        if self.shaped is not None:
            return np.asarray(_made(self.shaped, image, pixels.shape[2]).to(torch.uint8))
        if self.image_size is not None:
            image = self._resized(image, self.image_size)
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

    @property
    def _mode(self) -> str:
        return self.interpolation or "bilinear"

    def words(self) -> dict[str, str]:
        """Setting -> what it says, of those that say something."""
        said = {
            "normalize": f"normalized by {self.normalize}",
            "image_size": f"image size {self.image_size}",
            "resize": f"resized by {_CUT.get(str(self.resize))}",
            "crop_fraction": f"crop fraction {self.crop_fraction or 1:.3g}",
            "interpolation": f"{self.interpolation}",
        }
        return {name: words for name, words in said.items() if getattr(self, name) is not None}

    def assumed(self, known: Preprocessing | None, source: str, *, resized: bool = True) -> tuple[Assumption, ...]:
        """What the options leave to `known`, found in `source`, and else to ImageNet's.

        Args:
            known: as for `over`.
            source: where it comes from.
            resized: whether any image has another size than what comes out.
        """
        if self.transform is not None:
            return (Assumption("pixels", f"prepared by {name_of(self.transform)}", "--transform", "--transform"),)
        final = self.over(known)
        resized = resized and final.image_size is not None and final.shaped is None
        words = final.over(_USUAL).words()
        names = [name for name in _SETTINGS if getattr(self, name) is None]
        found = [name for name in names if known is not None and getattr(known, name) is not None]
        # Where no image is resized, how makes no difference.
        left = [n for n in names if n not in found and (n == "normalize" or (resized and n != "image_size"))]

        def one(which: list[str], where: str, guess: bool) -> Iterator[Assumption]:
            if which:
                options = ", ".join([*map(_option, which), "--transform"])
                yield Assumption("pixels", ", ".join(words[name] for name in which), where, options, guess)

        return (*one(found, source, False), *one(left, "nothing says how the network was trained", True))


_USUAL = Preprocessing(None, "imagenet", "shorter", 1.0, "bilinear")


def name_of(function: Callable[..., Any]) -> str:
    """A callable as ``module:name``; of an object without a name its class's."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _made(function: Callable[[Image.Image], Any], image: Image.Image, channels: int) -> Tensor:
    """What a transform makes of an image.

    Raises:
        DataError: no tensor of the right shape.
    """
    made = function(image)
    expected = f"expected a tensor ({channels}, height, width)"
    if not isinstance(made, Tensor | np.ndarray) or (isinstance(made, np.ndarray) and made.dtype.kind not in "biuf"):
        raise DataError(f"the transform gives a {type(made).__name__}: {expected}")
    tensor = torch.as_tensor(made).detach().cpu()
    if tensor.dim() != 3 or tensor.shape[0] != channels or not tensor.numel() or tensor.is_complex():
        raise DataError(f"the transform gives {tuple(tensor.shape)}: {expected}")
    return tensor
