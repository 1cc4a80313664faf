import numpy as np
import pandas as pd
import pytest

from bmft.errors import ConfigError, DataError
from bmft.tables import Attribute, InputColumn, Unknown, encode_inputs, input_columns

TABLE = pd.DataFrame(
    {
        "age": ["50", "70.0", "60", "80"],
        "sex": ["f", "m", "m", "f"],
        "site": ["head", "limb", "trunk", "limb"],
        "gaps": ["1", "", "nan", "x"],
        "same": ["3", "3", "3", "3"],
        "marked": ["1", "-1", "2", "999"],
    }
)
ROWS = np.arange(4)


def encoded(*asked, rows=ROWS, **options):
    return encode_inputs(TABLE, input_columns(asked), rows, **options)


def remarks(found):
    return [one.value for one in found.assumed if one.guess]


def test_numbers_are_one_array_where_the_first_is_named_and_each_category_is_its_own():
    found = encoded("age=60/10", "site=head,trunk,limb", "sex=f:0,m:1")
    numbers, site = found.arrays
    assert numbers.tolist() == [[-1, 0], [1, 1], [0, 1], [2, 0]]
    assert site.tolist() == [0, 2, 1, 2]
    assert (numbers.dtype, site.dtype) == (np.float32, np.int64)
    assert [one.ndim for one in encoded("site=head,trunk,limb", "age=60/10").arrays] == [1, 2]


@pytest.mark.parametrize(
    ("name", "hint"), [("age", "own are 65/11.1803"), ("site", "these rows have head,limb,trunk"), ("sex", "sex=A,B")]
)
def test_a_column_that_nothing_is_said_of_asks_and_shows_what_the_rows_hold(name, hint):
    with pytest.raises(ConfigError, match=f"--input {name}=") as error:
        encoded(name)
    assert hint in str(error.value)


def test_what_is_recorded_answers_for_a_column_that_is_only_named_and_for_no_column_at_all():
    record = InputColumn("age", 60, 10)
    assert input_columns(["age"], [record]) == input_columns([], [record]) == (record,)
    assert input_columns(["age=1/2"], [record]) == (InputColumn("age", 1, 2),)


@pytest.mark.parametrize("said", ["gaps=0/1", "gaps=1,2", "gaps=1:0,2:1"])
def test_rows_without_a_value_that_can_be_given_are_refused_by_row(said):
    with pytest.raises(DataError, match="3 of 4 rows have no value") as error:
        encoded(said)
    assert "row 1: ''" in str(error.value)
    assert "row 3: 'x'" in str(error.value)


def test_rows_that_are_not_used_may_lack_a_value():
    (numbers,) = encoded("gaps=0/1", rows=np.array([0])).arrays
    assert numbers[0].tolist() == [1]
    assert np.isfinite(numbers).all()


def test_a_value_that_is_too_large_for_the_network_is_refused():
    table = pd.DataFrame({"x": ["1e39", "1"]})
    with pytest.raises(DataError, match="row 0: '1e39'"):
        encode_inputs(table, input_columns(["x=0/1"]), np.arange(2))


def test_a_code_that_is_said_to_be_unknown_is_refused_and_a_likely_one_is_a_remark():
    with pytest.raises(DataError, match="row 3: '999'"):
        encoded("marked=0/1", unknown=Unknown("marked=999"))
    assert remarks(encoded("marked=0/1")) == ["marked: taken as numbers, rows of -1: 1, 999: 1"]


def test_a_column_that_is_not_there_names_the_nearest():
    with pytest.raises(DataError, match=r"no input column 'aeg'\. Did you mean 'age'"):
        encoded("aeg=0/1")


@pytest.mark.parametrize(
    ("said", "remark"),
    [("same=3/1", "same is '3' in all 4 rows"), ("age=0/10", "the mean 6.5"), ("age=60/100", "the deviation 0.112")],
)
def test_what_a_network_was_hardly_trained_on_is_a_remark(said, remark):
    assert any(remark in one for one in remarks(encoded(said)))


def test_numbers_standardised_well_or_taken_as_they_are_bring_no_remark():
    assert remarks(encoded("age=60/10", "site=head,trunk,limb")) == remarks(encoded("age=0/1")) == []


@pytest.mark.parametrize("name", ["sex", "age*sex"])
def test_an_attribute_that_is_an_input_is_a_remark(name):
    (said,) = remarks(encoded("sex=f,m", attributes=[Attribute(name, ("a", "b"))]))
    assert "sex is an attribute of the groups and an input" in said


@pytest.mark.parametrize(
    "said", ["age=", "=1/2", "age=1", "age=1/0", "age=1/-2", "age=nan/1", "site=head", "site=head,,limb", "site=a:1,b"]
)
def test_what_is_no_form_is_refused_with_the_column_named(said):
    with pytest.raises(ConfigError, match=r"age|site|1/2"):
        encoded(said)


def test_a_column_named_twice_is_refused():
    with pytest.raises(ConfigError, match="twice"):
        encoded("age=60/10", "age=0/1")


@pytest.mark.parametrize("said", ["age=62.5/14.2", "age=-0.1/1e-3", "site=head/neck,trunk", "sex=f:0.5,m:-1.0"])
def test_a_column_says_itself_as_it_is_parsed(said):
    column = InputColumn.parse(said)
    assert InputColumn.parse(str(column)) == column
