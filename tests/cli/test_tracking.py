import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries say of each other


@pytest.fixture
def events():
    """What was told, by TensorBoard's own reader."""
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return lambda folder: EventAccumulator(str(folder)).Reload()


def test_a_debiasing_tells_epochs_figures_report_and_checkpoint(bmft, study, data_options, tmp_path, events):
    run = ["--epochs", "2", "--keep", "last", "--report", "report", "--log", "tensorboard:told"]
    assert bmft("debias", study / "model.pt", *data_options, *run) == 0
    found = events(tmp_path / "told")
    assert len(found.Scalars("select/gap")) > 1
    tags = found.Tags()["scalars"]
    assert {"before/sex/equalized_odds_difference", "after/sex female/roc_auc", "accepted"} <= set(tags)
    names = {path.name for path in (tmp_path / "told").iterdir()}
    assert {"report.json", "report.md", "report.html", "fair.pt", "fair.patch.safetensors"} <= names
    # The report that stays has pictures of cases; what is told has not.
    assert "What changed in the pixels" in (tmp_path / "report" / "report.html").read_text()
    assert "What changed in the pixels" not in (tmp_path / "told" / "report.html").read_text()


def test_an_audit_tells_its_figures(bmft, study, data_options, tmp_path, events):
    assert bmft("audit", study / "model.pt", *data_options, "--log", "tensorboard:told") == 0
    assert "sex/equalized_odds_difference" in events(tmp_path / "told").Tags()["scalars"]


@pytest.mark.ci
def test_a_comparison_and_a_search_tell_theirs(bmft, study, data_options, tmp_path, events):
    once = ["--epochs", "1,1", "--seeds", "1", "--tuning", "1", "--jobs", "1", "--methods", "head"]
    assert bmft("compare", study / "model.pt", *data_options, *once, "--log", "tensorboard:compared") == 0
    assert "head/roc_auc" in events(tmp_path / "compared").Tags()["scalars"]
    short = ["--trials", "1", "--epochs", "1", "--log", "tensorboard:searched"]
    assert bmft("search", study / "model.pt", *data_options, *short) in (0, 1)
    assert {"search/best", "after/overall/roc_auc"} <= set(events(tmp_path / "searched").Tags()["scalars"])


@pytest.mark.parametrize(
    ("where", "code", "line"),
    [
        ("mlfow", 2, "unknown tracker 'mlfow': did you mean 'mlflow'?"),
        ("tensorboard:", 2, "expected a folder after the colon"),
        ("tensorboard:taken", 4, "tensorboard cannot be told of this run"),
    ],
)
def test_a_tracker_that_cannot_be_told_is_one_line_before_any_work(bmft, tmp_path, capsys, where, code, line):
    if where.endswith("taken"):
        pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    (tmp_path / "taken").write_text("")
    # There is no such checkpoint: what is said is of the tracker.
    assert bmft("audit", "none.pt", "--data", "none.csv", "--label", "y", "--sensitive", "s", "--log", where) == code
    error = capsys.readouterr().err
    assert line in error
    assert "none.pt" not in error
