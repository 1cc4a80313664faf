"""NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients, 14 findings.

Source: Wang et al., CVPR 2017; https://nihcc.app.box.com/v/ChestXray-NIHCC. Files: ``Data_Entry_2017.csv``
or ``Data_Entry_2017_v2020.csv`` (Image Index, Finding Labels joined by ``|``, Patient ID, Patient Age,
Patient Gender, View Position); ``train_val_list.txt``, ``test_list.txt``; images in ``images/``, or in
``images_001/images/`` and so on.

- The 14 findings as 0/1. ``label``: 0 where Finding Labels is "No Finding", else 1.
- ``sex``: male (M), female (F). ``age``: years (``058Y`` is 58); above 120 is a known error of the release,
  and unknown.
- ``patient_id``: Patient ID. ``view``: PA, AP. ``split``: ``train`` (train_val_list.txt), ``test``.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest."""
    what = "NIH ChestX-ray14"
    path = official.find(root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", what=what)
    table = official.read(path, COLUMNS)
    splits: dict[str, str] = {}
    for name, split in LISTS.items():
        lines = official.find(root, name, what=what).read_text(encoding="utf-8").split()
        splits.update(dict.fromkeys(lines, split))
    images = official.images_under(root, "images/*.png", "images_*/images/*.png")
    found = table["Finding Labels"].str.split("|")
    age = official.numbers(table["Patient Age"])
    table = table.assign(
        **{name: found.map(lambda names, name=name: int(name in names)) for name in FINDINGS},
        path=official.looked_up(table["Image Index"].str.removesuffix(".png"), images),
        label=(table["Finding Labels"] != "No Finding").astype(int),
        sex=official.coded(table["Patient Gender"], official.SEX),
        age=age.where(pd.to_numeric(age) <= 120, ""),
        patient_id=table["Patient ID"],
        view=table["View Position"],
        split=official.looked_up(table["Image Index"], splits),
    )
    return official.manifest(root, table, what=what, extra=(*FINDINGS, "view"))
