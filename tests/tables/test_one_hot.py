"""Several label columns of which exactly one is 1 in every row: the classes of one label."""

import numpy as np
import pandas as pd
import pytest

from bmft.errors import BmftError, ConfigError
from bmft.tables import ClassNames, encode_labels

CLASSES = ["MEL", "NV", "BCC"]


def one_hot(numbers, names=CLASSES):
    return pd.DataFrame(np.eye(len(names), dtype=int)[numbers], columns=names).astype(str)


def test_one_hot_columns_are_classes_in_the_order_of_the_columns_and_that_is_said():
    labels = encode_labels(one_hot([0, 2, 1, 1]), CLASSES)
    assert (labels.task, labels.classes, labels.targets.tolist()) == ("multiclass", tuple(CLASSES), [0, 2, 1, 1])
    why, order = labels.assumed
    assert why.value == "exactly one of the 3 label columns is 1 in every row, so they are classes"
    assert why.option == "--multi-label"
    assert order.value == "0 = MEL, 1 = NV, 2 = BCC"
    assert order.source == "the order of the label columns"


def test_the_order_is_that_in_which_the_columns_are_named():
    labels = encode_labels(one_hot([0, 2, 1]), ["BCC", "MEL", "NV"])
    assert labels.classes == ("BCC", "MEL", "NV")
    assert labels.targets.tolist() == [1, 0, 2]


def test_told_that_they_are_labels_they_are_labels():
    labels = encode_labels(one_hot([0, 2, 1]), CLASSES, multi_label=True)
    assert labels.task == "multilabel"
    assert [one.value for one in labels.assumed] == ["1 is positive in MEL, NV, BCC"]
    assert labels.targets.tolist() == np.eye(3)[[0, 2, 1]].tolist()


@pytest.mark.parametrize("row", [["1", "1", "0"], ["0", "0", "0"]])
def test_one_row_of_two_or_none_makes_them_labels(row):
    table = pd.concat([one_hot([0, 2, 1]), pd.DataFrame([row], columns=CLASSES)])
    assert encode_labels(table, CLASSES).task == "multilabel"


def test_a_row_without_any_label_is_no_class_and_one_with_some_makes_them_labels():
    rows = (["", "", ""], ["1", "", ""])
    empty, part = (pd.concat([one_hot([0, 1, 2]), pd.DataFrame([row], columns=CLASSES)]) for row in rows)
    assert encode_labels(empty, CLASSES).targets.tolist() == [0, 1, 2, -1]
    assert encode_labels(part, CLASSES).task == "multilabel"


def test_of_two_columns_the_second_is_positive_unless_another_is_named():
    table = one_hot([0, 1, 1], ["benign", "malignant"])
    for positive, targets in ((None, [0, 1, 1]), ("malignant", [0, 1, 1]), ("benign", [1, 0, 0])):
        labels = encode_labels(table, ["benign", "malignant"], positive=positive)
        assert (labels.task, labels.targets.tolist()) == ("binary", targets)
        assert labels.classes[1] == (positive or "malignant")
        assert labels.outputs_reversed == (positive == "benign")
        assert f"{positive or 'malignant'} is positive" in labels.assumed[1].value


def test_the_order_of_the_outputs_comes_from_who_says_it():
    said = ("NV", "BCC", "MEL")
    for classes in (said, ClassNames(said, "the checkpoint's classes")):
        labels = encode_labels(one_hot([0, 2, 1]), CLASSES, classes)
        assert (labels.classes, labels.targets.tolist()) == (said, [2, 1, 0])


def test_names_of_other_classes_in_a_checkpoint_are_left_aside():
    labels = encode_labels(one_hot([0, 2, 1]), CLASSES, ClassNames(("cat", "dog"), "the checkpoint's classes"))
    assert labels.classes == tuple(CLASSES)


def test_classes_that_lack_a_column_are_an_error():
    with pytest.raises(BmftError, match="other than"):
        encode_labels(one_hot([0, 2, 1]), CLASSES, ("MEL", "NV"))


def test_labels_have_no_positive_one():
    with pytest.raises(ConfigError, match="in several label columns 1 is positive"):
        encode_labels(one_hot([0, 2, 1]), CLASSES, positive="NV", multi_label=True)
