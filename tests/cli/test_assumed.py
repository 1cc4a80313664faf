"""What was inferred is told once before a command works, is in its JSON, and `--quiet` leaves it out."""

import json

import pytest

from tests.tiers import in_ci

FAST = ["--method", "threshold"]
POLICY = '[[check]]\nmetric = "false_positive_rate"\nsensitive = ["sex"]\nmax_difference = 0.9\n'


def command_lines(checkpoint, options, folder):
    """Command -> its arguments and the JSON that it leaves."""
    (folder / "p.toml").write_text(POLICY)
    data = [checkpoint, *options]
    quick = ["--methods", "threshold", "--seeds", "1", "--jobs", "1", "--report", "compare"]
    return {
        "audit": ([*data, "--json", "audit.json"], "audit.json"),
        "gate": ([*data, "--policy", "p.toml", "--json", "gate.json"], "gate.json"),
        "debias": ([*data, *FAST, "--report", "debias"], "debias/report.json"),
        "compare": ([*data, *quick], "compare/compare.json"),
        "search": ([*data, "--trials", "1", "--epochs", "1", "--report", "search"], "search/report.json"),
    }


@pytest.mark.parametrize("name", ["audit", "gate", *in_ci("debias", "compare", "search")])
def test_each_command_says_once_what_it_assumes_and_its_json_has_it(name, bmft, study, data_options, tmp_path, capsys):
    arguments, written = command_lines(study / "model.pt", data_options, tmp_path)[name]
    assert bmft(name, *arguments) in (0, 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bmft: splits: ")]
    wanted = ["test"] if name in ("audit", "gate") else ["fit", "select", "test"]
    assert len(lines) == 1
    rows = [f"{part} is {240 if part == 'test' else 120} rows" for part in wanted]
    assert "; ".join(rows) in lines[0]
    assumed = json.loads((tmp_path / written).read_text())["assumed"]
    assert [one["value"] for one in assumed["splits"]] == rows


@pytest.mark.parametrize("name", ["audit", "gate", *in_ci("debias", "compare")])
def test_quiet_leaves_the_assumptions_out_of_the_terminal_only(name, bmft, study, data_options, tmp_path, capsys):
    arguments, written = command_lines(study / "model.pt", data_options, tmp_path)[name]
    assert bmft(name, *arguments, "--quiet") in (0, 1)
    assert "splits" not in capsys.readouterr().err
    assert "splits" in json.loads((tmp_path / written).read_text())["assumed"]


def test_splits_that_were_named_are_no_assumption(bmft, study, data_options, tmp_path):
    assert bmft("audit", study / "model.pt", *data_options, "--test", "select", "--json", "a.json") == 0
    assert "splits" not in json.loads((tmp_path / "a.json").read_text())["assumed"]


def test_rows_cut_without_patients_are_a_warning(bmft, study, capsys):
    data = ["--data", study / "isic.csv", "--label", "malignant", "--sensitive", "sex", "--image-size", 32]
    assert bmft("debias", study / "model.pt", *data, *FAST, "--folds", 1) in (0, 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "splits: " in line]
    assert len(lines) == 1
    assert "a patient may be in both" in lines[0]
    assert "--cluster" in lines[0]
