"""Splits as people name them."""

import pytest

from bmft.errors import DataError
from bmft.tables import no_split, splits_by_role


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["fit", "select", "test"], ("fit", "select", "test")),
        (["train", "val", "test"], ("train", "val", "test")),
        (["Training", "Validation", "Testing"], ("Training", "Validation", "Testing")),
        (["TRAIN", "dev"], ("TRAIN", "dev", "")),
        (["train", "validate", "test", "extra"], ("train", "validate", "test")),
        (["train", "fit", "select", "test"], ("fit", "select", "test")),
        (["train"], ("train", "", "")),
        (["0", "1"], ("", "", "")),
        ([], ("", "", "")),
    ],
)
def test_names_in_use_mean_their_role_in_any_case(names, expected):
    found = splits_by_role(names)
    assert found == {
        role: (name,) if name else () for role, name in zip(("fit", "select", "test"), expected, strict=True)
    }


@pytest.mark.parametrize("names", [["val", "dev"], ["train", "Training", "test"], ["test", "Test"]])
def test_two_names_of_one_role_ask(names):
    with pytest.raises(DataError, match=r"could each be the (fit|select|test) split: say --(fit|select|test) NAME"):
        splits_by_role(names)


def test_what_was_asked_for_is_taken_as_it_is():
    assert splits_by_role(["val", "dev", "x"], {"select": ("val", "x")})["select"] == ("val", "x")


def test_the_error_of_a_missing_role_lists_what_there_is():
    assert "no test split (named test, testing). There are 'train', 'val'. Say --test NAME." in str(
        no_split("test", "split", ["val", "train"])
    )
