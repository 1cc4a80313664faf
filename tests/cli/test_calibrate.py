"""`bmft debias --calibrate`, and what later commands know of it."""

import json
import shutil

import pytest
import torch

import bmft as library

FAST = ["--epochs", "2", "--keep", "last", "--calibrate"]


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """A folder with ``fair.pt``, its patch, and the report of a run with --calibrate."""
    from bmft_cli.main import main

    folder = tmp_path_factory.mktemp("calibrated")
    data = ["--data", str(study / "isic.csv"), "--label", "malignant", "--sensitive", "sex", "--image-size", "32"]
    data += ["--split-column", "split", "--cluster", "patient_id", "--quiet"]
    out = ["--out", str(folder / "fair.pt"), "--report", str(folder / "report")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bmft.methods.losses.ENOUGH", 1)
        assert main(["debias", str(study / "model.pt"), *data, *FAST, *out]) == 0
    return folder


@pytest.fixture
def fair(made, tmp_path):
    """The checkpoint and its patch in a folder of their own; and where it decides."""
    for name in ("fair.pt", "fair.patch.safetensors"):
        shutil.copy(made / name, tmp_path / name)
    return tmp_path / "fair.pt", json.loads((made / "report/report.json").read_text())["calibration"]["threshold"]


def audited(bmft, checkpoint, data_options, *args):
    assert bmft("audit", checkpoint, *data_options, *args, "--json", "audit.json") == 0
    with open("audit.json") as file:
        return json.load(file)


def test_every_output_names_the_threshold(made, bmft, capsys):
    report = json.loads((made / "report/report.json").read_text())
    cut = report["calibration"]["threshold"]
    assert report["after"]["threshold"] == cut != report["before"]["threshold"]
    for name in ("report.md", "report.html"):
        page = (made / "report" / name).read_text()
        assert f"THRESHOLD {cut:g}" in page
        assert "Calibration error, sex = female" in page
    assert f"bmft-threshold: {cut:g}" in (made / "report/report.md").read_text().split("---")[1]
    assert bmft("patch", "show", made / "fair.patch.safetensors") == 0
    assert f"threshold: {cut:g}" in capsys.readouterr().out


@pytest.mark.ci
def test_the_terminal_shows_calibration_per_group_and_the_threshold(bmft, study, data_options, capsys):
    assert bmft("debias", study / "model.pt", *data_options, *FAST) == 0
    shown = capsys.readouterr().out
    after = shown.partition("calibration error")[2].splitlines()
    assert after[1].startswith("sex = female")
    assert after[2].startswith("sex = male")
    assert "THRESHOLD 0." in shown


@pytest.mark.ci
def test_without_a_split_column_it_is_fitted_to_what_the_folds_say(bmft, study, capsys):
    data = ["--data", study / "isic.csv", "--label", "malignant", "--sensitive", "sex", "--image-size", "32"]
    assert bmft("debias", study / "model.pt", *data, *FAST, "--folds", 2, "--report", "r") == 0
    with open("r/report.json") as file:
        report = json.load(file)
    assert report["evaluated_on"] == "out of fold"
    assert report["calibration"]["rows"] == report["after"]["n"]
    assert report["after"]["threshold"] == report["calibration"]["threshold"]
    assert "THRESHOLD 0." in capsys.readouterr().out


def test_an_audit_takes_the_threshold_from_the_patch_beside_the_checkpoint_and_says_so(
    fair, made, bmft, data_options, capsys
):
    path, cut = fair
    found = audited(bmft, path, data_options)
    after = json.loads((made / "report/report.json").read_text())["after"]
    assert found["threshold"] == cut
    assert found["by_group"] == after["by_group"]
    assert found["assumed"]["threshold"][0]["from"] == "fair.patch.safetensors beside the checkpoint"
    assert f"threshold: {cut:g}, where the calibrated model decides" in capsys.readouterr().err


def test_another_threshold_can_be_asked_for_with_a_warning(fair, bmft, data_options, capsys):
    path, cut = fair
    assert audited(bmft, path, data_options, "--threshold", 0.5)["threshold"] == 0.5
    assert f"decides at {cut:g}, and differently at 0.5, which --threshold says" in capsys.readouterr().err


def test_a_patch_of_other_weights_is_not_believed_and_that_is_said(fair, bmft, study, data_options, capsys):
    path, cut = fair
    shutil.copy(study / "model.pt", path)
    assert audited(bmft, path, data_options)["threshold"] == 0.5
    assert f"fair.patch.safetensors beside the checkpoint says {cut:g}, of other weights" in capsys.readouterr().err


def test_a_loaded_checkpoint_is_measured_where_it_decides(fair):
    path, cut = fair
    x, labels, groups = torch.randn(20, 3, 32, 32), torch.arange(20) % 2, torch.arange(20) // 2 % 2
    data = library.from_arrays(x, labels, groups)
    assert library.audit(library.load_checkpoint(path), data, intervals=False).threshold == cut


def test_the_original_comes_back_bit_for_bit(fair, bmft, study):
    assert bmft("patch", "revert", fair[0], fair[0].with_name("fair.patch.safetensors"), "--out", "again.pt") == 0
    old, new = (torch.load(path, weights_only=True) for path in (study / "model.pt", "again.pt"))
    assert all(torch.equal(old[name], value) for name, value in new.items())


def test_a_head_that_is_not_linear_is_a_usage_error_that_names_the_option(bmft, data_options, tmp_path, capsys):
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(num_classes=1).state_dict(), tmp_path / "squeeze.pt")
    where = ["--arch", "torchvision:squeezenet1_1", "--set", "reset=keep"]
    assert bmft("debias", tmp_path / "squeeze.pt", *data_options, *FAST, *where) == 2
    said = capsys.readouterr().err
    assert "--calibrate folds a temperature and a shift into a head of one linear layer" in said
    assert "is a Conv2d: leave --calibrate out" in said
