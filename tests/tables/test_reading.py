"""Tables of several kinds, and broken ones."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bmft.data import load_manifest
from bmft.errors import DataError
from bmft.tables import column, read_table

TABLE = pd.DataFrame({"path": ["a.png", "b.png"], "age": ["4.5", ""], "sex": ["f", "m, x"]})


def write_text(folder, *lines, name="m.csv", encoding="utf-8"):
    (folder / name).write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return folder / name


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label,sex,sex", "0.png,0,f,m"], "column 'sex' appears twice"),
        (["path,label,sex", "0.png,0,f", "1.png,1,m,x"], "does not fit the header"),
        (["path,label,sex", "0.png,0,f,x", "1.png,1,m,x"], "does not fit the header"),
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


@pytest.mark.parametrize("name", ["m.xls", "m.json"])
def test_a_manifest_of_another_kind_says_what_is_read(tmp_path, name):
    with pytest.raises(DataError, match=r"\.parquet, \.xlsx, \.jsonl or \.npz"):
        read_table(write_text(tmp_path, "{}", name=name))


def test_a_missing_or_damaged_manifest_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "m.csv")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not a readable Parquet"):
        read_table(tmp_path / "m.parquet")


@pytest.mark.parametrize("form", ["csv", "semicolons", "tsv", "parquet", "xlsx", "jsonl"])
def test_the_same_table_in_any_form_is_the_same(form, tmp_path):
    path = tmp_path / f"table.{'csv' if form == 'semicolons' else form}"
    if form in ("csv", "tsv", "semicolons"):
        TABLE.to_csv(path, index=False, sep={"csv": ",", "tsv": "\t", "semicolons": ";"}[form])
    elif form == "parquet":
        TABLE.to_parquet(path)
    elif form == "xlsx":
        TABLE.to_excel(path, index=False)
    else:
        path.write_text("\n".join(json.dumps(row) for row in TABLE.replace("", None).to_dict("records")))
    assert read_table(path).to_dict("list") == TABLE.to_dict("list")


def test_decimal_commas_become_points_where_semicolons_separate_and_that_is_said(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("path;age;note\na.png;45,5;1,2,3\nb.png;;x\n")
    table = read_table(tmp_path / "t.csv")
    assert table["age"].tolist() == ["45.5", ""]
    assert table["note"].tolist() == ["1,2,3", "x"]
    assert "column 'age' has decimal commas" in caplog.text


def test_a_comma_s_csv_keeps_semicolons_in_its_fields(tmp_path):
    (tmp_path / "t.csv").write_text("path,note\na.png,x;y\n")
    assert read_table(tmp_path / "t.csv")["note"].tolist() == ["x;y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.png"}\n[1]\n', r"line 2: \[1\]"),
        ('{"path": "a.png", "boxes": [1]}\n', "line 1: 'boxes' holds several values"),
        ("{path}\n", "line 1: Expecting"),
        ("\n", "no rows"),
    ],
)
def test_lines_that_are_no_row_are_named(text, message, tmp_path):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.jsonl")


def test_a_file_that_is_no_sheet_is_one_clear_line(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK no sheet")
    with pytest.raises(DataError, match="not a readable Excel file"):
        read_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize("name", ["file_name", "image", "image_path", "filepath", "filename", "img", "Filename"])
def test_the_only_column_of_such_a_name_has_the_paths_and_that_is_said(name, picture_folder):
    table = picture_folder(name)
    data = load_manifest(table, target="label", sensitive="sex")
    (said,) = [one for one in data.assumed if one.subject == "images"]
    assert repr(name) in said.value
    assert said.option == "--path-column"
    assert data.inputs(slice(0, 1)).shape == (1, 3, 8, 8)


def test_two_such_columns_ask(picture_folder):
    with pytest.raises(DataError, match=r"'file_name' or 'img': say --path-column NAME"):
        load_manifest(picture_folder("file_name", "img"), target="label", sensitive="sex")


def test_a_path_column_goes_before_the_others(picture_folder):
    data = load_manifest(picture_folder("path", "image"), target="label", sensitive="sex")
    assert not [one for one in data.assumed if one.subject == "images"]


@pytest.fixture
def picture_folder(tmp_path):

    def write(*names):
        for i in range(4):
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        columns = {name: [f"{i}.png" for i in range(4)] for name in names}
        table = pd.DataFrame({**columns, "label": [0, 1, 0, 1], "sex": ["f", "f", "m", "m"]})
        table.to_csv(tmp_path / "m.csv", index=False)
        return tmp_path / "m.csv"

    return write
