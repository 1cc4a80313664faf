"""A folder of DICOM files, at any depth; pixels stay where they are, only headers are read (needs pydicom).

- ``sex``: Patient's Sex, male (M), female (F), other (O). ``age``: Patient's Age in years, else from the birth and the
  study date.
- ``patient_id``: Patient ID. ``study_date``: Study Date. ``manufacturer``, ``modality``, ``view`` (View Position),
  ``laterality``, ``study`` and ``instance`` (their UIDs).
- A DICOM file has no label: give ``--demographics CSV``, joined by path, file name, instance, study or patient.
"""

from __future__ import annotations

import logging
import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from bmft.datasets import official
from bmft.errors import DataError, MissingExtraError

log = logging.getLogger(__name__)
SEX = {**official.SEX, "o": "other"}
TEXTS = {
    "patient_id": "PatientID",
    "study_date": "StudyDate",
    "manufacturer": "Manufacturer",
    "modality": "Modality",
    "view": "ViewPosition",
    "laterality": "ImageLaterality",
    "study": "StudyInstanceUID",
    "instance": "SOPInstanceUID",
}
READ = ["PatientSex", "PatientAge", "PatientBirthDate", "Rows", "NumberOfFrames", *TEXTS.values()]
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_PYDICOM = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError, struct.error)


def prepare(root: Path, pictures: Path) -> pd.DataFrame:
    """Read the headers of the files under `root` into a manifest; `pictures` is not used."""
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise MissingExtraError(f"{root}: DICOM files need pydicom: pip install 'bmft[medical]'") from error
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    rows, others, frames = [], 0, 0
    for file in files:
        try:
            # Older files have no preamble; only their ending says what they are.
            bare = file.suffix.lower() in (".dcm", ".dicom")
            header: Any = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=READ, force=bare)
            row = _row(header)
        except (InvalidDicomError, *_PYDICOM):
            others += 1
            continue
        # A DICOMDIR and a structured report have no pixels; several frames are a film, not an image.
        if header.get("Rows") is None or int(header.get("NumberOfFrames") or 1) > 1:
            frames += 1
            continue
        rows.append({"path": file.relative_to(root).as_posix(), **row})
    if not rows:
        raise DataError(f"{root}: {'no such folder' if not root.is_dir() else 'no DICOM image of one frame in it'}.")
    if others or frames:
        log.warning("%s: left out: %d files that are no DICOM, %d without one frame of pixels", root, others, frames)
    table = pd.DataFrame(rows).assign(split="")
    table.attrs |= {"images_at": root, "keys": ("instance", "study", "patient_id")}
    return table


def _row(header: Any) -> dict[str, str]:
    texts = {name: str(header.get(keyword) or "").strip() for name, keyword in TEXTS.items()}
    sex = SEX.get(str(header.get("PatientSex") or "").strip().lower(), "")
    return {"sex": sex, "age": _age(header), **texts}


def _age(header: Any) -> str:
    """Years, to three places below one year."""
    text = str(header.get("PatientAge") or "").strip().upper()
    if text[:-1].isdigit() and text[-1:] in YEARS:
        return f"{int(text[:-1]) * YEARS[text[-1]]:.3g}"
    dates = [str(header.get(keyword) or "") for keyword in ("PatientBirthDate", "StudyDate")]
    try:
        born, seen = (datetime.strptime(date, "%Y%m%d") for date in dates)
    except ValueError:
        return ""
    years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return str(years) if years >= 0 else ""
