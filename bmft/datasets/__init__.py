"""Public datasets: an official folder in, a manifest out; and a synthetic set for demonstration (`demo`)."""

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bmft._common import did_you_mean, replacing
from bmft.errors import ConfigError, DataError
from bmft.tables import join

_RELEASES = (
    *("ham10000", "isic2017", "isic2018", "isic2019", "isic2020", "fitzpatrick17k", "pad-ufes-20", "derm7pt", "papila"),
    *("ol3i", "oasis1", "chexpert", "mimic-cxr-jpg", "nih-chestxray14", "harvard-gf3300"),
)
DATASETS = {name: f"bmft.datasets.{name.replace('-', '_')}" for name in _RELEASES}
"""Name -> the module whose docstring says which files it reads and how labels and groups are coded."""

FORMS = {name: f"bmft.datasets.{name}" for name in ("folder", "medmnist", "huggingface", "dicom", "webdataset")}
"""The same for forms that many sets come in."""

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
    known = canonical(name)
    if known in FORMS:
        raise ConfigError(f"{known} is a form, not a data set: write_manifest reads it")
    module = importlib.import_module(DATASETS[known])
    table: pd.DataFrame = module.prepare(Path(root))
    return table


def write_manifest(
    name: str, root: str | Path, out: str | Path, *, demographics: str | Path | None = None, by: str | None = None
) -> Path:
    """Prepare a dataset, or one of the `FORMS`, and write its manifest as CSV.

    Images that are no files of their own are written beside it: into ``.npz`` (arrays), or into a folder (bytes).

    Args:
        name: one of `DATASETS` or `FORMS`.
        root: the folder or file.
        out: the manifest.
        demographics: a table whose columns are joined to the images, for a form.
        by: its column that names the images; default: the one that matches most.

    Returns:
        The file to give to ``--data``.

    Raises:
        ConfigError: no such dataset or form, or demographics for a data set that has its own.
        DataError: the folder is not what it should look like; the message says what was expected.
    """
    name, out = canonical(name), Path(out)
    if name in FORMS:
        table = importlib.import_module(FORMS[name]).prepare(
            Path(root), out.with_suffix("").with_name(f"{out.stem}_images")
        )
        if demographics is not None:
            table = join(table, Path(demographics), by, table.attrs.get("keys", ()))
    elif demographics is not None:
        raise ConfigError(f"{name} has its own demographics; --demographics is for {', '.join(FORMS)}.")
    else:
        table = prepare(name, root)
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
    """The name as `DATASETS` or `FORMS` has it.

    Raises:
        ConfigError: no such dataset; the message names the nearest.

    >>> canonical("PAD_UFES_20")
    'pad-ufes-20'
    """
    plain = {re.sub(r"[^a-z0-9]", "", known): known for known in (*DATASETS, *FORMS)}
    short = re.sub(r"[^a-z0-9]", "", name.lower())
    if short not in plain:
        raise ConfigError(f"no dataset {name!r}. {did_you_mean(name.lower(), [*DATASETS, *FORMS])}")
    return plain[short]
