"""ISIC 2017 challenge, part 3: 2,750 dermatoscopic images, melanoma and seborrheic keratosis.

Source: Codella et al., arXiv 1710.05006; https://challenge.isic-archive.com/data/#2017. For each of
Training, Validation and Test_v2: ``ISIC-2017_<part>_Part3_GroundTruth.csv`` with image_id, melanoma,
seborrheic_keratosis; ``ISIC-2017_<part>_Data/`` with the images and ``ISIC-2017_<part>_Data_metadata.csv``
(image_id, age_approximate, sex).

- ``label``: 1 where melanoma is 1. ``seborrheic_keratosis``: as given.
- ``sex``: male, female; "unknown" is empty. ``age``: age_approximate.
- ``patient_id``: none in the release. ``split``: ``train``, ``validation``, ``test``.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

LABELS = ("melanoma", "seborrheic_keratosis")
PARTS = {"Training": "train", "Validation": "validation", "Test_v2": "test"}


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest; the parts that are there, at least Training."""
    parts = official.released(root, "ISIC-2017_{}_Part3_GroundTruth.csv", PARTS, "ISIC 2017")
    table = pd.concat([_read(root, *part) for part in parts], ignore_index=True)
    return official.manifest(root, table, what="ISIC 2017", extra=("seborrheic_keratosis",))


def _read(root: Path, truth: Path, part: str, split: str) -> pd.DataFrame:
    name = f"ISIC-2017_{part}_Data_metadata.csv"
    people = official.find(root, name, f"*/{name}", f"*/*/{name}", what="ISIC 2017")
    labels = official.read(truth, ("image_id", *LABELS))
    labels[list(LABELS)] = official.floats(labels, truth, LABELS).astype(int)
    table = labels.merge(
        official.read(people, ("image_id", "age_approximate", "sex")), on="image_id", how="left"
    ).fillna("")
    images = official.images_under(root, f"ISIC-2017_{part}_Data/*.jpg", f"*/ISIC-2017_{part}_Data/*.jpg")
    return table.assign(
        path=official.looked_up(table["image_id"], images),
        label=table["melanoma"],
        sex=official.coded(table["sex"], official.SEX),
        age=official.numbers(table["age_approximate"]),
        split=split,
    )
