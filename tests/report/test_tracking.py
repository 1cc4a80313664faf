"""Runs told to trackers, read back from the libraries' local stores."""

import itertools
import json
import logging
import re
import time

import pytest
import torch
from torch import nn

import bmft
from bmft.data import from_arrays
from bmft.errors import ConfigError, MissingExtraError, TrackerError
from bmft.report import Log, log_to
from bmft.report.tracking import _named

# What the libraries say of themselves and of each other is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run():
    labels = torch.arange(200) % 2
    groups = torch.arange(200) // 2 % 2
    inputs = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) + (labels + 0.4 * groups)[:, None] - 0.7
    fit, select = from_arrays(inputs, labels, groups).split(0.5, 0.5)
    network = nn.Linear(2, 1, bias=False)
    nn.init.constant_(network.weight, 0.5)

    def debiased(log):
        outcome = bmft.debias(
            network, fit, select, method="head", config={"epochs": (0, 2)}, progress=log, intervals=False
        )
        log.report(outcome.report)
        return outcome

    return debiased


def gaps_of(outcome):
    """Those of the epochs; what stands before them is the untouched model."""
    gaps = [one.gap for one in outcome.report.history[1:]]
    assert len(set(gaps)) > 1
    return gaps


def told(folder, run):
    """Run and tell MLflow; the run as its store has it."""
    mlflow = pytest.importorskip("mlflow", reason="needs the mlflow extra")
    with log_to(f"mlflow:{folder}", name="first") as log:
        outcome = run(log)
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("bmft").experiment_id])
    return client, found, outcome


@pytest.mark.ci
def test_mlflow_has_the_epochs_the_figures_the_settings_and_the_report(run, tmp_path):
    client, found, outcome = told(tmp_path, run)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "first")
    gaps = [one.value for one in client.get_metric_history(found.info.run_id, "select/gap")]
    assert gaps == gaps_of(outcome)
    for side in ("before", "after"):
        expected = getattr(outcome, side).gaps["group"]["equalized_odds_difference"]
        assert found.data.metrics[f"{side}/group/equalized_odds_difference"] == pytest.approx(expected)
    assert found.data.params["method"] == "head"
    assert json.loads(found.data.params["epochs"]) == [0, 2]
    names = {one.path for one in client.list_artifacts(found.info.run_id)}
    assert names == {"report.html", "report.json", "report.md"}


def test_tensorboard_has_the_epochs_and_the_files_beside_them(run, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with log_to(f"tensorboard:{tmp_path}") as log:
        outcome = run(log)
    events = EventAccumulator(str(tmp_path)).Reload()
    gaps = [one.value for one in events.Scalars("select/gap")]
    assert gaps == pytest.approx(gaps_of(outcome))
    assert "config/text_summary" in events.Tags()["tensors"]
    assert {path.name for path in tmp_path.iterdir()} > {"report.html", "report.json", "report.md"}


@pytest.mark.ci
def test_wandb_keeps_the_run_and_its_files_in_the_folder_for_a_later_sync(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the wandb extra")
    for name in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "own"))
    with log_to(f"wandb:{tmp_path}") as log:
        outcome = run(log)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert {path.name for path in (folder / "files").iterdir()} >= {"report.html", "report.json", "report.md"}
    (store,) = folder.glob("*.wandb")
    # Its log of records has no reader of its own; they are not compressed, and each step is there more than once.
    # Another process writes it, which may be a little behind.
    for _ in range(100):
        said = re.findall(rb"select/gap\x82\x01.([-+.e0-9]+)", store.read_bytes())
        steps = [float(value) for value, _ in itertools.groupby(said)]
        if len(steps) == len(gaps_of(outcome)):
            break
        time.sleep(0.1)
    assert steps == gaps_of(outcome)


@pytest.mark.ci
def test_a_run_that_fails_is_marked_so(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs the mlflow extra")
    with pytest.raises(ZeroDivisionError), log_to(f"mlflow:{tmp_path}"):
        1 / 0  # noqa: B018
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("bmft").experiment_id])
    assert found.info.status == "FAILED"


class Recorder:
    """A tracker that keeps what it is told, and fails when told to."""

    errors = (KeyError,)

    def __init__(self, failing=False):
        self.said, self.failing = [], failing

    def config(self, values):
        self.said.append(("config", values))

    def figures(self, values, step):
        if self.failing:
            raise KeyError("gone")
        self.said.append(("figures", values))

    def file(self, path):
        self.said.append(("file", path.name, path.read_bytes()))

    def close(self, failed):
        self.said.append(("close", failed))


def test_a_tracker_that_goes_away_is_a_remark_once_and_the_run_goes_on(run, caplog):
    tracker = Recorder(failing=True)
    with caplog.at_level(logging.WARNING, "bmft"), Log(tracker, "mlflow") as log:
        outcome = run(log)
    assert len(outcome.report.history) > 1
    assert [one.getMessage() for one in caplog.records] == ["mlflow is told no more of this run: 'gone'"]
    assert tracker.said == []


def test_pictures_of_cases_stay_here(run):
    from dataclasses import replace

    from bmft.inference import Explanation
    from bmft.inference.pixels import ChangedCase

    tracker, report = Recorder(), run(Log(Recorder(), "mlflow")).report
    case = ChangedCase(0, 77123, "group", "0", 0, 1, "1", 1, 0.2, 0.8)
    picture = Explanation(case, b"\x89PNG picture")
    Log(tracker, "mlflow").report(replace(report, extra={"pixels": [picture]}))
    files = [content for kind, *_, content in tracker.said if kind == "file"]
    assert len(files) == 3
    assert not any(b"77123" in content or b"data:image/png" in content for content in files)


def test_figures_that_are_not_known_are_left_out_and_names_are_those_that_trackers_take():
    tracker = Recorder()
    Log(tracker, "mlflow").figures({"age=<40/roc_auc": float("nan"), "age=<40/n": 3, "age=>40/n": 4, "x": None})
    assert tracker.said == [("figures", {"age below 40/n": 3.0, "age above 40/n": 4.0})]
    assert len(_named({"a(": 1, "a)": 2, "a]": 3})) == 3


def test_an_unknown_tracker_names_the_nearest_and_a_colon_needs_a_folder():
    with pytest.raises(ConfigError, match="did you mean 'mlflow'"):
        log_to("mlfow")
    with pytest.raises(ConfigError, match="expected a folder after the colon"):
        log_to("mlflow:")


def test_a_library_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bmft\[wandb\]'"):
        log_to("wandb")


def test_a_place_that_cannot_be_written_is_said_before_any_work(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackerError, match="tensorboard cannot be told of this run"):
        log_to(f"tensorboard:{tmp_path / 'file'}")
