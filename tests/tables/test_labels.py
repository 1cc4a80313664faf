"""Labels as class numbers: which name is which class, and which one is positive."""

import numpy as np
import pandas as pd
import pytest

from bmft.errors import ConfigError, DataError
from bmft.tables import ClassNames, encode_labels, read_table

TOLD = ClassNames(("melanoma", "nevus"), "the checkpoint's class_to_idx")


@pytest.fixture
def column(tmp_path):
    """A table with these labels, from a Parquet file, which keeps their types."""

    def write(*labels):
        pd.DataFrame({"y": list(labels)}).to_parquet(tmp_path / "t.parquet")
        return read_table(tmp_path / "t.parquet")

    return write


@pytest.mark.parametrize(
    ("labels", "targets"),
    [
        (("No", "YES ", " no"), [0, 1, 0]),
        (("positive", "Negative"), [1, 0]),
        (("neg", "pos"), [0, 1]),
        (("TRUE", "false"), [1, 0]),
        ((True, False, True), [1, 0, 1]),
        ((1.0, 0.0), [1, 0]),
        (("1.00", "0"), [1, 0]),
        (("1", "0"), [1, 0]),
    ],
)
def test_labels_that_say_what_is_positive_need_no_option(column, labels, targets):
    found = encode_labels(column(*labels), "y")
    assert found.targets.tolist() == targets
    assert found.task == "binary"
    assert not found.outputs_reversed
    assert "is positive" in found.assumed[0].value


@pytest.mark.parametrize("labels", [(1, 2, 2), ("a", "b"), ("m", "f"), ("abnormal", "normal"), (3, 7)])
def test_two_values_that_nothing_explains_are_asked_about(column, labels):
    with pytest.raises(ConfigError, match="--positive NAME") as error:
        encode_labels(column(*labels), "y")
    assert "--classes" in str(error.value)
    for value in set(labels):
        assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("labels", "positive", "targets"),
    [
        ((1, 2, 2), "2", [0, 1, 1]),
        ((1, 2, 2), "1", [1, 0, 0]),
        (("a", "B"), "b", [0, 1]),
        ((0, 2), "2", [0, 1]),
        ((0, 1), "0", [1, 0]),
        (("yes", "no"), "No", [0, 1]),
    ],
)
def test_the_one_that_is_named_is_positive(column, labels, positive, targets):
    found = encode_labels(column(*labels), "y", positive=positive)
    assert found.targets.tolist() == targets
    assert found.classes[1].lower() == positive.lower()
    assert "--positive" in found.assumed[0].source


@pytest.mark.parametrize("labels", [("yes", "no", "maybe"), ("c", "a", "b")])
def test_names_of_several_classes_need_an_order(column, labels):
    with pytest.raises(ConfigError, match="--classes"):
        encode_labels(column(*labels), "y")


@pytest.mark.parametrize("form", [list, tuple, np.array])
def test_classes_are_taken_in_their_order(column, form):
    found = encode_labels(column("c", "a", "b"), "y", form(["c", "a", "b"]))
    assert found.targets.tolist() == [0, 1, 2]
    assert found.assumed[0].value == "0 = c, 1 = a, 2 = b"


def test_numbers_are_classes_in_the_order_of_their_text_where_the_checkpoint_says_so(column):
    found = encode_labels(column(2, 10, 1), "y", ClassNames(("1", "10", "2"), "the checkpoint's class_to_idx"))
    assert found.targets.tolist() == [2, 1, 0]


def test_a_checkpoint_whose_positive_output_is_first_is_read_so(column):
    found = encode_labels(column("nevus", "melanoma"), "y", TOLD, "melanoma")
    assert found.targets.tolist() == [0, 1]
    assert found.outputs_reversed
    assert found.assumed[0].value == "melanoma is positive, nevus is not; the model's outputs are melanoma, nevus"
    assert found.assumed[0].source == "--positive, the checkpoint's class_to_idx"


def test_a_label_that_the_checkpoint_does_not_have_is_named(column):
    with pytest.raises(ConfigError, match="has lentigo, which the checkpoint's class_to_idx does not have"):
        encode_labels(column("nevus", "melanoma", "lentigo"), "y", TOLD)


def test_other_names_than_the_checkpoints_are_asked_about_beside_its_own(column):
    with pytest.raises(ConfigError, match="The checkpoint's class_to_idx has melanoma, nevus"):
        encode_labels(column("sick", "well"), "y", TOLD)


def test_labels_of_0_and_1_are_numbers_of_the_outputs_and_the_checkpoints_names_are_told(column):
    found = encode_labels(column(0, 1), "y", TOLD)
    assert (found.targets.tolist(), found.outputs_reversed) == ([0, 1], False)
    assert found.assumed[0].source == "the labels 0 and 1; the checkpoint's class_to_idx has melanoma, nevus"


def test_labels_of_0_and_1_can_be_the_other_way_round_than_the_outputs(column):
    found = encode_labels(column(0, 1), "y", ["1", "0"])
    assert (found.targets.tolist(), found.outputs_reversed) == ([0, 1], True)


def test_a_value_beside_the_named_classes_is_listed_with_its_row(column):
    with pytest.raises(DataError, match="row 1: 'lentigo'"):
        encode_labels(column("nevus", "lentigo"), "y", ["nevus", "melanoma"])


def test_several_label_columns_say_what_1_means():
    found = encode_labels(pd.DataFrame({"edema": ["0", "1"], "mass": ["1", "1"]}), ["edema", "mass"])
    assert found.assumed[0].value == "1 is positive in edema, mass"
