"""Image files as pixels: one file decoded to uint8, a set of files held in memory or decoded on request."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bmft.errors import ConfigError, DataError, MissingExtraError
from bmft.tables import short

log = logging.getLogger(__name__)
Pixels = npt.NDArray[np.uint8]
# what the two libraries raise on damaged files, found by cutting files short and changing bytes
_PILLOW = (
    OSError, EOFError, ValueError, TypeError, SyntaxError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_PYDICOM = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError, struct.error)


LARGEST_IMAGE = 1 << 30  # bytes, packed or not; of packed ones Pillow refuses a quarter of that in pixels


def read_image(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: it cannot be read.
        DataError: it is no file that ends, such as a pipe or a device, or too large for an image.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise DataError("not a file but a pipe, socket or device")
    if found.st_size > LARGEST_IMAGE:
        raise DataError(f"{found.st_size} bytes; expected at most {LARGEST_IMAGE} of an image")
    return path.read_bytes()


def decode_image(data: bytes, *, size: int | None = None, channels: int = 3) -> Pixels:
    """Decode one JPEG, PNG, TIFF, ... or DICOM file to ``(height, width, channels)`` uint8.

    16-bit images are scaled by their full range and float images by [0, 1]. DICOM values go through rescale
    slope and intercept (or modality LUT) and the first window or VOI LUT (without one: the image's own
    range); MONOCHROME1 is inverted. Alpha is dropped and the EXIF orientation is not applied, as in
    torchvision's ImageFolder. With `size` the shorter side is resized to it (bilinear, antialiased) and the
    centre is cut out.

    Raises:
        DataError: the bytes are no image, a damaged one, or one with several frames.
        MissingExtraError: a DICOM file without pydicom installed.
    """
    try:
        image = _dicom(data) if data[128:132] == b"DICM" else _eight_bit(Image.open(io.BytesIO(data)))
        image = _fit(image.convert("RGB" if channels == 3 else "L"), size)
    except UnidentifiedImageError as error:
        raise DataError("not an image" if data else "empty file") from error
    except _PILLOW as error:
        raise DataError(f"damaged or of an unknown kind: {error}") from error
    return np.asarray(image).reshape(image.height, image.width, channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{getattr(image, 'n_frames', 1)} frames where one image was expected")
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scaled(np.asarray(image)))
    # Pillow warns when a palette with transparency goes straight to RGB
    return image.convert("RGBA") if "transparency" in image.info else image


def _scaled(values: npt.NDArray[Any]) -> Pixels:
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= top:
        raise ValueError(f"{values.dtype} values from {low:g} to {high:g} where 0 to {top:g} were expected")
    return np.rint(values * (255.0 / top)).astype(np.uint8)


def _fit(image: Image.Image, size: int | None) -> Image.Image:
    if size is None:
        return image
    width, height = image.size
    if min(width, height) != size:
        scale = size / min(width, height)
        width, height = max(size, int(width * scale)), max(size, int(height * scale))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _dicom(data: bytes) -> Image.Image:
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError as error:
        raise MissingExtraError("DICOM images need pydicom: pip install 'bmft[medical]'") from error
    try:
        return _dicom_image(pydicom.dcmread(io.BytesIO(data)))
    except (BytesLengthException, InvalidDicomError, *_PYDICOM) as error:
        raise DataError(f"DICOM: {error}") from error


def _dicom_image(dataset: Any) -> Image.Image:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ValueError(f"{dataset.NumberOfFrames} frames where one image was expected")
    stored = dataset.pixel_array
    if stored.ndim == 3:
        return Image.fromarray(stored if stored.dtype == np.uint8 else _scaled(stored))
    values = apply_modality_lut(stored, dataset)
    if "VOILUTSequence" in dataset:
        values = apply_voi_lut(values.astype(np.int64), dataset)
        low, high = 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    else:
        low, high = _window(dataset, values)
    shades = np.clip((values.astype(np.float64) - low) / max(high - low, 1e-9), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shades = 1 - shades
    return Image.fromarray(np.rint(shades * 255).astype(np.uint8))


def _window(dataset: Any, values: npt.NDArray[Any]) -> tuple[float, float]:
    """The values shown as black and as white (DICOM PS3.3 C.11.2)."""
    if "WindowCenter" not in dataset:
        return float(values.min()), float(values.max())
    function = dataset.get("VOILUTFunction", "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ValueError(f"VOI LUT function {function}; LINEAR and LINEAR_EXACT are understood")
    centre, width = (float(np.atleast_1d(dataset[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return centre - width / 2, centre + width / 2


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


class Source(Protocol):
    """Where inputs come from: the batch of some rows, and one digest per row's content."""

    def take(self, index: Tensor) -> Any:
        """The inputs of these rows."""

    def digests(self, index: Tensor) -> list[bytes]:
        """32 bytes per row that stand for its content."""


@dataclass(frozen=True)
class DecodedImages:
    """Pixels ``(n, channels, height, width)`` uint8 in memory; `take` normalizes."""

    pixels: Tensor
    normalization: Normalization
    sha256: Pixels | None = None

    def take(self, index: Tensor) -> Tensor:
        """Float32 ``(len(index), c, h, w)``, where the pixels are."""
        return self.normalization(self.pixels.index_select(0, index.to(self.pixels.device)))

    def on(self, device: torch.device, index: Tensor) -> DecodedImages:
        """These rows alone, with their pixels on `device`."""
        digests = np.frombuffer(b"".join(self.digests(index)), np.uint8).reshape(len(index), 32)
        pixels = self.pixels.index_select(0, index).to(device)
        return DecodedImages(pixels, self.normalization.on(device), digests)

    def digests(self, index: Tensor) -> list[bytes]:
        """SHA-256 of each file, or of each image's pixels where there was no file."""
        if self.sha256 is not None:
            return [self.sha256[i].tobytes() for i in index.tolist()]
        return [hashlib.sha256(self.pixels[i].numpy().tobytes()).digest() for i in index.tolist()]


