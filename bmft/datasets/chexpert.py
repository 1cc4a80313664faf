"""CheXpert: 224,316 chest radiographs of 65,240 patients, 14 findings.

Source: Irvin et al., AAAI 2019; Stanford AIMI. Files: ``train.csv``, ``valid.csv`` (Path, Sex, Age,
Frontal/Lateral, AP/PA and the 14 findings), in ``CheXpert-v1.0`` or ``CheXpert-v1.0-small``; Path starts
with the name of that folder. Race comes from the separate ``CHEXPERT DEMO.xlsx`` (PATIENT, PRIMARY_RACE,
ETHNICITY), where it lies beside them; reading it needs openpyxl (the ``medical`` extra).

- The 14 findings as released: 1, 0, -1 where the report is uncertain, empty where it does not mention one. By default
  the last two are labels that are not known; ``--uncertain negative --blank negative`` is "U-Zeros" of the paper,
  ``--uncertain positive --blank negative`` its "U-Ones".
- ``label``: 0 where "No Finding" is 1, else 1.
- ``sex``: male, female. ``age``: years; 0 is the release's mark for unknown. ``race``: asian, black, white
  or other; empty where not stated. ``patient_id``: patient00001. ``view``: frontal, lateral. ``split``:
  ``train``, ``valid``.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", *FINDINGS)


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` (or the folder ``CheXpert-v1.0*`` in it) into a manifest."""
    train = official.find(root, "train.csv", "CheXpert-v1.0*/train.csv", what="CheXpert")
    valid = official.find(train.parent, "valid.csv", what="CheXpert")
    parts = [official.read(path, COLUMNS).assign(split=path.stem) for path in (train, valid)]
    table = pd.concat(parts, ignore_index=True)
    inside = train.parent.relative_to(root)
    patient = table["Path"].str.extract(r"/(patient\d+)/")[0].fillna("")
    found = findings(table)
    age = official.numbers(table["Age"])
    table = table.assign(
        **found,
        path=table["Path"].map(lambda path: (inside / Path(path).relative_to(Path(path).parts[0])).as_posix()),
        label=(found["No Finding"] != "1").astype(int),
        sex=official.coded(table["Sex"], official.SEX),
        age=age.where(age != "0", ""),
        race=official.looked_up(patient, _races(root, train.parent)),
        patient_id=patient,
        view=table["Frontal/Lateral"].str.lower(),
    )
    return official.manifest(root, table, what="CheXpert", extra=(*FINDINGS, "view"))


def findings(table: pd.DataFrame) -> pd.DataFrame:
    """The findings as 1, 0, -1 and empty."""
    return table[list(FINDINGS)].apply(official.numbers)


def _races(root: Path, folder: Path) -> dict[str, str]:
    names = ("CHEXPERT DEMO.xlsx", "CHEXPERT_DEMO.xlsx")
    path = official.find_optional(folder, *names) or official.find_optional(root, *names, f"*/{names[0]}")
    if path is None:
        return {}
    table = official.check_columns(official.read_excel(path), path, ("PATIENT", "PRIMARY_RACE"))
    return dict(zip(table["PATIENT"].str.strip(), table["PRIMARY_RACE"].map(race), strict=True))


def race(text: str) -> str:
    """The group of a stated race: the release has several spellings of each.

    >>> race("White, non-Hispanic"), race("Black or African American"), race("Unknown"), race("Other")
    ('white', 'black', '', 'other')
    """
    lower = text.strip().lower()
    if lower in {"", "unknown", "patient refused"} or lower.startswith(("unable", "declined", "patient declined")):
        return ""
    return next((name for name in ("white", "black", "asian") if lower.startswith(name)), "other")
