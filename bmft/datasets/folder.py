"""A folder of images in one folder per class, as torchvision's ImageFolder reads it.

``ROOT/CLASS/any/depth/image.jpg``, or ``ROOT/SPLIT/CLASS/...`` where every folder of ROOT is named as a split: train,
val (valid, validation, dev), test. Files that are no images are left out and counted.

- ``label``: the name of the class's folder. ``split``: the split's folder, else empty.
- Sex, age, patients: from ``--demographics CSV``, joined by path, file name or file name without its ending.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from bmft.datasets import official
from bmft.errors import DataError
from bmft.tables import ROLES

log = logging.getLogger(__name__)
SPLITS = {name for names in ROLES.values() for name in names}


def prepare(root: Path, pictures: Path) -> pd.DataFrame:
    """Read the folder into a manifest; `pictures` is not used, images stay where they are."""
    tops = [folder for folder in sorted(root.glob("*")) if folder.is_dir() and not folder.name.startswith(".")]
    splits = bool(tops) and all(folder.name.lower() in SPLITS for folder in tops)
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    images = [file for file in files if file.suffix.lower() in (*official.IMAGES, ".webp")]
    parts = [file.relative_to(root).parts for file in images]
    inside = [len(part) > 1 + splits for part in parts]
    if not any(inside):
        raise DataError(
            f"{root}: {'no such folder' if not root.is_dir() else 'no images in folders of classes'}: expected "
            "ROOT/CLASS/image.jpg or ROOT/train/CLASS/image.jpg."
        )
    if left := len(files) - sum(inside):
        log.warning("%s: %d files are no images in the folder of a class and are left out", root, left)
    kept = [part for part, good in zip(parts, inside, strict=True) if good]
    classes = sorted({part[splits] for part in kept})
    if len(classes) < 2:
        raise DataError(f"{root}: one class only, {classes[0]!r}: expected a folder for each class.")
    table = pd.DataFrame(
        {
            "path": ["/".join(part) for part in kept],
            "label": [part[splits] for part in kept],
            "split": [part[0] if splits else "" for part in kept],
        }
    )
    table.attrs["images_at"] = root
    return table
