"""A MedMNIST file: the npz of one of the 2D sets, such as ``dermamnist_224.npz``.

Source: Yang et al., Sci Data 10, 41 (2023), https://medmnist.com. Arrays ``train_images``, ``train_labels`` and
the same of ``val`` and ``test``; the images go into an npz beside the manifest, in its order.

- ``label``: the class number, or ``label0``, ``label1``, ... where each image has several. ``split``: train, val, test.
- ``name``: as MedMNIST saves the images, such as ``train0``. There are no people in the file; ``--demographics CSV`` is
  joined by the name.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bmft._common import short
from bmft.errors import DataError

PARTS = ("train", "val", "test")


def prepare(root: Path, pictures: Path) -> pd.DataFrame:
    """Read the file into a manifest; `pictures` is not used, ``attrs["images"]`` holds them."""
    arrays = _read(root)
    parts = [part for part in PARTS if f"{part}_images" in arrays and f"{part}_labels" in arrays]
    if not parts:
        there = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{root}: no file of MedMNIST: expected train_images and train_labels; it has {short(there)}.")
    images = [arrays[f"{part}_images"] for part in parts]
    labels = [np.asarray(arrays[f"{part}_labels"]).reshape(len(arrays[f"{part}_labels"]), -1) for part in parts]
    for part, pixels, label in zip(parts, images, labels, strict=True):
        flat = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
        if not flat:
            raise DataError(
                f"{root}: {part}_images has the shape {pixels.shape}: expected (n, h, w) or (n, h, w, 3). The sets of "
                "three dimensions are not for this tool."
            )
        if len(pixels) != len(label) or pixels.dtype != np.uint8:
            raise DataError(f"{root}: {part}: {len(pixels)} images of {pixels.dtype} for {len(label)} labels.")
    joined = np.concatenate(labels).astype(int)
    names = ["label"] if joined.shape[1] == 1 else [f"label{k}" for k in range(joined.shape[1])]
    table = pd.DataFrame(joined, columns=names)
    table.insert(
        0, "name", [f"{part}{i}" for part, label in zip(parts, labels, strict=True) for i in range(len(label))]
    )
    table["split"] = np.repeat(parts, [len(label) for label in labels])
    table.attrs |= {"images": np.concatenate(images), "keys": ("name",)}
    return table


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the npz of a MedMNIST set.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name.endswith(("_images", "_labels"))}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable npz: {short(error)}.") from error
