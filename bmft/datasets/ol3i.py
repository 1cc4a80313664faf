"""OL3I: 8,139 abdominal CT slices at the third lumbar vertebra, ischaemic heart disease within one or five
years.

Source: Zambrano Chaves et al., Sci Rep 13, 21034 (2023); Stanford AIMI shared datasets. *Not verified
against the release*, which needs registration: the names come from the authors' code
(github.com/StanfordMIMI/abct_ihd: ``clinical_data.csv`` keyed by anon_id, one ``<anon_id>.dcm`` per slice
in ``l3_slices/``) and from FairTune's reader (label_1y, sex). Tell us where your copy differs.

Read here: ``clinical_data.csv`` with anon_id, label_1y, sex, age, and where present label_5y, set_1y and
set_5y; ``l3_slices/<anon_id>`` as DICOM, PNG or TIFF.

- ``label``: label_1y; rows without it are left out. ``label_5y``: as given.
- ``sex``: M, F, male or female (any case). ``age``: years. ``patient_id``: anon_id.
- ``split``: set_1y, where present.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

COLUMNS = ("anon_id", "label_1y", "sex", "age")


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest."""
    table = official.read(official.find(root, "clinical_data.csv", "*/clinical_data.csv", what="OL3I"), COLUMNS)
    images = official.images_under(root, "l3_slices/*", "*/l3_slices/*")
    label = official.numbers(table["label_1y"])
    table = table.assign(
        path=official.looked_up(table["anon_id"], images),
        label=label,
        sex=official.coded(table["sex"], official.SEX),
        age=official.numbers(table["age"]),
        patient_id=table["anon_id"],
    ).rename(columns={"set_1y": "split"})
    return official.manifest(root, table[label.isin(["0", "1"])], what="OL3I", extra=("label_5y",))
