"""`bmft plan`."""

import json

import pytest


def sizes(bmft, capsys, *args):
    assert bmft("plan", *args, "--json", "-") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("tolerance", "about"), [(0.1, 300), (0.05, 1200)])
def test_the_example_gives_about_what_it_says(bmft, capsys, tolerance, about):
    found = sizes(bmft, capsys, "--tolerance", tolerance, "--rate", 0.8, "--groups", 2)
    assert found["schema"] == 1
    assert found["per_group"] == pytest.approx(about, rel=0.1)
    assert found["total"] == 2 * found["per_group"]
    assert 0.8 <= found["power"] < 0.82


def test_images_of_one_patient_need_more_of_them(bmft, capsys):
    one = sizes(bmft, capsys, "--tolerance", 0.1, "--rate", 0.8)
    four = sizes(bmft, capsys, "--tolerance", 0.1, "--rate", 0.8, "--images-per-patient", 4, "--icc", 0.3)
    assert four["design_effect"] == pytest.approx(1.9)
    assert four["per_group"] == pytest.approx(1.9 * one["per_group"], abs=1)


def test_the_table_names_its_numbers(bmft, capsys):
    assert bmft("plan", "--tolerance", 0.2, "--rate", 0.8, "--images-per-patient", 2, "--icc", 0.5) == 0
    shown = capsys.readouterr().out
    for words in ("samples per group", "patients per group", "design effect", "power"):
        assert words in shown


@pytest.mark.parametrize(
    "args", [["--rate", 0.8], ["--tolerance", 0, "--rate", 0.8], ["--tolerance", 1e-5, "--rate", 0.5]]
)
def test_what_cannot_be_planned_is_a_usage_error(bmft, args):
    assert bmft("plan", *args) == 2
