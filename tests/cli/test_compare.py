import json

import pytest

FAST = ["--epochs", "1", "--path", "1", "--seeds", "1", "--tuning", "1", "--jobs", "1"]


@pytest.fixture(autouse=True)
def quick_intervals(monkeypatch):
    monkeypatch.setattr("bmft.comparison.trials.RESAMPLES", 20)


@pytest.fixture
def compare(bmft, study, data_options):
    return lambda *args: bmft("compare", study / "model.pt", *data_options, *FAST, *args)


def test_the_methods_are_compared_and_the_files_are_left(compare, study, tmp_path, capsys):
    assert compare("--methods", "threshold,dfr", "--report", "out", "--eval", f"clinic={study / 'isic.csv'}") == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "measured on the test rows (n = 240)"
    assert [line.split()[0] for line in lines[1:3]] == ["method", "untouched"]
    assert {line.split()[0] for line in lines[3:5]} == {"threshold", "dfr"}
    assert lines[-1] == "out/compare.html"
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["budget"]["epochs"] == [1, 1]
    assert written["untouched"]["evaluations"]["clinic"]["gap"]["mean"] > 0
    assert set(written["untouched"]["leakage"]) == {"sex"}
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 2


@pytest.mark.ci
def test_a_finished_trial_is_not_run_again(compare, monkeypatch, capsys):
    assert compare("--methods", "threshold") == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("bmft.comparison.runner.run_trial", lambda *_: pytest.fail("run again"))
    assert compare("--methods", "threshold") == 0
    assert capsys.readouterr().out == first


def test_an_unknown_method_is_a_usage_error(compare, capsys):
    assert compare("--methods", "dfrr") == 2
    assert "did you mean 'dfr'" in capsys.readouterr().err


@pytest.mark.ci
def test_interrupted_leaves_whole_files_only_and_exit_130(compare, tmp_path, monkeypatch):
    from bmft.comparison.trials import run_trial

    def second_is_interrupted(world, trial):
        if trial.method == "dfr":
            raise KeyboardInterrupt
        return run_trial(world, trial)

    monkeypatch.setattr("bmft.comparison.runner.run_trial", second_is_interrupted)
    assert compare("--methods", "threshold,dfr", "--report", "out") == 130
    (kept,) = (tmp_path / "out" / "trials").iterdir()
    assert json.loads(kept.read_text())["method"] == "threshold"
    assert not (tmp_path / "out" / "compare.html").exists()
