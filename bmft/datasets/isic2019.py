"""ISIC 2019 challenge: 25,331 training and 8,238 test dermatoscopic images, eight classes and unknown.

Source: https://challenge.isic-archive.com/data/#2019 (BCN_20000, HAM10000, MSK). Files:
``ISIC_2019_Training_GroundTruth.csv`` (image, MEL, NV, BCC, AK, BKL, DF, VASC, SCC, UNK),
``ISIC_2019_Training_Metadata.csv`` (image, age_approx, anatom_site_general, lesion_id, sex), the images in
``ISIC_2019_Training_Input/`` (also one folder deeper, as the archive unpacks); the same for Test, whose
metadata has no lesion_id.

- ``label``: 1 where dx is MEL, BCC, AK or SCC, else 0; ``dx`` has the classes in lower case. Rows that are
  "unknown" (UNK) have no diagnosis and are left out.
- ``sex``: male, female, or empty. ``age``: age_approx. ``patient_id``: lesion_id.
- ``split``: ``train``, ``test``.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
MALIGNANT = ("mel", "bcc", "ak", "scc")


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest; the test part where its ground truth is there."""
    truth = official.find(root, "ISIC_2019_Training_GroundTruth.csv", what="ISIC 2019")
    parts = [_read(root, truth, "Training", "train")]
    test = official.find_optional(root, "ISIC_2019_Test_GroundTruth.csv")
    if test is not None:
        parts.append(_read(root, test, "Test", "test"))
    table = pd.concat(parts, ignore_index=True)
    return official.manifest(root, table[table["dx"] != "unk"], what="ISIC 2019", extra=("dx",))


def _read(root: Path, truth: Path, part: str, split: str) -> pd.DataFrame:
    people = official.find(root, f"ISIC_2019_{part}_Metadata.csv", what="ISIC 2019")
    table = official.read(truth, ("image", *CLASSES))
    known = official.read(people, ("image", "age_approx", "sex"))
    dx = official.floats(table, truth, CLASSES).idxmax(axis=1).astype(str).str.lower()
    table = table[["image"]].assign(dx=dx).merge(known, on="image", how="left").fillna("")
    folder = f"ISIC_2019_{part}_Input"
    images = official.images_under(root, f"{folder}/*.jpg", f"{folder}/{folder}/*.jpg")
    return table.assign(
        path=official.looked_up(table["image"], images),
        label=table["dx"].isin(MALIGNANT).astype(int),
        sex=official.coded(table["sex"], official.SEX),
        age=official.numbers(table["age_approx"]),
        patient_id=table.get("lesion_id", ""),
        split=split,
    )
