import json

import pytest
import torch

optuna = pytest.importorskip("optuna")
FAST = ["--trials", 2, "--epochs", "2,1", "--set", "path=[1.0]", "--max-auc-drop", 0.2, "--max-group-auc-drop", 0.3]


@pytest.fixture
def search(bmft, study, data_options):
    return lambda *args: bmft("search", study / "model.pt", *data_options, *FAST, *args)


@pytest.mark.ci
def test_the_winners_file_repeats_the_search_to_the_last_bit(search, bmft, study, data_options, tmp_path, capsys):
    assert search("--goal", "average_odds", "--out", "s.pt", "--report", "r") == 0
    shown = capsys.readouterr().out
    assert "won of 2" in shown
    written = {path.name for path in (tmp_path / "r").iterdir()}
    assert {"best.toml", "report.html", "report.json", "report.md", "mask.safetensors", "study.journal"} <= written
    assert bmft("debias", study / "model.pt", *data_options, "--config", "r/best.toml", "--out", "d.pt") == 0
    assert (tmp_path / "s.pt").read_bytes() == (tmp_path / "d.pt").read_bytes()
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["search"]["select"] is not None
    assert len(report["search"]["trials"]) == 2
    assert "The search" in (tmp_path / "r" / "report.html").read_text()


def test_a_search_leaves_its_report_and_what_repeats_it(search, tmp_path, capsys):
    assert search("--trials", 1, "--out", "s.pt", "--report", "r") in (0, 1)
    assert "won of 1" in capsys.readouterr().out
    found = json.loads((tmp_path / "r" / "report.json").read_text())
    assert len(found["search"]["trials"]) == 1
    assert (tmp_path / "r" / "best.toml").is_file()
    assert (tmp_path / "s.pt").is_file() == found["accepted"]


@pytest.mark.ci
def test_the_same_command_goes_on_where_it_stopped(search):
    assert search("--report", "r", "--out", "a.pt") in (0, 1)
    assert search("--report", "r", "--out", "b.pt") in (0, 1)
    backend = optuna.storages.journal.JournalFileBackend("r/study.journal")
    (study,) = optuna.get_all_study_summaries(optuna.storages.JournalStorage(backend))
    assert study.n_trials == 2, "two were run, once"


@pytest.mark.ci
def test_a_search_may_start_from_other_weights(search, study, tmp_path):
    state = torch.load(study / "model.pt", weights_only=True)
    torch.save({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "other.pt")
    assert search("--from", tmp_path / "other.pt", "--out", "a.pt") in (0, 1)
    assert (tmp_path / "a.best.toml").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--goal", "fairest"], "goal"), (["--trials", 0], "trials"), (["--storage", "nowhere://x"], "nowhere")],
)
def test_a_wrong_option_is_one_line_and_exit_2(search, capsys, arguments, message):
    assert search(*arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "say otherwise: " not in line]
    assert len(error) == 1
    assert message in error[0]
