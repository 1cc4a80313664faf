"""Where inputs come from: decoded images in memory, files decoded on request, arrays."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from bmft.data.arrays import Inputs, images_of, leaves, map_images, map_tensors
from bmft.data.images import Pixels, decode_image, log, read_image
from bmft.data.preprocessing import Preprocessing
from bmft.data.transforms import Normalization
from bmft.errors import ConfigError, DataError

Looks = npt.NDArray[np.uint64]  # 64 bits of a digest of the pixels, whatever file they came from


class Source(Protocol):
    """Where inputs come from: the batch of some rows, and one digest per row's content."""

    def take(self, index: Tensor) -> Any:
        """The inputs of these rows."""

    def digests(self, index: Tensor) -> list[bytes]:
        """32 bytes per row that stand for its content."""


@dataclass(frozen=True)
class DecodedImages:
    """Pixels ``(n, channels, height, width)`` in memory, uint8 (or float32 of a transform); `take` normalizes."""

    pixels: Tensor
    normalization: Normalization | None
    sha256: Pixels | None = None
    looks: Looks | None = None
    resized: bool = False

    def take(self, index: Tensor) -> Tensor:
        """Float32 ``(len(index), c, h, w)``, where the pixels are."""
        pixels = self.pixels.index_select(0, index.to(self.pixels.device))
        return pixels if self.normalization is None else self.normalization(pixels)

    def on(self, device: torch.device, index: Tensor) -> DecodedImages:
        """These rows alone, with their pixels on `device`."""
        digests = np.frombuffer(b"".join(self.digests(index)), np.uint8).reshape(len(index), 32)
        pixels = self.pixels.index_select(0, index).to(device)
        return DecodedImages(pixels, self.normalization and self.normalization.on(device), digests)

    def digests(self, index: Tensor) -> list[bytes]:
        """SHA-256 of each file, or of each image's pixels where there was no file."""
        if self.sha256 is not None:
            return [self.sha256[i].tobytes() for i in index.tolist()]
        return [hashlib.sha256(self.pixels[i].numpy().tobytes()).digest() for i in index.tolist()]


@dataclass(frozen=True)
class StreamedImages:
    """Files decoded by a pool of threads each time they are asked for."""

    paths: Sequence[Path]
    how: Preprocessing
    channels: int
    normalization: Normalization | None
    sha256: Pixels
    workers: int
    bits: int | None = None
    looks: Looks | None = None
    resized: bool = False

    def take(self, index: Tensor) -> Tensor:
        """Float32 ``(len(index), c, h, w)``."""
        with ThreadPoolExecutor(self.workers) as pool:
            images = list(pool.map(self._decode, index.tolist()))
        pixels = torch.from_numpy(np.stack(images))
        return pixels if self.normalization is None else self.normalization(pixels)

    def _decode(self, row: int) -> npt.NDArray[Any]:
        try:
            return self.how.prepared(decode_image(read_image(self.paths[row]), channels=self.channels, bits=self.bits))
        except (OSError, DataError) as error:
            raise DataError(f"{self.paths[row]}: could be read before and cannot now: {error}") from error

    def digests(self, index: Tensor) -> list[bytes]:
        """SHA-256 of each file as it was when the set was loaded."""
        return [self.sha256[i].tobytes() for i in index.tolist()]


FLIPS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "hflip": lambda images: images.flip(-1),
    "vflip": lambda images: images.flip(-2),
    "transpose": lambda images: images.transpose(-1, -2),
}