@dataclass(frozen=True)
class StreamedImages:
    """Files decoded by a pool of threads each time they are asked for."""

    paths: Sequence[Path]
    size: int | None
    channels: int
    normalization: Normalization
    sha256: Pixels
    workers: int

    def take(self, index: Tensor) -> Tensor:
        """Float32 ``(len(index), c, h, w)``."""
        with ThreadPoolExecutor(self.workers) as pool:
            images = list(pool.map(self._decode, index.tolist()))
        return self.normalization(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous())

    def _decode(self, row: int) -> Pixels:
        try:
            return decode_image(read_image(self.paths[row]), size=self.size, channels=self.channels)
        except (OSError, DataError) as error:
            raise DataError(f"{self.paths[row]}: could be read before and cannot now: {error}") from error

    def digests(self, index: Tensor) -> list[bytes]:
        """SHA-256 of each file as it was when the set was loaded."""
        return [self.sha256[i].tobytes() for i in index.tolist()]


@dataclass(frozen=True)
class BadImage:
    """One unreadable file: its place in the list, and why."""

    position: int
    reason: str


def load_images(
    paths: Sequence[Path],
    *,
    size: int | None,
    channels: int,
    normalize: str,
    cache_bytes: int,
    workers: int = 0,
) -> tuple[DecodedImages | StreamedImages, list[BadImage]]:
    """Decode every file once, over threads: into memory where all fit in `cache_bytes`, else only to check.

    `workers` 0 means one thread per processor, at most 8. Unreadable files come back in order; their place in
    the source must not be asked for.

    Raises:
        DataError: the images have different sizes and no `size` was given.
    """
    normalization = parse_normalization(normalize, channels)
    workers = workers or min(8, os.cpu_count() or 1)
    shape = (size, size) if size else _first_shape(paths, channels)
    fits = len(paths) * channels * shape[0] * shape[1] <= cache_bytes
    pixels = np.zeros((len(paths), channels, *shape), np.uint8) if fits else None

    digests = np.zeros((len(paths), 32), np.uint8)
    bad: list[BadImage] = []
    odd: list[tuple[int, tuple[int, int]]] = []

    def load(row: int) -> None:
        try:
            data = read_image(paths[row])
            image = decode_image(data, size=size, channels=channels)
        except (OSError, ValueError, DataError) as error:
            bad.append(BadImage(row, _reason(error)))
            return
        digests[row] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        if image.shape[:2] != shape:
            odd.append((row, (image.shape[0], image.shape[1])))
        elif pixels is not None:
            pixels[row] = image.transpose(2, 0, 1)

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("always")
        # In blocks, as the pool holds a record of every call that it was given: a kilobyte for each of a million rows.
        for start in range(0, len(paths), _BLOCK):
            deque(pool.map(load, range(start, min(start + _BLOCK, len(paths)))), maxlen=0)
    if caught:
        log.warning("decoding gave %d warnings; the first: %s", len(caught), caught[0].message)
    if odd:
        row, (height, width) = min(odd)
        raise DataError(
            f"{len(odd)} of {len(paths)} images are not {shape[1]}x{shape[0]} as the first: {paths[row]} "
            f"is {width}x{height}. Give an image size (--image-size) to bring all to one."
        )
    bad.sort(key=lambda one: one.position)
    if pixels is not None:
        return DecodedImages(torch.from_numpy(pixels), normalization, digests), bad
    return StreamedImages(paths, size, channels, normalization, digests, workers), bad


_BLOCK = 4096


def _first_shape(paths: Sequence[Path], channels: int) -> tuple[int, int]:
    for path in paths:
        try:
            height, width, _ = decode_image(read_image(path), channels=channels).shape
        except (OSError, ValueError, DataError):
            continue  # listed with all the others by load_images
        return height, width
    return 1, 1


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


def images_from_array(
    array: npt.NDArray[Any], *, size: int | None, channels: int, normalize: str
) -> DecodedImages:
    """Pixels from one ``(n, h, w, c)`` or ``(n, h, w)`` uint8 array.

    Raises:
        DataError: another type or shape.
    """
    grey = array.ndim == 3
    if array.dtype != np.uint8 or not (grey or (array.ndim == 4 and array.shape[3] in (1, 3, 4))):
        raise DataError(
            f"images are {array.dtype} {array.shape}; expected uint8 (n, h, w) or (n, h, w, 1|3|4)"
        )
    normalization = parse_normalization(normalize, channels)
    images = array[..., None] if grey else array
    if images.shape[3] != channels or (size is not None and images.shape[1:3] != (size, size)):
        mode = "RGB" if channels == 3 else "L"
        single = images[..., 0] if images.shape[3] == 1 else images
        fitted = [np.asarray(_fit(Image.fromarray(image).convert(mode), size)) for image in single]
        images = np.stack(fitted).reshape(len(fitted), *fitted[0].shape[:2], channels)
    return DecodedImages(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), normalization)
