"""The columns of a table as labels, groups, patients and splits."""

import logging

import pandas as pd
import pytest

from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables import Unknown, read_manifest

COLUMNS = ("path", "label", "sex", "age", "patient", "split")
ROWS = [
    ("0.png", 0, "f", 30, "a", "fit"),
    ("1.png", 1, "m", 40, "b", "fit"),
    ("2.png", 0, "m", 59.5, "b", "fit"),
    ("3.png", 1, "f", 60, "c", "select"),
    ("4.png", 0, "", 75, "d", "select"),
    ("5.png", 1, "m", "", "e", "test"),
]


@pytest.fixture
def manifest(tmp_path):
    """Write the table, or another one."""

    def write(rows=ROWS, columns=COLUMNS, name="m.csv"):
        pd.DataFrame(rows, columns=list(columns)).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write


def load(path, **options):
    return read_manifest(path, **{"target": "label", "sensitive": "sex", **options})


# ---- attributes


@pytest.mark.parametrize(
    ("spec", "groups", "ids"),
    [
        ("sex", ("f", "m"), [0, 1, 1, 0, -1, 1]),
        ("age:60", ("<60", "60+"), [0, 0, 0, 1, 1, -1]),
        ("age:39.5,60", ("<39.5", "39.5-60", "60+"), [0, 1, 1, 2, 2, -1]),
        ("sex*age:60", ("f*<60", "f*60+", "m*<60", "m*60+"), [0, 2, 2, 1, -1, -1]),
        ("age:60*sex", ("<60*f", "<60*m", "60+*f", "60+*m"), [0, 1, 1, 2, -1, -1]),
    ],
)
def test_attributes_are_text_cuts_and_products(manifest, spec, groups, ids):
    data = load(manifest(), sensitive=spec)
    assert data.attributes[0].groups == groups
    assert data.groups[:, 0].tolist() == ids


def test_the_name_of_an_attribute_has_no_cuts(manifest):
    data = load(manifest(), sensitive=["age:60", "sex*age:60"])
    assert [attribute.name for attribute in data.attributes] == ["age", "sex*age"]


def test_numbers_are_groups_in_their_order(manifest):
    rows = [(*row[:3], age, *row[4:]) for row, age in zip(ROWS, [10, 9, 2, "10.0", "nan", 9], strict=True)]
    data = load(manifest(rows), sensitive="age")
    assert data.attributes[0].groups == ("2", "9", "10")
    assert data.groups[:, 0].tolist() == [2, 1, 0, 2, -1, 1]


def test_many_numbers_without_cuts_show_the_syntax(manifest):
    rows = [(*ROWS[i % 6][:3], 20 + i, *ROWS[i % 6][4:]) for i in range(13)]
    with pytest.raises(GroupError, match=r"13 different numbers.*age:40,60"):
        load(manifest(rows), sensitive="age")


@pytest.mark.parametrize("spec", ["age:60,40", "age:40,40", "age:x", "age:,", "age:nan", "age:inf"])
def test_cuts_that_make_no_sense_are_refused(manifest, spec):
    with pytest.raises(ConfigError, match="rising numbers"):
        load(manifest(), sensitive=spec)


def test_text_that_is_to_be_cut_is_listed(manifest):
    with pytest.raises(DataError, match=r"other values:\n  row 0: 'f'"):
        load(manifest(), sensitive="sex:60")


def test_a_column_name_may_hold_the_signs_of_the_syntax(manifest):
    data = load(manifest(columns=("path", "label", "M*F", "age", "patient", "split")), sensitive="M*F")
    assert data.attributes[0].name == "M*F"


def test_an_attribute_of_one_group_is_refused(manifest):
    rows = [(*row[:2], "f" if i % 2 else "", *row[3:]) for i, row in enumerate(ROWS)]
    with pytest.raises(GroupError, match=r"'sex' has only the group 'f' in these 6 rows"):
        load(manifest(rows))
    with pytest.raises(GroupError, match="has no value"):
        load(manifest([(*row[:2], "", *row[3:]) for row in ROWS]))


def test_a_group_of_one_loads_with_a_warning(manifest, caplog):
    rows = [(*row[:2], "x" if i == 3 else row[2] or "f", *row[3:]) for i, row in enumerate(ROWS)]
    with caplog.at_level(logging.WARNING):
        data = load(manifest(rows))
    assert data.attributes[0].groups == ("f", "m", "x")
    assert "group 'x' has a single member" in caplog.text


def test_an_attribute_named_twice_is_refused(manifest):
    with pytest.raises(ConfigError, match="each once"):
        load(manifest(), sensitive=["age:40", "age:60"])


# ---- labels


