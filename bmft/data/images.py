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


def decode_image(
    data: bytes, *, channels: int = 3, bits: int | None = None, shares: list[float] | None = None
) -> Pixels:
    """Decode one JPEG, PNG, TIFF, ... or DICOM file to ``(height, width, channels)`` uint8.

    16-bit images are scaled by their full range, or by ``2**bits - 1``, and float images by [0, 1]. DICOM
    values go through pydicom's modality LUT or rescale slope and intercept, and its first window or VOI LUT
    (without one: the image's own range); MONOCHROME1 is inverted, palettes and YBR become RGB. Alpha is dropped
    and the EXIF orientation is not applied, as in torchvision's ImageFolder. `shares` is given the share of its
    range that a deeper image uses.

    Raises:
        DataError: the bytes are no image, a damaged one, or one with several frames.
        MissingExtraError: a DICOM file without pydicom installed.
    """
    try:
        image = _image(data, bits, shares).convert("RGB" if channels == 3 else "L")
    except UnidentifiedImageError as error:
        raise DataError("not an image" if data else "empty file") from error
    except _PILLOW as error:
        raise DataError(f"damaged or of an unknown kind: {error}") from error
    return np.asarray(image).reshape(image.height, image.width, channels)


def _image(data: bytes, bits: int | None, shares: list[float] | None) -> Image.Image:
    if data[128:132] == b"DICM":
        return _dicom(data)
    try:
        return _eight_bit(Image.open(io.BytesIO(data)), bits, shares)
    except UnidentifiedImageError:
        # Older archives keep data sets without the preamble; they begin with group 2 or 8.
        if data[:2] not in (b"\x02\x00", b"\x08\x00"):
            raise
        return _dicom(data)


def _eight_bit(image: Image.Image, bits: int | None, shares: list[float] | None) -> Image.Image:
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{getattr(image, 'n_frames', 1)} frames where one image was expected")
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scaled(np.asarray(image), bits or 16, shares))
    # Pillow warns when a palette with transparency goes straight to RGB
    return image.convert("RGBA") if "transparency" in image.info else image


def _scaled(values: npt.NDArray[Any], bits: int = 16, shares: list[float] | None = None) -> Pixels:
    top = 1.0 if values.dtype.kind == "f" else 2.0**bits - 1
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= top:
        raise ValueError(f"{values.dtype} values from {low:g} to {high:g} where 0 to {top:g} were expected")
    if shares is not None and values.dtype.kind != "f":
        shares.append(high / top)
    return np.rint(values * (255.0 / top)).astype(np.uint8)


def _dicom(data: bytes) -> Image.Image:
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError as error:
        raise MissingExtraError("DICOM images need pydicom: pip install 'bmft[medical]'") from error
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        if "PixelData" not in dataset and "FloatPixelData" not in dataset:
            raise ValueError("there are no pixels in it")
        return _dicom_image(dataset)
    except (BytesLengthException, InvalidDicomError, *_PYDICOM) as error:
        raise DataError(f"DICOM: {error}") from error


def _dicom_image(dataset: Any) -> Image.Image:
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ValueError(f"{dataset.NumberOfFrames} frames where one image was expected")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    stored = dataset.pixel_array  # pydicom makes RGB of YBR
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)[..., :3]
    if stored.ndim == 3:
        return Image.fromarray(stored if stored.dtype == np.uint8 else _scaled(stored))
    _leave_out_empty(dataset)
    values = apply_modality_lut(stored, dataset)
    if "VOILUTSequence" in dataset:
        values = apply_voi_lut(values.astype(np.int64), dataset)
        shades = np.clip(values / (2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1), 0, 1)
    else:
        shades = _windowed(dataset, values.astype(np.float64))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shades = 1 - shades
    return Image.fromarray(np.rint(shades * 255).astype(np.uint8))


def _leave_out_empty(dataset: Any) -> None:
    """Take elements that are there without a value as not there; one of a pair alone gets what means nothing."""
    pairs = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": None, "WindowWidth": None}
    for key in (*pairs, "VOILUTFunction", "ModalityLUTSequence", "VOILUTSequence"):
        value = dataset.get(key)
        parts = [value] if value is None or isinstance(value, str | float | int) else list(value)
        if key in dataset and (not parts or parts[0] is None or parts[0] == ""):
            del dataset[key]
    if "VOILUTSequence" in dataset and not dataset.VOILUTSequence[0].get("LUTData"):
        del dataset["VOILUTSequence"]
    if "RescaleSlope" in dataset or "RescaleIntercept" in dataset:
        for key in ("RescaleSlope", "RescaleIntercept"):
            if key not in dataset:
                setattr(dataset, key, pairs[key])


def _windowed(dataset: Any, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The values in the first window as 0, black, to 1, white (DICOM PS3.3 C.11.2); without one, in their range."""
    from pydicom.dataset import Dataset
    from pydicom.pixels.processing import apply_windowing

    if "WindowCenter" not in dataset or "WindowWidth" not in dataset:
        low, high = float(values.min()), float(values.max())
        return np.asarray((values - low) / max(high - low, 1e-9))
    # pydicom spreads a window over the range of the stored values; of one bit that is 0 to 1.
    view = Dataset()
    view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = "MONOCHROME2", 1, 0
    for key in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if key in dataset:
            view[key] = dataset[key]
    return np.asarray(apply_windowing(values, view))
