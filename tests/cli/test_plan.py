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


def test_what_to_expect_of_debiasing_is_told_with_where_it_was_measured(bmft, capsys):
    from bmft.gate import plan_debias

    assert bmft("plan", "--debias", "--per-cell", 60, "--json", "-") == 0
    told, shown = capsys.readouterr(), plan_debias(60)
    assert json.loads(told.out) == {"schema": 1, **json.loads(json.dumps(shown.to_dict()))}
    assert (
        f"standard error of the average odds gap of two groups on 60 rows per cell: {shown.gap_error:.3f}" in told.err
    )
    assert f"at least {shown.rows_to_show:,}" in told.err
    for one in shown.expected:
        assert f"{one.removed:.0%}" in told.err
        assert "one checkpoint and one kind of image" in told.err


def test_far_outside_the_measured_range_no_share_is_told(bmft, capsys):
    assert bmft("plan", "--debias", "--per-cell", 1_000_000) == 0
    assert "gap removed" not in (shown := capsys.readouterr().out)
    assert "nothing is expected" in shown


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--debias"], "Missing option '--per-cell'"),
        (["--debias", "--per-cell", 9, "--tolerance", 0.1], "--tolerance is not read with --debias"),
        (["--tolerance", 0.1, "--rate", 0.8, "--per-cell", 9], "--per-cell is not read without --debias"),
        (["--rate", 0.8], "Missing option '--tolerance'"),
    ],
)
def test_options_of_the_other_question_are_refused(bmft, capsys, args, why):
    assert bmft("plan", *args) == 2
    assert why in capsys.readouterr().err
