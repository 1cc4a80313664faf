"""Image files as pixels: one file decoded to uint8, a set of files held in memory or decoded on request."""

from __future__ import annotations

import io
import logging
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from bmft.errors import DataError, MissingExtraError

log = logging.getLogger(__name__)
Pixels = npt.NDArray[np.uint8]
# what the two libraries raise on damaged files, found by cutting files short and changing bytes
_PILLOW = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
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
        image = fit(image.convert("RGB" if channels == 3 else "L"), size)
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


def fit(image: Image.Image, size: int | None) -> Image.Image:
    """The image as a square of `size`, or as it is."""
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
