"""MIMIC-CXR-JPG 2: 377,110 chest radiographs of 65,379 patients, 14 findings.

Source: Johnson et al., arXiv 1901.07042; https://physionet.org/content/mimic-cxr-jpg. Files:
``mimic-cxr-2.0.0-chexpert.csv.gz`` (subject_id, study_id, 14 findings), ``mimic-cxr-2.0.0-metadata.csv.gz``
(dicom_id, subject_id, study_id, ViewPosition), ``mimic-cxr-2.0.0-split.csv.gz`` (dicom_id, study_id,
subject_id, split), each also unpacked; images at ``files/p10/p10000032/s50414267/<dicom_id>.jpg``. Sex, age
and race are in MIMIC-IV, and read from its ``patients.csv[.gz]`` (subject_id, gender, anchor_age) and
``admissions.csv[.gz]`` (subject_id, race; ``ethnicity`` before version 2) where they lie in `root` or in
``hosp/`` or ``core/`` under it; else they are unknown.

- The 14 findings as released: 1, 0, -1 (uncertain) and empty (not mentioned); see `chexpert` for ``--uncertain`` and
  ``--blank``. ``label``: 0 where "No Finding" is 1, else 1.
- ``sex``: male (M), female (F). ``age``: anchor_age (the patient's age in an anchor year, not at the
  image). ``race``: asian, black, hispanic, white or other of the first admission that states one.
  ``patient_id``: subject_id.
- ``view``: ViewPosition. ``split``: ``train``, ``validate``, ``test``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bmft.datasets import chexpert, official

FINDINGS = tuple(sorted(chexpert.FINDINGS))
KEYS = ["subject_id", "study_id"]
PLACES = ("", "hosp/", "core/", "*/hosp/", "*/core/")


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest."""
    labels = _read(root, "chexpert", (*KEYS, *FINDINGS))
    views = _read(root, "metadata", ("dicom_id", *KEYS, "ViewPosition"))
    splits = _read(root, "split", ("dicom_id", "split"))
    table = views[["dicom_id", *KEYS, "ViewPosition"]].merge(splits[["dicom_id", "split"]], on="dicom_id")
    table = table.merge(labels, on=KEYS)
    findings = chexpert.findings(table)
    person = table["subject_id"]
    table = table.assign(
        **findings,
        path=[
            f"files/p{subject[:2]}/p{subject}/s{study}/{image}.jpg"
            for subject, study, image in zip(person, table["study_id"], table["dicom_id"], strict=True)
        ],
        label=(findings["No Finding"] != "1").astype(int),
        patient_id=person,
        view=table["ViewPosition"],
        **_people(root, person),
    )
    return official.manifest(root, table, what="MIMIC-CXR-JPG", extra=(*FINDINGS, "view"))


def _read(root: Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    file = f"mimic-cxr-2.?.0-{name}.csv"
    return official.read(official.find(root, f"{file}.gz", file, what="MIMIC-CXR-JPG"), columns)


def _people(root: Path, person: pd.Series[str]) -> dict[str, pd.Series[str] | str]:
    patients, admissions = (
        official.find_optional(root, *(f"{folder}{name}.csv{end}" for folder in PLACES for end in (".gz", "")))
        for name in ("patients", "admissions")
    )
    people: dict[str, pd.Series[str] | str] = {"sex": "", "age": "", "race": ""}
    if patients is not None:
        known = official.read(patients, ("subject_id", "gender", "anchor_age")).set_index("subject_id")
        people["sex"] = official.coded(official.looked_up(person, known["gender"].to_dict()), official.SEX)
        people["age"] = official.numbers(official.looked_up(person, known["anchor_age"].to_dict()))
    if admissions is not None:
        stays = official.read(admissions, ["subject_id"]).rename(columns={"ethnicity": "race"})
        stays = official.check_columns(stays, admissions, ["race"]).assign(race=stays["race"].map(_race))
        first = stays[stays["race"] != ""].drop_duplicates("subject_id").set_index("subject_id")["race"]
        people["race"] = official.looked_up(person, first.to_dict())
    return people


def _race(text: str) -> str:
    return "hispanic" if text.strip().lower().startswith("hispanic") else chexpert.race(text)
