"""OASIS-1: cross-sectional brain MRI of 416 people aged 18 to 96, dementia.

Source: Marcus et al., J Cogn Neurosci 19, 1498 (2007); https://sites.wustl.edu/oasisbrains. Files:
``oasis_cross-sectional.csv`` (ID, M/F, Hand, Age, Educ, SES, MMSE, CDR, eTIV, nWBV, ASF, Delay), also as
``.xlsx``; the unpacked discs, with ``OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/*_t88_masked_gfc_tra_90.gif``:
the atlas-registered, skull-stripped transverse slice 90.

- ``path``: that slice. ``label``: 1 where the Clinical Dementia Rating (CDR) is above 0, else 0. CDR is
  empty for people who were not rated; they count as 0, as in the release's own count of the nondemented.
  ``cdr`` keeps the difference.
- ``sex``: male (M), female (F). ``age``: years. ``patient_id``: OAS1_0001. ``session``: MR1; the 20 repeat
  scans (MR2) are of the same people. No official split.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

COLUMNS = ("ID", "M/F", "Age", "CDR")
SLICE = "PROCESSED/MPRAGE/T88_111/*_t88_masked_gfc_tra_90.gif"


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest."""
    path = official.find(
        root, "oasis_cross-sectional*.csv", "oasis_cross-sectional*.xlsx", "oasis_cross_sectional.csv", what="OASIS-1"
    )
    table = official.read_excel(path) if path.suffix == ".xlsx" else official.read(path, COLUMNS)
    official.check_columns(table, path, COLUMNS)
    cdr = official.numbers(table["CDR"])
    slices = {
        file.parents[3].name: file.relative_to(root).as_posix()
        for depth in ("", "*/", "*/*/")
        for file in sorted(root.glob(f"{depth}OAS1_*/{SLICE}"))
    }
    table = table.assign(
        path=official.looked_up(table["ID"], slices),
        label=(~cdr.isin(["", "0"])).astype(int),
        cdr=cdr,
        sex=official.coded(table["M/F"], official.SEX),
        age=official.numbers(table["Age"]),
        patient_id=table["ID"].str.rsplit("_", n=1).str[0],
        session=table["ID"].str.rsplit("_", n=1).str[-1],
    )
    return official.manifest(root, table, what="OASIS-1", extra=("cdr", "session"))
