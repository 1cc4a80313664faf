"""PAPILA: 488 fundus images, both eyes of 244 patients, glaucoma.

Source: Kovalyk et al., Sci Data 9, 291 (2022), doi:10.6084/m9.figshare.14798004. Files:
``ClinicalData/patient_data_od.xlsx`` (right eyes) and ``patient_data_os.xlsx`` (left), whose header takes
three rows with Age, Gender and Diagnosis among them and whose first column holds ids such as #002;
``FundusImages/RET002OD.jpg``. Reading them needs openpyxl (the ``medical`` extra).

- ``label``: 1 for glaucoma (1), 0 for healthy (0); ``diagnosis``: healthy, glaucoma or suspect (2).
  Suspects have no label and are left out of the manifest.
- ``sex``: Gender 0 male, 1 female. ``age``: years. ``patient_id``: the id. ``eye``: OD, OS. No official
  split.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official
from bmft.errors import DataError

DIAGNOSES = {"0": "healthy", "1": "glaucoma", "2": "suspect"}
COLUMNS = ("Age", "Gender", "Diagnosis")


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` (or a folder in it) into a manifest."""
    table = pd.concat([_read(root, eye) for eye in ("od", "os")], ignore_index=True)
    images = official.images_under(root, "FundusImages/*", "*/FundusImages/*")
    diagnosis = official.coded(official.numbers(table["Diagnosis"]), DIAGNOSES)
    table = table.assign(
        path=official.looked_up("RET" + table["id"] + table["eye"], images),
        label=(diagnosis == "glaucoma").astype(int),
        diagnosis=diagnosis,
        sex=official.coded(official.numbers(table["Gender"]), {"0": "male", "1": "female"}),
        age=official.numbers(table["Age"]),
        patient_id=table["id"],
    )
    known = table[diagnosis.isin(["healthy", "glaucoma"])]
    return official.manifest(root, known, what="PAPILA", extra=("diagnosis", "eye"))


def _read(root: Path, eye: str) -> pd.DataFrame:
    name = f"ClinicalData/patient_data_{eye}.xlsx"
    path = official.find(root, name, f"*/{name}", what="PAPILA")
    cells = official.read_excel(path, header=None)
    header = cells.head(3)
    places = {text: place for place in header for text in header[place] if text in COLUMNS}
    if set(places) != set(COLUMNS):
        missing = ", ".join(sorted(set(COLUMNS) - set(places)))
        raise DataError(f"{path}: the official file names {missing} in its first three rows; this one does not.")
    people = cells[cells[0].str.fullmatch(r"#\d+")]
    table = pd.DataFrame({name: people[place] for name, place in places.items()})
    return table.assign(id=people[0].str.removeprefix("#"), eye=eye.upper())
