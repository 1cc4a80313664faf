"""Public datasets: an official folder in, a manifest out; and a synthetic set for demonstration (`demo`)."""

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bmft._common import did_you_mean, replacing
from bmft.errors import ConfigError, DataError

DATASETS = {
    "ham10000": "bmft.datasets.ham10000",
    "isic2017": "bmft.datasets.isic2017",
    "isic2018": "bmft.datasets.isic2018",
    "isic2019": "bmft.datasets.isic2019",
    "isic2020": "bmft.datasets.isic2020",
    "fitzpatrick17k": "bmft.datasets.fitzpatrick17k",
    "pad-ufes-20": "bmft.datasets.pad_ufes_20",
    "derm7pt": "bmft.datasets.derm7pt",
    "papila": "bmft.datasets.papila",
    "ol3i": "bmft.datasets.ol3i",
    "oasis1": "bmft.datasets.oasis1",
    "chexpert": "bmft.datasets.chexpert",
    "mimic-cxr-jpg": "bmft.datasets.mimic_cxr_jpg",
    "nih-chestxray14": "bmft.datasets.nih_chestxray14",
    "harvard-gf3300": "bmft.datasets.harvard_gf3300",
}
"""Name -> the module whose docstring says which files it reads and how labels and groups are coded."""

_DEMO = ("build_model", "demo_table", "make_demo", "train_demo_model", "write_demo")


def __getattr__(name: str) -> Any:
    # The drawn set needs torch; reading a folder of images does not.
    if name not in _DEMO:
        raise AttributeError(f"module 'bmft.datasets' has no attribute {name!r}")
    return getattr(importlib.import_module("bmft.datasets.demo"), name)


def prepare(name: str, root: str | Path) -> pd.DataFrame:
    """Read a dataset's official folder into a manifest: path, label, sex, age, ..., patient_id, split.

    Paths are relative to `root`; an empty value is unknown. Where a release keeps its images in other forms
    than image files, ``attrs["images"]`` holds them as uint8 ``(n, h, w)`` in row order.

    Args:
        name: one of `DATASETS`, in any spelling (``"PAD-UFES-20"``, ``"pad_ufes_20"``).
        root: the folder the release was unpacked into.

    Raises:
        ConfigError: no such dataset; the message names the nearest.
        DataError: the folder is not what the release looks like; the message says what was expected.
    """
    module = importlib.import_module(DATASETS[canonical(name)])
    table: pd.DataFrame = module.prepare(Path(root))
    return table


def write_manifest(name: str, root: str | Path, out: str | Path) -> Path:
    """Prepare a dataset and write its manifest as CSV, with ``.npz`` beside it where images are no files.

    Returns the file to give to ``--data``.
    """
    table, out = prepare(name, root), Path(out)
    images = table.attrs.pop("images", None)
    try:
        with replacing(out) as file:
            table.to_csv(file, index=False)
            if images is None:
                return out
            with replacing(out.with_suffix(".npz")) as archive:
                np.savez_compressed(archive, images=images)
    except OSError as error:
        raise DataError(f"{out}: the manifest cannot be written: {error.strerror or error}.") from error
    return out.with_suffix(".npz")


def canonical(name: str) -> str:
    """The name as `DATASETS` has it.

    Raises:
        ConfigError: no such dataset; the message names the nearest.

    >>> canonical("PAD_UFES_20")
    'pad-ufes-20'
    """
    plain = {re.sub(r"[^a-z0-9]", "", known): known for known in DATASETS}
    short = re.sub(r"[^a-z0-9]", "", name.lower())
    if short not in plain:
        raise ConfigError(f"no dataset {name!r}. {did_you_mean(name.lower(), DATASETS)}")
    return plain[short]
