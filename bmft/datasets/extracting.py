"""Images that lie inside other files, written beside the manifest as they are, byte for byte."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from bmft._common import put
from bmft.errors import DataError


def extract(data: bytes, pictures: Path, name: str) -> str:
    """Write one image file's bytes; gives its path relative to the manifest's folder.

    Args:
        data: the file's content, of any kind that Pillow knows.
        pictures: the folder of the images; its parent is the manifest's.
        name: of the file, without its ending.

    Raises:
        DataError: the bytes are no image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = str(image.format).lower()
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {name}: {'no image' if data else 'empty'}: {error}") from error
    file = pictures / f"{name}.{'jpg' if kind == 'jpeg' else kind}"
    file.parent.mkdir(parents=True, exist_ok=True)
    put(data, file)
    return file.relative_to(pictures.parent).as_posix()
