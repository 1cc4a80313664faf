"""Codes of what is not known: which there are, how others are named, what is said of them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from bmft.errors import ConfigError, DataError
from bmft.tables import Unknown, encode_attribute, encode_attributes, encode_labels, read_manifest

ABSENT = [
    "-1",
    "unknown",
    "Unknown",
    " NA ",
    "n/a",
    "N/A",
    "not reported",
    "Not_Specified",
    "?",
    "",
    "nan",
    "missing",
    "[Not Available]",
    "<NA>",
    "Unknown or Not Reported",
]


def table(**columns):
    return pd.DataFrame({name: [str(value) for value in values] for name, values in columns.items()})


def said(assumed):
    return [one.value for one in assumed if one.subject == "unknown"]


# ---- attributes


@pytest.mark.parametrize("code", ABSENT)
def test_a_code_for_not_known_is_no_group(code):
    attribute, ids = encode_attribute(table(sex=["f", code, "m", "f"]), "sex")
    assert attribute.groups == ("f", "m")
    assert ids.tolist() == [0, -1, 1, 0]


@pytest.mark.parametrize(
    "name", ["other", "Other", "none", "mixed", "0", "N", "unknowable", "Other/Unknown", "A or B", "()"]
)
def test_what_says_something_is_a_group(name):
    attribute, ids = encode_attribute(table(sex=["f", name, "m"]), "sex")
    assert name in attribute.groups
    assert (ids >= 0).all()


@given(st.lists(st.sampled_from(["f", "m", "other", *ABSENT]), min_size=1))
def test_the_groups_are_those_of_the_rows_kept_by_hand(values):
    frame = table(sex=values)
    _, ids = encode_attribute(frame, "sex")
    absent = pd.Series(values).isin(ABSENT)
    assert (ids < 0).tolist() == absent.tolist()
    assert [sorted(set(values) - set(np.array(values)[absent.to_numpy()]))[i] for i in ids[ids >= 0]] == [
        value for value, gone in zip(values, absent, strict=True) if not gone
    ]


@pytest.mark.parametrize(
    ("spec", "values", "ids"),
    [
        ("age:60", [59, -1, 60, -9, 999, "unknown", 0], [0, -1, 1, -1, -1, -1, 0]),
        ("patient_age:60", [59, 999, 9999.0, 60], [0, -1, -1, 1]),
        ("dose:60", [59, 999, -1, 60], [0, 1, -1, 1]),
        ("diopters:-6,-1", [-7, -1, -2, 3, "?"], [0, 2, 1, 2, -1]),
        ("change:0", [-7, -1, 5], [0, 0, 1]),
        ("age:400,800", [999, 500, 300], [2, 1, 0]),
        ("stage", [1, 2, -9, -1], [0, 1, -1, -1]),
    ],
)
def test_a_number_that_cannot_be_measured_is_not_known(spec, values, ids):
    name = spec.partition(":")[0]
    assert encode_attribute(table(**{name: values}), spec)[1].tolist() == ids


def test_a_product_is_not_known_where_a_factor_is_not():
    frame = table(sex=["f", "?", "m", "m"], age=[30, 70, -1, 70])
    attribute, ids = encode_attribute(frame, "sex*age:60")
    assert attribute.groups == ("f*<60", "f*60+", "m*<60", "m*60+")
    assert ids.tolist() == [0, -1, -1, 3]


def test_codes_can_be_added_to_all_columns_or_to_one():
    frame = table(sex=["f", "m", "x9"], race=["a", "x9", "b"])
    everywhere, own = Unknown("X9"), Unknown(["sex=x9"])
    assert [encode_attribute(frame, name, everywhere)[1].tolist() for name in ("sex", "race")] == [
        [0, 1, -1],
        [0, -1, 1],
    ]
    assert [encode_attribute(frame, name, own)[1].tolist() for name in ("sex", "race")] == [[0, 1, -1], [0, 2, 1]]


def test_a_column_can_be_said_to_have_codes_of_its_own_only():
    frame = table(race=["white", "NA", "unknown", ""], age=[-5, 70, 999, ""])
    own = Unknown(["race=", "race=unknown", "age="])
    assert encode_attribute(frame, "race", own)[0].groups == ("NA", "white")
    assert encode_attribute(frame, "age:60", own)[1].tolist() == [0, 1, 1, -1]


def test_a_code_of_a_column_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"--unknown 'sx=9': the table has no column 'sx'\. Did you mean 'sex'"):
        encode_attribute(table(sex=["f", "m"]), "sex", Unknown("sx=9"))


def test_a_code_that_no_row_holds_is_a_remark():
    frame = table(sex=["f", "m", "m"], race=["a", "9", "b"])
    found = encode_attributes(frame, ["sex"], Unknown(["sex=U", "M", "9", "race=9"]), np.arange(3)).assumed
    assert [one.value for one in found if one.guess] == [
        "no row holds the code 'U' in sex",
        "no row holds the code '9'",
    ]


def test_the_codes_are_counted_and_named():
    frame = table(sex=["f", *["-1"] * 9, *["unknown"] * 3, "m", ""], age=[30] * 15)
    groups = encode_attributes(frame, ["sex", "sex*age:60"], Unknown(), np.arange(14))
    assert said(groups.assumed) == ["sex: 12 rows unknown (-1: 9, unknown: 3)"]
    (one,) = encode_attributes(frame, "sex", Unknown(), np.arange(10, 15), " in test").assumed
    assert (one.value, one.option) == ("sex: 4 rows unknown (unknown: 3, blank: 1) in test", "--unknown")


@pytest.mark.parametrize(
    ("spec", "values", "code"),
    [("smoker", ["yes", "no", "None"], "None"), ("site", [1, 2, 99], "99"), ("age:60", [30, 70, 411], "411")],
)
def test_a_group_that_may_be_none_is_one_with_a_remark(spec, values, code):
    name = spec.partition(":")[0]
    frame = table(**{name: values})
    (one,) = encode_attributes(frame, spec, Unknown(), np.arange(3)).assumed
    assert (one.value, one.guess) == (f"{name}: taken as they are, rows of {code}: 1", True)
    assert one.option == f"--unknown {name}=CODE"
    assert said(encode_attributes(frame, spec, Unknown(f"{name}={code}"), np.arange(3)).assumed) == [
        f"{name}: 1 row unknown ({code}: 1)"
    ]


# ---- labels


def test_a_label_that_is_not_known_is_none():
    labels = encode_labels(table(y=[0, 1, -1, "", "?", 1]), "y")
    assert labels.targets.tolist() == [0, 1, -1, -1, -1, 1]
    assert labels.why["y"].tolist() == ["", "", "-1", "blank", "?", ""]


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({"uncertain": "positive"}, [0, 1, 1, -1]),
        ({"uncertain": "negative"}, [0, 1, 0, -1]),
        ({"uncertain": "unknown"}, [0, 1, -1, -1]),
        ({"blank": "negative"}, [0, 1, -1, 0]),
        ({"uncertain": "positive", "blank": "negative"}, [0, 1, 1, 0]),
    ],
)
def test_what_uncertain_and_empty_labels_are_can_be_said(options, targets):
    frame = table(y=[0, 1, -1, ""], z=[1, 0, 0, 1], dx=["nevus", "melanoma", "-1", ""])
    assert encode_labels(frame, "y", unknown=Unknown(**options)).targets.tolist() == targets
    several = encode_labels(frame, ["y", "z"], unknown=Unknown(**options), multi_label=True)
    assert several.targets[:, 0].tolist() == targets
    for positive, turned in (("melanoma", targets), ("nevus", [1 - one if one >= 0 else one for one in targets])):
        named = encode_labels(frame, "dx", positive=positive, unknown=Unknown(**options)).targets.tolist()
        kept = [place for place, one in enumerate(frame["dx"]) if one.isalpha()]
        assert [named[place] for place in kept] == [turned[place] for place in kept]
        assert [named[2], named[3]] == targets[2:]


def test_each_label_can_have_a_meaning_of_its_own_for_what_is_uncertain():
    frame = table(y=[0, 1, -1, ""], z=[1, 0, -1, ""], w=[1, 0, -1, ""])
    said = Unknown(uncertain=["y=positive", "negative", "w=unknown"], blank="z=negative")
    assert encode_labels(frame, ["y", "z", "w"], unknown=said).targets.T.tolist() == [
        [0, 1, 1, -1],
        [1, 0, 0, 0],
        [1, 0, -1, -1],
    ]
    with pytest.raises(ConfigError, match=r"--blank zz=negative: the table has no such column\."):
        encode_labels(frame, "y", unknown=Unknown(blank="zz=negative"))


def test_a_class_called_unknown_is_a_class_where_the_classes_are_named():
    frame = table(dx=["NV", "MEL", "UNK", "NV"])
    assert encode_labels(frame, "dx", ["MEL", "NV", "UNK"]).targets.tolist() == [1, 0, 2, 1]
    assert encode_labels(frame, "dx", positive="MEL").targets.tolist() == [0, 1, -1, 0]


def test_a_code_of_every_attribute_is_none_of_a_labels():
    frame = table(y=[0, 1, 2, 2])
    assert encode_labels(frame, "y", unknown=Unknown("2")).targets.tolist() == [0, 1, 2, 2]
    assert encode_labels(frame, "y", unknown=Unknown("y=2")).targets.tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, -1, -1, 1], r"'y' is 1 wherever it is known, and -1: 2 in .*--uncertain negative"),
        ([1, "", 1, 1], r"'y' is 1 wherever it is known, and blank: 1 in .*--blank negative"),
    ],
)
def test_labels_that_have_one_value_and_a_mark_need_a_word_on_the_mark(values, message):
    frame = table(y=values, z=[0, 1, 0, 1])
    for target in ("y", ["y", "z"]):
        with pytest.raises(ConfigError, match=message):
            encode_labels(frame, target)
    option = "uncertain" if -1 in values else "blank"
    assert encode_labels(frame, "y", unknown=Unknown(**{option: "negative"})).targets.min() == 0
    assert encode_labels(frame, "y", unknown=Unknown(**{option: "unknown"})).targets.min() == -1


def test_several_classes_have_no_yes_or_no_for_what_is_uncertain():
    with pytest.raises(ConfigError, match="several classes"):
        encode_labels(table(y=[0, 1, 2, -1]), "y", unknown=Unknown(uncertain="positive"))


@pytest.mark.parametrize("options", [{"uncertain": "maybe"}, {"blank": "positive"}])
def test_another_word_for_what_is_uncertain_is_refused(options):
    with pytest.raises(ConfigError, match="expected unknown"):
        Unknown(**options)


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    frame = table(y=[0, 1, -1, "", 1, 0], sex=list("fmfmfm"), split=["a", "a", "a", "b", "b", "b"])
    frame.to_csv(tmp_path / "m.csv")
    read = read_manifest(tmp_path / "m.csv", "y", "sex", split_column="split", split="b")
    assert read.rows.tolist() == [4, 5]
    assert said(read.assumed) == ["y: 1 row without a label (blank: 1) in b"]
    assert read_manifest(tmp_path / "m.csv", "y", "sex").rows.tolist() == [0, 1, 4, 5]


def test_a_row_with_one_of_several_labels_is_kept(tmp_path):
    frame = table(y=[0, 1, -1, ""], z=["", 0, 1, -1], w=[1, 0, 0, ""], sex=list("fmfm"))
    frame.to_csv(tmp_path / "m.csv")
    read = read_manifest(tmp_path / "m.csv", ["y", "z", "w"], "sex")
    assert read.rows.tolist() == [0, 1, 2]
    assert read.labels.targets[:3].tolist() == [[0, -1, 1], [1, 0, 0], [-1, 1, 0]]
    assert said(read.assumed) == [
        "y: 2 rows without a label (-1: 1, blank: 1)",
        "z: 2 rows without a label (-1: 1, blank: 1)",
        "w: 1 row without a label (blank: 1)",
    ]


def test_a_table_without_any_label_is_refused(tmp_path):
    frame = table(y=[0, 1, -1, ""], sex=list("fmfm"), split=list("aabb"))
    frame.to_csv(tmp_path / "m.csv")
    with pytest.raises(DataError, match="none of the 2 rows in b has a label in y"):
        read_manifest(tmp_path / "m.csv", "y", "sex", split_column="split", split="b")
