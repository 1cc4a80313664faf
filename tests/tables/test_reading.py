"""Tables of several kinds, and broken ones."""

import pytest

from bmft.errors import DataError
from bmft.tables import column, read_table


def write_text(folder, *lines, name="m.csv", encoding="utf-8"):
    (folder / name).write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return folder / name


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label,sex,sex", "0.png,0,f,m"], "column 'sex' appears twice"),
        (["path,label,sex", "0.png,0,f", "1.png,1,m,x"], "does not fit the header"),
        (["path,label,sex", "0.png,0,f,x", "1.png,1,m,x"], "does not fit the header"),
        (["path;label;sex", "0.png;0;f"], "separate the fields with commas"),
        (["path,label,sex"], "no rows"),
        ([""], "is empty"),
        (["path,label,sex", '"0.png,0,f'], "not a readable CSV"),
    ],
)
def test_a_broken_table_says_what_is_wrong(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        column(read_table(write_text(tmp_path, *lines)), "sex", role="sensitive")


def test_text_that_is_not_utf_8_says_so(tmp_path):
    for encoding in ("latin-1", "utf-16"):
        with pytest.raises(DataError, match="not UTF-8"):
            read_table(write_text(tmp_path, "path,label,sex", "0.png,0,weißlich", encoding=encoding))


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    table = read_table(write_text(tmp_path, "path,label", "0.png,0", encoding="utf-8-sig"))
    assert list(table.columns) == ["path", "label"]


@pytest.mark.parametrize("name", ["m.xlsx", "m.json"])
def test_a_manifest_of_another_kind_says_what_is_read(tmp_path, name):
    with pytest.raises(DataError, match=r"\.csv, \.tsv, \.parquet or \.npz"):
        read_table(write_text(tmp_path, "{}", name=name))


def test_a_missing_or_damaged_manifest_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "m.csv")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not a readable Parquet"):
        read_table(tmp_path / "m.parquet")