@dataclass(frozen=True)
class Flipped:
    """The rows `index` of a source of images once for every subset of `flips`, the empty one first."""

    source: Source
    index: Tensor
    flips: tuple[str, ...]

    @property
    def views(self) -> int:
        """How often each image stands here."""
        return int(2 ** len(self.flips))

    def check(self) -> None:
        """Raise unless these are images that can be flipped so.

        Raises:
            ConfigError: a flip is unknown, or the inputs are no images, or not square ones for a transpose.
        """
        if unknown := set(self.flips) - set(FLIPS):
            raise ConfigError(f"views has {sorted(unknown)[0]!r}: expected any of {', '.join(FLIPS)}")
        images = images_of(self.source.take(self.index[:1]))
        if not images or ("transpose" in self.flips and any(one.shape[-1] != one.shape[-2] for one in images)):
            raise ConfigError("flipped views need square images of shape (n, c, h, w): turn them off for other inputs")

    def take(self, index: Tensor) -> Inputs:
        """The inputs of these rows, each image as its view has it."""
        view = (index // len(self.index)).to("cpu")

        def flipped(images: Tensor) -> Tensor:
            for place, name in enumerate(self.flips):
                chosen = (view >> place & 1).bool().to(images.device)
                images = torch.where(chosen[:, None, None, None], FLIPS[name](images), images)
            return images

        return map_images(flipped, self.source.take(self.index[index % len(self.index)]))

    def digests(self, index: Tensor) -> list[bytes]:
        """Of the image and its view."""
        views = (index // len(self.index)).tolist()
        found = self.source.digests(self.index[index % len(self.index)])
        return [hashlib.sha256(digest + bytes([view])).digest() for digest, view in zip(found, views, strict=True)]


@dataclass(frozen=True)
class BadImage:
    """One unreadable file: its place in the list, and why."""

    position: int
    reason: str


def load_images(
    paths: Sequence[Path],
    *,
    how: Preprocessing,
    channels: int,
    cache_bytes: int,
    workers: int = 0,
    bits: int | None = None,
) -> tuple[DecodedImages | StreamedImages, list[BadImage]]:
    """Decode every file once, over threads: into memory where all fit in `cache_bytes`, else only to check.

    `workers` 0 means one thread per processor, at most 8. Unreadable files come back in order; their place in
    the source must not be asked for.

    Raises:
        DataError: the images have different sizes and no `size` was given, or `how` cannot prepare the first.
    """
    normalization = how.normalization(channels)
    workers = workers or min(8, os.cpu_count() or 1)
    first = _first(paths, how, channels, bits)
    fits = len(paths) * first.nbytes <= cache_bytes
    pixels = np.zeros((len(paths), *first.shape), first.dtype) if fits else None

    digests, looks = np.zeros((len(paths), 32), np.uint8), np.zeros(len(paths), np.uint64)
    bad: list[BadImage] = []
    shares: list[float] = []
    odd: list[tuple[int, tuple[int, int]]] = []
    resized = False

    def load(row: int) -> None:
        nonlocal resized
        try:
            data = read_image(paths[row])
            decoded = decode_image(data, channels=channels, bits=bits, shares=shares)
            image = how.prepared(decoded)
        except (OSError, ValueError, DataError) as error:
            bad.append(BadImage(row, _reason(error)))
            return
        resized |= not how.keeps(*decoded.shape[:2])
        digests[row] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        looks[row] = int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest())
        if image.shape != first.shape:
            odd.append((row, (image.shape[1], image.shape[2])))
        elif pixels is not None:
            pixels[row] = image

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("always")
        # In blocks, as the pool holds a record of every call that it was given: a kilobyte for each of a million rows.
        for start in range(0, len(paths), _BLOCK):
            deque(pool.map(load, range(start, min(start + _BLOCK, len(paths)))), maxlen=0)
    if caught:
        log.warning("decoding gave %d warnings; the first: %s", len(caught), caught[0].message)
    if shares and max(shares) < _FEW_SHADES:
        log.warning(
            "the 16-bit images use at most %.1f %% of their range: say with --bits how many bits are used",
            100 * max(shares),
        )
    if odd:
        row, (height, width) = min(odd)
        raise DataError(
            f"{len(odd)} of {len(paths)} images are not {first.shape[2]}x{first.shape[1]} as the first: {paths[row]} "
            f"is {width}x{height}. "
            + ("Give an image size (--image-size) to bring all to one." if how.own else "A transform has to do that.")
        )
    bad.sort(key=lambda one: one.position)
    if pixels is not None:
        return DecodedImages(torch.from_numpy(pixels), normalization, digests, looks, resized), bad
    return StreamedImages(paths, how, channels, normalization, digests, workers, bits, looks, resized), bad


_BLOCK = 4096
_FEW_SHADES = 0.25  # of 16 bits: 14 or fewer are used


def _first(paths: Sequence[Path], how: Preprocessing, channels: int, bits: int | None) -> npt.NDArray[Any]:
    """What the first readable image becomes: the shape and type of all."""
    if how.own and how.image_size is not None:
        return np.zeros((channels, how.image_size, how.image_size), np.uint8)
    for path in paths:
        try:
            decoded = decode_image(read_image(path), channels=channels, bits=bits)
        except (OSError, ValueError, DataError):
            continue  # listed with all the others by load_images
        try:
            return how.prepared(decoded)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return np.zeros((channels, 1, 1), np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


def images_from_array(array: npt.NDArray[Any], *, how: Preprocessing, channels: int) -> DecodedImages:
    """Pixels from one ``(n, h, w, c)`` or ``(n, h, w)`` uint8 array.

    Raises:
        DataError: another type or shape.
    """
    grey = array.ndim == 3
    if array.dtype != np.uint8 or not (grey or (array.ndim == 4 and array.shape[3] in (1, 3, 4))):
        raise DataError(f"images are {array.dtype} {array.shape}; expected uint8 (n, h, w) or (n, h, w, 1|3|4)")
    normalization = how.normalization(channels)
    images = array[..., None] if grey else array
    as_they_are = how.keeps(*images.shape[1:3])
    if images.shape[3] == channels and as_they_are:
        return DecodedImages(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), normalization)
    single = images[..., 0] if images.shape[3] == 1 else images
    return prepared_images(map(Image.fromarray, single), how, channels)


def prepared_images(images: Iterable[Image.Image], how: Preprocessing, channels: int) -> DecodedImages:
    """Pixels of images in memory, each prepared as `how` says.

    Raises:
        DataError: they come out in several shapes.
    """
    whole = [np.asarray(image.convert("RGB" if channels == 3 else "L")) for image in images]
    fitted = [how.prepared(pixels.reshape(*pixels.shape[:2], channels)) for pixels in whole]
    if odd := [pixels.shape for pixels in fitted if pixels.shape != fitted[0].shape]:
        hint = "say image_size=N" if how.own else "a transform has to bring them to one"
        raise DataError(f"images become {fitted[0].shape} and {odd[0]}: expected one shape; {hint}.")
    resized = not all(how.keeps(*pixels.shape[:2]) for pixels in whole)
    return DecodedImages(torch.from_numpy(np.stack(fitted)), how.normalization(channels), resized=resized)


@dataclass(frozen=True)
class ArraySource:
    """Inputs already in memory, used as they are."""

    inputs: Inputs

    def take(self, index: Tensor) -> Inputs:
        """The inputs of these rows."""
        return map_tensors(lambda tensor: tensor.index_select(0, index), self.inputs)

    def digests(self, index: Tensor) -> list[bytes]:
        """SHA-256 of each row's values."""
        tensors = [tensor.contiguous() for tensor in leaves(self.inputs)]
        return [
            hashlib.sha256(b"".join(tensor[i].numpy().tobytes() for tensor in tensors)).digest() for i in index.tolist()
        ]
