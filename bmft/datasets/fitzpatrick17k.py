"""Fitzpatrick17k: 16,577 clinical images of 114 skin conditions with Fitzpatrick skin types.

Source: Groh et al., CVPR ISIC workshop 2021; https://github.com/mattgroh/fitzpatrick17k. Files:
``fitzpatrick17k.csv`` with md5hash, fitzpatrick_scale (``fitzpatrick`` in its first version),
fitzpatrick_centaur, label, nine_partition_label, three_partition_label, qc, url, url_alphanum; the images
as ``<md5hash>.jpg`` in a folder of any name, or in `root` itself. Some of its links are dead: rows without
an image are left out and counted.

- ``label``: 1 where three_partition_label is malignant, else 0 (benign, non-neoplastic).
- ``condition``, ``three_partition``, ``nine_partition``: the finer diagnoses.
- ``skin_type``: fitzpatrick_scale 1 to 6; -1 is empty. ``fitzpatrick_centaur``: the second rating.
- No sex, age, patient or official split.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

COLUMNS = ("md5hash", "label", "nine_partition_label", "three_partition_label")
TYPES = {str(number): str(number) for number in range(1, 7)}


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest."""
    path = official.find(root, "fitzpatrick17k.csv", what="Fitzpatrick17k")
    table = official.read(path, COLUMNS).rename(columns={"fitzpatrick": "fitzpatrick_scale"})
    official.check_columns(table, path, ["fitzpatrick_scale"])
    table = table.assign(
        path=official.looked_up(table["md5hash"], official.images_under(root, "*.*", "*/*.*", "*/*/*.*")),
        condition=table["label"],
        label=(table["three_partition_label"] == "malignant").astype(int),
        three_partition=table["three_partition_label"],
        nine_partition=table["nine_partition_label"],
        skin_type=official.coded(official.numbers(table["fitzpatrick_scale"]), TYPES),
    )
    if "fitzpatrick_centaur" in table:
        table["fitzpatrick_centaur"] = official.coded(official.numbers(table["fitzpatrick_centaur"]), TYPES)
    extra = ("condition", "three_partition", "nine_partition", "fitzpatrick_centaur")
    return official.manifest(root, table, what="Fitzpatrick17k", extra=extra)
