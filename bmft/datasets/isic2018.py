"""ISIC 2018 challenge, task 3: HAM10000 for training, 193 validation and 1,512 test images.

Source: Codella et al., arXiv 1902.03368; https://challenge.isic-archive.com/data/#2018. For each of
Training, Validation and Test: ``ISIC2018_Task3_<part>_GroundTruth.csv`` (image, MEL, NV, BCC, AKIEC, BKL,
DF, VASC), also one folder deeper, and the images in ``ISIC2018_Task3_<part>_Input/``; and
``ISIC2018_Task3_Training_LesionGroupings.csv`` (image, lesion_id, diagnosis_confirm_type).

The challenge gives neither sex nor age. They are taken from ``HAM10000_metadata[.csv]`` where that file
lies beside it (the training images are HAM10000's), else left unknown.

- ``label``: 1 where dx is AKIEC, BCC or MEL, else 0; ``dx`` has the seven classes in lower case.
- ``sex``, ``age``: as in HAM10000. ``patient_id``: lesion_id of the training images.
- ``split``: ``train``, ``validation``, ``test``.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official
from bmft.datasets.ham10000 import METADATA

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
MALIGNANT = ("akiec", "bcc", "mel")
PARTS = {"Training": "train", "Validation": "validation", "Test": "test"}


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest; the parts that are there, at least Training."""
    parts = official.released(root, "ISIC2018_Task3_{}_GroundTruth.csv", PARTS, "ISIC 2018 task 3")
    table = pd.concat([_read(root, *part) for part in parts], ignore_index=True)
    people = official.find_optional(root, *METADATA)
    if people is not None:
        known = official.read(people, ("image_id", "age", "sex")).set_index("image_id")
        table["sex"] = official.coded(official.looked_up(table["image"], known["sex"].to_dict()), official.SEX)
        table["age"] = official.numbers(official.looked_up(table["image"], known["age"].to_dict()))
    return official.manifest(root, table, what="ISIC 2018 task 3", extra=("dx",))


def _read(root: Path, truth: Path, part: str, split: str) -> pd.DataFrame:
    table = official.read(truth, ("image", *CLASSES))
    dx = official.floats(table, truth, CLASSES).idxmax(axis=1).astype(str).str.lower()
    name = f"ISIC2018_Task3_{part}_LesionGroupings.csv"
    groupings = official.find_optional(root, name, f"*/{name}")
    lesions = {}
    if groupings is not None:
        lesions = official.read(groupings, ("image", "lesion_id")).set_index("image")["lesion_id"].to_dict()
    images = official.images_under(root, f"ISIC2018_Task3_{part}_Input/*.jpg")
    return table.assign(
        path=official.looked_up(table["image"], images),
        label=dx.isin(MALIGNANT).astype(int),
        dx=dx,
        sex="",
        age="",
        patient_id=official.looked_up(table["image"], lesions),
        split=split,
    )
