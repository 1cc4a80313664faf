"""Harvard-GF3300: retinal nerve fibre layer thickness maps of 3,300 patients, glaucoma.

Source: Luo et al., IEEE TMI 43, 2623 (2024); https://github.com/Harvard-Ophthalmology-AI-Lab/Harvard-GF.
Files: one npz per patient in ``train/``, ``test/`` and, where kept apart, ``validation/`` or ``val/``
(2,100, 900 and 300), with ``rnflt`` (200 x 200, micrometres), ``glaucoma`` (0, 1), ``age``, ``male`` (0,
1), ``race`` (0 Asian, 1 Black or African American, 2 White or Caucasian; or these names), and for some
``ethnicity`` (0 non-Hispanic, 1 Hispanic, -1 unknown).

The maps are no image files: they come as ``attrs["images"]``, 0 to 350 micrometres scaled to 0 to 255, and
`datasets.write_manifest` puts them into an npz beside the CSV.

- ``label``: glaucoma. ``sex``: from male. ``age``: years. ``race``: asian, black, white. ``patient_id``:
  the file's name (one file per patient). ``split``: ``train``, ``validation``, ``test``.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bmft._common import short
from bmft.datasets import official
from bmft.errors import DataError

FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
RACES = {
    "0": "asian",
    "1": "black",
    "2": "white",
    "asian": "asian",
    "black or african american": "black",
    "white or caucasian": "white",
}
THICKEST = 350.0  # micrometres; what an OCT report's colour scale ends at
KEYS = ("rnflt", "glaucoma", "age", "male", "race")


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest, with the maps in ``attrs["images"]``."""
    files = [(path, split) for folder, split in FOLDERS.items() for path in sorted(root.glob(f"{folder}/*.npz"))]
    if not files:
        official.find(root, "train/*.npz", what="Harvard-GF3300")
    patients = [_read(path) for path, _ in files]
    table = pd.DataFrame([{key: _text(patient[key]) for key in KEYS if key != "rnflt"} for patient in patients])
    ethnicity = [_text(patient["ethnicity"]) if "ethnicity" in patient else "" for patient in patients]
    table = table.assign(
        path=[path.relative_to(root).as_posix() for path, _ in files],
        label=official.numbers(table["glaucoma"]),
        sex=official.coded(official.numbers(table["male"]), {"0": "female", "1": "male"}),
        age=official.numbers(table["age"]),
        race=official.coded(table["race"], RACES),
        ethnicity=official.coded(pd.Series(ethnicity), {"0": "non-hispanic", "1": "hispanic"}),
        patient_id=[path.stem for path, _ in files],
        split=[split for _, split in files],
    )
    result = official.manifest(root, table, what="Harvard-GF3300", extra=("ethnicity",))
    maps = np.stack([np.asarray(patient["rnflt"], dtype=np.float64) for patient in patients])
    result.attrs["images"] = np.rint(np.clip(maps / THICKEST, 0, 1) * 255).astype(np.uint8)
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            names = [*KEYS, "ethnicity"]
            patient = {key: file[key] for key in names if key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable npz file: {short(error)}.") from error
    missing = [key for key in KEYS if key not in patient]
    if missing:
        raise DataError(f"{path}: the official files hold {', '.join(KEYS)}; this one lacks {', '.join(missing)}.")
    return patient


def _text(value: Any) -> str:
    item = np.asarray(value).reshape(-1)[0]
    return f"{item:g}" if isinstance(item, (int, float, np.number)) else str(item)
