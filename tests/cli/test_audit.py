import json
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

import bmft as library
from bmft.auditing import audit_predictions, read_predictions


@pytest.fixture
def audit(bmft, study, data_options):
    return lambda *args: bmft("audit", study / "model.pt", *data_options, *args)


def test_json_on_standard_output_is_all_there_is_on_it(audit, capsys):
    assert audit("--json", "-") == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report["schema"] == 1
    assert report["n"] == 240
    assert "equalized odds difference" in shown.err


def test_the_test_split_is_measured_where_there_is_a_split_column(audit, bmft, study, tmp_path):
    assert audit("--json", "a.json") == 0
    data = ["--data", study / "isic.csv", "--label", "malignant", "--sensitive", "sex", "--image-size", 32]
    assert bmft("audit", study / "model.pt", *data, "--json", "b.json") == 0
    assert [json.loads((tmp_path / f).read_text())["n"] for f in ("a.json", "b.json")] == [240, 480]


def test_the_figures_are_those_of_the_library(audit, study, tmp_path):
    assert audit("--json", "a.json") == 0
    data = library.load_manifest(
        study / "isic.csv", target="malignant", sensitive="sex", split_column="split", split="test", image_size=32
    )
    predictions = library.predict(library.load_checkpoint(study / "model.pt"), data)
    report = json.loads((tmp_path / "a.json").read_text())
    auc = roc_auc_score(data.targets.numpy(), predictions.scores[:, 0])
    assert math.isclose(report["overall"]["roc_auc"], auc, abs_tol=1e-6)
    female = data.groups[:, 0] == 0
    assert report["by_group"]["sex"]["female"]["n"] == int(female.sum())
    assert report["unknown"] == {"sex": 1}


def test_a_report_can_be_written(audit, tmp_path, capsys):
    assert audit("--report", "r") == 0
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"report.html", "report.json", "report.md"}
    assert capsys.readouterr().out.splitlines()[-1] == "r/report.html"


def test_several_attributes_and_intersections_have_a_table_each(audit, capsys):
    assert audit("--sensitive", "age:40,60", "--sensitive", "sex*age:60") == 0
    shown = capsys.readouterr().out
    assert "<40" in shown
    assert "40-60" in shown
    assert "female*60+" in shown


def test_no_test_rows_is_an_error_that_lists_the_splits(audit, capsys):
    assert audit("--test", "holdout") == 4
    error = capsys.readouterr().err
    assert all(name in error for name in ("'holdout'", "fit", "select", "test"))


def test_unreadable_images_fail_with_their_rows_or_are_counted(bmft, study, tmp_path, capsys):
    import shutil

    shutil.copytree(study, tmp_path / "copy")
    (tmp_path / "copy" / "img" / "test003.png").write_bytes(b"not an image")
    options = "--data copy/isic.csv --label malignant --sensitive sex --split-column split --image-size 32"
    data = options.split()
    assert bmft("audit", "copy/model.pt", *data) == 4
    error = capsys.readouterr().err
    assert "test003.png" in error
    assert "row 243" in error
    assert bmft("audit", "copy/model.pt", *data, "--on-bad-image", "skip", "--json", "a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text())["n"] == 239


@pytest.fixture
def predictions(tmp_path):
    """A table of predictions; the training rows are the other way round."""
    path = tmp_path / "p.csv"
    lines = ["y_true,y_score,sex,patient,part"]
    for i in range(120):
        label, sex = i % 2, "fm"[i // 2 % 2]
        lines.append(f"{label},{0.2 + 0.6 * label - 0.1 * (sex == 'm') + 0.001 * i:.4f},{sex},{i // 4},test")
        lines.append(f"{1 - label},{0.2 + 0.6 * label:.4f},{sex},{i // 4},train")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_predictions_are_audited_as_the_library_audits_them(bmft, predictions, tmp_path, capsys):
    columns = ["--cluster", "patient", "--split-column", "part", "--threshold", 0.75]
    written = ["--json", "a.json", "--report", "r"]
    assert bmft("audit", "--predictions", "p.csv", "--sensitive", "sex", *columns, *written) == 0
    read = read_predictions(predictions, sensitive="sex", cluster="patient", split_column="part", split="test")
    expected = audit_predictions(read, threshold=0.75)
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(json.dumps(expected.to_dict()))
    assert (expected.n, expected.clusters) == (120, 30)
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"report.html", "report.json", "report.md"}
    assert "'test' split of p.csv: n = 120" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of CHECKPOINT and --predictions"),
        (["model.pt", "--predictions", "p.csv"], "one of CHECKPOINT and --predictions"),
        (["--predictions", "p.csv", "--data", "d.csv", "--image-size", "8"], "--data, --image-size: goes with"),
        (["--predictions", "p.csv", "--threshold-from", "select"], "--threshold-from needs a CHECKPOINT"),
        (["model.pt"], "Missing option '--data'"),
    ],
)
def test_a_model_and_predictions_are_not_mixed(bmft, predictions, capsys, arguments, words):
    assert bmft("audit", *arguments, "--sensitive", "sex") == 2
    assert words in capsys.readouterr().err


def test_a_folders_settings_for_other_commands_do_not_stand_in_the_way_of_predictions(bmft, predictions, tmp_path):
    (tmp_path / "bmft.toml").write_text('data = "isic.csv"\nlabel = "malignant"\n')
    assert bmft("audit", "--predictions", "p.csv", "--sensitive", "sex") == 0


def test_quiet_prints_the_result_only(audit, capsys):
    assert audit("--quiet") == 0
    shown = capsys.readouterr()
    assert "ROC AUC" in shown.out
    assert shown.err == ""


def test_the_set_of_weights_that_is_measured_is_said_and_can_be_picked(bmft, study, tmp_path, data_options, capsys):
    weights = torch.load(study / "model.pt", weights_only=True)
    average = {**weights, "fc.bias": weights["fc.bias"] + 9}
    torch.save({"state_dict": weights, "state_dict_ema": average}, tmp_path / "m.pt")
    rates = []
    for options in ((), ("--entry", "state_dict")):
        assert bmft("audit", "m.pt", *data_options, *options, "--json", "audit.json") == 0
        found = json.loads((tmp_path / "audit.json").read_text())
        rates.append(found["overall"]["selection_rate"])
        said = capsys.readouterr().err
        assert ("weights: state_dict_ema, beside state_dict" in said) == (not options)
        assert ("weights" in found["assumed"]) == (not options)
    assert rates[0] == 1 > rates[1]


@pytest.mark.parametrize("command", ["audit", "gate"])
def test_a_model_that_decides_the_same_for_everybody_is_told_of_other_thresholds(
    bmft, study, data_options, tmp_path, command, capsys
):
    state = torch.load(study / "model.pt")
    state["fc.bias"] -= 50
    torch.save(state, tmp_path / "never.pt")
    (tmp_path / "p.toml").write_text('check = [{metric = "roc_auc", sensitive = ["sex"], max_difference = 0.9}]')
    more = ["--policy", "p.toml"] if command == "gate" else []
    assert bmft(command, "never.pt", *data_options, *more) in (0, 3)
    said = capsys.readouterr().err
    assert "constant predictor at threshold 0.5: another one (--threshold, --threshold-from select)" in said
