"""ISIC 2020 (SIIM-ISIC) challenge: 33,126 dermatoscopic images of 2,056 patients, melanoma or not.

Source: Rotemberg et al., Sci Data 8, 34 (2021), doi:10.34970/2020-ds01;
https://challenge.isic-archive.com/data/#2020. Files: ``ISIC_2020_Training_GroundTruth.csv`` or ``_v2.csv``
(image_name, patient_id, sex, age_approx, anatom_site_general_challenge, diagnosis, benign_malignant,
target); the images of ``ISIC_2020_Training_JPEG.zip`` in ``train/``, also under
``ISIC_2020_Training_JPEG/``. The test labels were never published.

- ``label``: target (1 is malignant). ``diagnosis``: as given.
- ``sex``: male, female, or empty. ``age``: age_approx. ``patient_id``: as given. ``split``: ``train``.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

COLUMNS = ("image_name", "patient_id", "sex", "age_approx", "diagnosis", "target")
TABLES = ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv")


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest."""
    path = official.find(root, *TABLES, what="ISIC 2020")
    table = official.read(path, COLUMNS)
    images = official.images_under(root, "train/*.jpg", "ISIC_2020_Training_JPEG/train/*.jpg")
    table = table.assign(
        path=official.looked_up(table["image_name"], images),
        label=official.floats(table, path, ["target"])["target"].astype(int),
        sex=official.coded(table["sex"], official.SEX),
        age=official.numbers(table["age_approx"]),
        split="train",
    )
    return official.manifest(root, table, what="ISIC 2020", extra=("diagnosis",))