@pytest.mark.parametrize(
    ("labels", "task", "classes", "targets"),
    [
        (["0", "1", "0", "1.0", "0.0", "1"], "binary", ("0", "1"), [0, 1, 0, 1, 0, 1]),
        (["1"] * 6, "binary", ("0", "1"), [1] * 6),
        ([0, 2, 1, 3, 0, 1], "multiclass", ("0", "1", "2", "3"), [0, 2, 1, 3, 0, 1]),
        ([0, 3, 1, 3, 0, 1], "multiclass", ("0", "1", "2", "3"), [0, 3, 1, 3, 0, 1]),
        (["yes", "no"] * 3, "binary", ("no", "yes"), [1, 0] * 3),
    ],
)
def test_labels_are_0_1_or_class_numbers_or_names(manifest, labels, task, classes, targets):
    data = load(manifest([(row[0], label, *row[2:]) for row, label in zip(ROWS, labels, strict=True)]))
    assert (data.labels.task, data.labels.classes, data.labels.targets.tolist()) == (task, classes, targets)


def test_given_classes_set_the_order(manifest):
    path = manifest([(row[0], "mel" if row[1] else "nv", *row[2:]) for row in ROWS])
    data = load(path, classes=["nv", "mel", "bcc"])
    assert (data.labels.task, data.labels.classes, data.labels.targets.tolist()) == (
        "multiclass",
        ("nv", "mel", "bcc"),
        [0, 1] * 3,
    )
    with pytest.raises(DataError, match=r"values other than bcc, nv:\n  row 1: 'mel'"):
        load(path, classes=["bcc", "nv"])


def test_several_columns_are_labels_of_0_and_1(manifest):
    path = manifest([(*row, 1 - row[1]) for row in ROWS], (*COLUMNS, "other"))
    data = load(path, target=["label", "other"], multi_label=True)
    assert (data.labels.task, data.labels.classes) == ("multilabel", ("label", "other"))
    assert data.labels.targets.tolist() == [[0, 1], [1, 0]] * 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 1, 2, 3, 2], "has 1, 2, 3: expected 0/1"),
        ([-3, 1, 0, 1, 0, 1], "has -3: expected 0/1"),
        ([0.5, 1, 0, 1, 0, 1], r"has 0\.5: expected 0/1"),
        ([0, 1, "x", 1, 0, 1], "has x: expected 0/1"),
        ([0, 10**9, 1, 2, 3, 4], "expected 0/1"),
        (["mel"] * 6, "one name only: mel"),
    ],
)
def test_labels_that_are_no_classes_are_refused(manifest, labels, message):
    with pytest.raises(DataError, match=message):
        load(manifest([(row[0], label, *row[2:]) for row, label in zip(ROWS, labels, strict=True)]))


@pytest.mark.parametrize("target", [[], ["label", "label"]])
def test_label_columns_are_named_once(manifest, target):
    with pytest.raises(ConfigError, match="once"):
        load(manifest(), target=target)


# ---- splits, patients, columns


def test_a_patient_in_two_splits_is_leakage(manifest):
    rows = [(*row[:5], "test" if i == 2 else row[5]) for i, row in enumerate(ROWS)]
    message = r"1 values of 'patient' are in several splits of 'split'.*\n  b: fit \(row 1\), test \(row 2\)"
    with pytest.raises(DataError, match=message):
        load(manifest(rows), split_column="split", split="fit", cluster="patient")
    assert len(load(manifest(rows), split_column="split", split="fit").rows) == 2


def test_rows_without_a_patient_or_a_split_leak_nothing(manifest):
    rows = [(*row[:4], "", row[5]) if i % 2 else (*row[:4], "b", "" if i else "fit") for i, row in enumerate(ROWS)]
    data = load(manifest(rows), split_column="split", cluster="patient")
    assert len(set(data.clusters)) == 4  # b, and three people of their own


def test_an_unknown_split_lists_those_that_exist(manifest):
    with pytest.raises(DataError, match=r"no split 'Test'. Did you mean 'test'\? There are 'fit', 'select', 'test'"):
        load(manifest(), split_column="split", split="Test")
    with pytest.raises(ConfigError, match="without a split column"):
        load(manifest(), split="fit")


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("target", "lable", "no label column 'lable'. Did you mean 'label'"),
        ("sensitive", "Sex", "no sensitive column 'Sex'. Did you mean 'sex'"),
        ("cluster", "patient_id", "no cluster column 'patient_id'. Did you mean 'patient'"),
        ("split_column", "splits", "no split column 'splits'. Did you mean 'split'"),
    ],
)
def test_a_missing_column_gets_the_nearest(manifest, option, name, message):
    with pytest.raises(DataError, match=message):
        load(manifest(), **{option: name})


def test_patients_who_are_not_known_are_people_of_their_own_and_leak_nothing(manifest):
    names = ("unknown", "-1", "unknown", "-1", "d", "e")
    rows = [(*row[:4], name, row[5]) for row, name in zip(ROWS, names, strict=True)]
    data = load(manifest(rows), split_column="split", split=["fit", "select"], cluster="patient")
    assert len(set(data.clusters)) == 6
    (said,) = [one.value for one in data.assumed if one.value.startswith("patient")]
    assert said == "patient: 4 rows unknown (-1: 2, unknown: 2), each a patient of its own in fit, select"
    with pytest.raises(DataError, match=r"-1: fit .*, select"):
        load(manifest(rows), split_column="split", cluster="patient", unknown=Unknown("patient="))
