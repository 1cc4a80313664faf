"""Rows that two sets share are found, named and refused, or allowed and said."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bmft.data import apart, from_arrays, load_manifest
from bmft.errors import DataError

LABELS, SEXES = [0, 1, 0, 1], ["f", "m", "m", "f"]


@pytest.fixture
def site(tmp_path):
    """Make a manifest of four noise images drawn from a seed, as files of one format."""

    def make(name, seed, format="png", patients="abcd", **more):
        rng = np.random.default_rng(seed)
        for i in range(4):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}{i}.{format}")
        columns = {"path": [f"{name}{i}.{format}" for i in range(4)], "y": LABELS, "sex": SEXES}
        pd.DataFrame({**columns, "patient": list(patients), **more}).to_csv(tmp_path / f"{name}.csv", index=False)
        return tmp_path / f"{name}.csv"

    return make


def load(path, **options):
    return load_manifest(path, target="y", sensitive="sex", normalize="none", **options)


def arrays(inputs, **options):
    return from_arrays(inputs, LABELS, [0, 1, 1, 0], **options)


def test_sets_that_share_nothing_are_given_back_as_the_same_objects(site):
    sets = {"fit": load(site("a", 0)), "test": load(site("b", 1))}
    assert all(apart(sets)[name] is data for name, data in sets.items())


@pytest.mark.parametrize("format", ["png", "bmp"])
def test_the_same_pixels_in_files_of_any_name_and_format_are_shared_rows(site, format):
    sets = {"fit": load(site("a", 0)), "test": load(site("b", 0, format))}
    with pytest.raises(DataError, match="4 of the 4 test rows are fit rows too") as caught:
        apart(sets)
    assert "row 0 of fit is row 0 of test" in str(caught.value)
    assert "--allow-shared-rows" in str(caught.value)


def test_a_patient_in_two_manifests_is_told_by_name_though_the_numbers_differ(site):
    one, other = site("a", 0, patients="pqrs"), site("b", 1, patients="abcp")
    sets = {"fit": load(one, cluster="patient"), "test": load(other, cluster="patient")}
    assert sets["fit"].clusters[0] != sets["test"].clusters[3]
    with pytest.raises(DataError, match="1 of the 4 test rows are of patients in fit") as caught:
        apart(sets)
    assert "patient p: row 0 of fit, row 3 of test" in str(caught.value)


def test_rows_without_a_patient_are_no_patient_in_common(site):
    sets = {
        name: load(site(name, seed, patients=["", "", "x", name]), cluster="patient") for seed, name in enumerate("ab")
    }
    with pytest.raises(DataError, match="1 of the 4 b rows are of patients in a"):
        apart(sets)


def test_what_is_allowed_is_said_on_every_set_and_stays_allowed(site):
    allowed = apart({"fit": load(site("a", 0)), "test": load(site("b", 0))}, allow=True)
    for data in allowed.values():
        assert [one.value for one in data.assumed if one.subject == "splits"] == [
            "4 of the 4 test rows are fit rows too"
        ]
    assert apart(allowed) == allowed


def test_arrays_are_compared_by_value_and_patients_by_their_ids():
    rows = torch.arange(16.0).reshape(4, 4)
    with pytest.raises(DataError, match="4 of the 4 test rows"):
        apart({"fit": arrays(rows), "test": arrays(rows.clone())})
    with pytest.raises(DataError, match="2 of the 4 test rows are of patients in fit"):
        apart({"fit": arrays(rows, clusters=[7, 7, 8, 9]), "test": arrays(rows + 100, clusters=[8, 1, 9, 2])})


def test_inputs_that_tell_no_samples_apart_are_only_the_same_where_they_are_one_sample():
    same = arrays(torch.zeros(4, 2))
    assert apart({"fit": same, "test": arrays(torch.zeros(4, 2))})
    with pytest.raises(DataError, match="2 of the 2 test rows"):
        apart({"fit": same, "test": same.subset(torch.tensor([1, 3]))})


def test_a_split_keeps_copies_of_an_image_together(site):
    path = site("a", 0)
    table = pd.read_csv(path)
    pd.concat([table] * 6).to_csv(path, index=False)
    for seed in range(5):
        parts = load(path).split(0.5, 0.5, seed=seed)
        names = [{row % 4 for row in part.rows.tolist()} for part in parts]
        assert not names[0] & names[1]


@pytest.mark.parametrize(
    ("column", "values"), [("patient", "aabb"), ("path", ["a0.png", "a1.png", "./a0.png", "a3.png"])]
)
def test_a_patient_or_a_path_in_two_splits_of_a_table_is_an_error_even_where_one_is_loaded(site, column, values):
    path = site("a", 0, split=["fit", "test", "test", "test"])
    table = pd.read_csv(path)
    table[column] = list(values)
    table.to_csv(path, index=False)
    options = {"split_column": "split", "split": "test", "cluster": "patient"}
    with pytest.raises(DataError, match=f"'{column}' are in several splits.*\n.*fit .row 0.*test .row"):
        load(path, **options)
    assert len(load(path, **options, allow_shared_rows=True)) == 3


def test_several_splits_are_read_together(site):
    path = site("a", 0, split=["1", "2", "3", "3"], patients=["", "", "", ""])
    assert load(path, split_column="split", split=["1", "2"]).rows.tolist() == [0, 1]
    with pytest.raises(DataError, match="no split '9'"):
        load(path, split_column="split", split=["1", "9"])


def test_blanks_around_an_image_path_are_no_part_of_it(site):
    path = site("a", 0)
    table = pd.read_csv(path)
    table["path"] += "  "
    table.to_csv(path, index=False)
    assert len(load(path)) == 4
