"""PAD-UFES-20: 2,298 smartphone images of six skin lesions, 1,373 patients.

Source: Pacheco et al., Data in Brief 32, 106221 (2020), doi:10.17632/zr7vgbcyr2.1. Files: ``metadata.csv``
with, among 26 columns, patient_id, lesion_id, age, gender, fitspatrick (so spelt), diagnostic, img_id,
biopsed; the images of ``imgs_part_1`` to ``_3``, together in ``images/`` or each in its folder.

- ``label``: 1 where diagnostic is BCC, MEL or SCC, else 0 (ACK, NEV, SEK); ``diagnostic`` has the six
  classes.
- ``sex``: from gender FEMALE / MALE. ``age``: years. ``skin_type``: fitspatrick 1 to 6, or empty.
- ``patient_id``: as given. No official split.
"""

from pathlib import Path

import pandas as pd

from bmft.datasets import official

COLUMNS = ("patient_id", "lesion_id", "age", "gender", "fitspatrick", "diagnostic", "img_id")
CANCER = ("BCC", "MEL", "SCC")


def prepare(root: Path) -> pd.DataFrame:
    """Read the release under `root` into a manifest."""
    table = official.read(official.find(root, "metadata.csv", what="PAD-UFES-20"), COLUMNS)
    images = official.images_under(root, "*.png", "*/*.png", "*/*/*.png", "*/*/*/*.png")
    skin_type = official.numbers(table["fitspatrick"])
    table = table.assign(
        path=official.looked_up(table["img_id"].str.removesuffix(".png"), images),
        label=table["diagnostic"].isin(CANCER).astype(int),
        sex=official.coded(table["gender"], official.SEX),
        age=official.numbers(table["age"]),
        skin_type=skin_type.where(skin_type.isin(list("123456")), ""),
    )
    return official.manifest(root, table, what="PAD-UFES-20", extra=("diagnostic",))
