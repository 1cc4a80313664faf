"""HAM10000: 10,015 dermatoscopic images of pigmented lesions.

Source: Tschandl, Rosendahl, Kittler, Sci Data 5, 180161 (2018), doi:10.7910/DVN/DBW86T. Files of the
release: ``HAM10000_metadata`` (also named ``.csv`` or ``.tab``) with lesion_id, image_id, dx, dx_type, age,
sex, localization; the images of ``HAM10000_images_part_1`` and ``_2`` wherever they were unpacked;
optionally ``ISIC2018_Task3_Test_GroundTruth.csv`` in the same format and its images.

- ``label``: 1 where dx is akiec, bcc or mel, else 0; ``dx`` has the seven classes.
- ``sex``: male, female; "unknown" is empty. ``age``: years, in steps of five.
- ``patient_id``: lesion_id (the release has no patients).
- ``split``: ``train``, and ``test`` for the ISIC 2018 test set where it is there.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

COLUMNS = ("lesion_id", "image_id", "dx", "age", "sex", "localization")
METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
MALIGNANT = ("akiec", "bcc", "mel")


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest."""
    train = _read(official.find(root, *METADATA, what="HAM10000"), "train")
    test = official.find_optional(root, "ISIC2018_Task3_Test_GroundTruth.csv")
    parts = [train] if test is None else [train, _read(test, "test")]
    table = pd.concat(parts, ignore_index=True)
    images = official.images_under(root, "*.jpg", "*/*.jpg", "*/*/*.jpg")
    table["path"] = official.looked_up(table["image_id"], images)
    return official.manifest(root, table, what="HAM10000", extra=("dx", "localization"))


def _read(path: Path, split: str) -> pd.DataFrame:
    table = official.read(path, COLUMNS)
    return table.assign(
        label=table["dx"].isin(MALIGNANT).astype(int),
        sex=official.coded(table["sex"], official.SEX),
        age=official.numbers(table["age"]),
        patient_id=table["lesion_id"],
        split=split,
    )
