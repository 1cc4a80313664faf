"""Interactive Atlas of Dermoscopy, as the Seven-Point Checklist release (derm7pt): 1,011 cases.

Source: Kawahara et al., IEEE JBHI 23, 538 (2019); https://derm.cs.sfu.ca,
https://github.com/jeremykawahara/derm7pt. Files of ``release_v0``: ``meta/meta.csv`` with case_num,
diagnosis, sex, location, clinic, derm (paths of the clinical and the dermoscopic image under ``images/``);
``meta/train_indexes.csv``, ``valid_indexes.csv``, ``test_indexes.csv`` with a column ``indexes`` (rows of
meta.csv, counted from 0).

- ``path``: the dermoscopic image. ``clinical``: the clinical one.
- ``label``: 1 where the diagnosis names a melanoma or a basal cell carcinoma, else 0; ``diagnosis``: as
  given.
- ``sex``: male, female. No age, no skin type. ``patient_id``: case_num.
- ``split``: ``train``, ``validation``, ``test``.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official
from bmft.errors import DataError

COLUMNS = ("case_num", "diagnosis", "sex", "clinic", "derm")
SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` (or its folder ``release_v0``) into a manifest."""
    path = official.find(root, "meta/meta.csv", "release_v0/meta/meta.csv", what="derm7pt")
    base = path.parent.parent
    table = official.read(path, COLUMNS)
    malignant = table["diagnosis"].str.lower().str.contains("melanoma|basal cell carcinoma")
    table = table.assign(
        path=table["derm"].map(lambda name: _image(root, base, name)),
        clinical=table["clinic"].map(lambda name: _image(root, base, name)),
        label=malignant.astype(int),
        sex=official.coded(table["sex"], official.SEX),
        patient_id=table["case_num"],
        split=_splits(base / "meta", len(table)),
    )
    return official.manifest(root, table, what="derm7pt", extra=("diagnosis", "clinical"))


def _image(root: Path, base: Path, name: str) -> str:
    path = base / "images" / name
    return path.relative_to(root).as_posix() if name and path.is_file() else ""


def _splits(folder: Path, rows: int) -> list[str]:
    names = [""] * rows
    for part, split in SPLITS.items():
        path = official.find(folder, f"{part}_indexes.csv", what="derm7pt")
        for index in official.floats(official.read(path, ["indexes"]), path, ["indexes"])["indexes"]:
            if not 0 <= index < rows:
                raise DataError(f"{path}: index {index} is none of the {rows} rows of meta.csv.")
            names[int(index)] = split
    return names
