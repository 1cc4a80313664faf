import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bmft.training import Selection
from tests.tiers import in_ci

FAST = ["--epochs", "2", "--keep", "last"]
LOOSE = ["--max-auc-drop", "0.3", "--max-group-auc-drop", "0.5", "--max-calibration-rise", "1"]


@pytest.fixture
def debias(bmft, study, data_options):
    return lambda *args, checkpoint=study / "model.pt": bmft("debias", checkpoint, *data_options, *args)


def state(path):
    return torch.load(path, weights_only=True)


def test_the_main_job_narrows_the_gap_leaves_its_files_and_prints_both_sides(whole, debias, study, tmp_path, capsys):
    assert debias("--seed", 0, "--report", "report") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"fair.pt", "fair.patch.safetensors", "report"}
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written == {"report.html", "report.json", "report.md", "mask.safetensors"}
    shown = capsys.readouterr().out
    assert "measured on the test rows (n = 240)" in shown
    assert [line.split()[0] for line in shown.splitlines()[2:8]] == ["female", "after", "male", "after", "gap", "after"]
    assert shown.splitlines()[-1] == "report/report.html"
    before, after = state(study / "model.pt"), state(tmp_path / "fair.pt")
    assert list(before) == list(after)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # The gap on rows that took no part is smaller afterwards.
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    gap = [report[when]["gaps"]["sex"]["equalized_odds_difference"] for when in ("before", "after")]
    assert gap[1] < 0.6 * gap[0]
    assert report["after"]["n"] == 240
    assert report["before"]["unknown"] == {"sex": 1}
    assert set(report["hashes"]) == {"checkpoint", "fit", "select", "test"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(debias, tmp_path):
    for name, seed in (("a.pt", 7), ("b.pt", 7), ("c.pt", 8)):
        assert debias("--epochs", "1", "--keep", "last", "--seed", seed, "--out", name) == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.pt", "b.pt", "c.pt"))
    assert a == b
    assert a != c


def test_nothing_that_meets_the_conditions_is_exit_1_with_a_report_and_no_checkpoint(debias, tmp_path, capsys):
    # No epoch can raise the AUC it may not lower, when none is trained.
    assert debias("--epochs", "0", "--report", "report") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"report"}
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["accepted"] is False
    assert report["reason"] in capsys.readouterr().out


def test_a_dry_run_shows_the_layers_and_writes_nothing(debias, tmp_path, capsys):
    assert debias("--dry-run", "--fraction", "0.1", "--freeze", "conv1.*") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[:-1]}
    assert rows["conv1.0"][0] == "0"
    assert rows["fc"][2] == "100.0%"
    moved, total = (int(count.replace(",", "")) for count in rows["all"][:2])
    assert 0.05 < moved / total < 0.11
    assert list(tmp_path.iterdir()) == []


def test_weights_that_were_frozen_by_name_are_bit_identical(debias, study, tmp_path):
    assert debias(*FAST, "--freeze", "stage[23].*") == 0
    before, after = state(study / "model.pt"), state(tmp_path / "fair.pt")
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved
    assert not any(name.startswith(("stage2.", "stage3.")) for name in moved)


def test_settings_of_a_method_come_from_flags_over_the_config_file(debias, tmp_path):
    (tmp_path / "own.toml").write_text('epochs = [1, 1]\nkeep = "last"\n[settings]\nfraction = 0.3\nmomentum = 0.5\n')
    assert debias("--config", "own.toml", "--fraction", "0.2", "--set", "patience=4", "--report", "r") == 0
    config = json.loads((tmp_path / "r" / "report.json").read_text())["config"]
    assert config["epochs"] == [1, 1]
    assert config["fraction"] == 0.2
    assert config["momentum"] == 0.5
    assert config["patience"] == 4


@pytest.mark.ci
def test_the_paper_preset_is_the_published_procedure(debias, tmp_path):
    assert debias("--preset", "paper", *FAST, "--report", "r") == 0
    config = json.loads((tmp_path / "r" / "report.json").read_text())["config"]
    assert (config["fraction"], config["lr"], config["exact"]) == (0.5, [1e-4, 1e-3], False)


@pytest.mark.ci
def test_a_set_up_folder_needs_no_options(bmft, study, tmp_path, capsys):
    shutil.copy(study / "model.pt", tmp_path)
    (tmp_path / "bmft.toml").write_text(
        f'data = "{study}/isic.csv"\nlabel = "malignant"\nsensitive = ["sex"]\ncluster = "patient_id"\n'
        'split-column = "split"\nimage-size = 32\nepochs = 1\nkeep = "last"\n'
    )
    assert bmft("debias", "model.pt") == 0
    assert (tmp_path / "fair.pt").is_file()
    assert "options from bmft.toml" in capsys.readouterr().err


@pytest.fixture
def unsplit(bmft, study):
    data = ["--data", study / "isic.csv", "--label", "malignant", "--sensitive", "sex", "--cluster", "patient_id"]
    return lambda *args: bmft("debias", study / "model.pt", *data, "--image-size", 32, *args)


@pytest.mark.parametrize(
    "asked", [("--method", "head"), *in_ci((("--folds", 1),), (("--folds", 0),), (("--preset", "path"),))]
)
def test_without_folds_fit_and_select_are_cut_from_the_data(unsplit, asked, capsys):
    assert unsplit(*FAST, *asked) == 0
    shown = capsys.readouterr()
    assert "half of" in shown.err
    assert "measured on the select rows" in shown.out
    assert "rows that only looked on: the last epoch" in shown.out


@pytest.mark.ci
def test_without_a_split_column_five_folds_choose_and_every_row_teaches(unsplit, tmp_path, capsys):
    assert unsplit("--epochs", "2,1", *LOOSE, "--report", "r", "--leakage") == 0
    shown = capsys.readouterr()
    assert "splits: 5 folds of about 96 rows, each patient in one" in shown.err
    assert "no --split-column" in shown.err
    assert "measured on 480 rows of 5 folds: predictions out of fold" in shown.out
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert (report["kind"], report["evaluated_on"], report["config"]["folds"]) == ("out of fold",) * 2 + (5,)
    assert report["before"]["n"] == report["after"]["n"] == 480
    assert any("5 folds" in one["value"] for one in report["assumed"]["splits"])
    for name in ("report.html", "report.md"):
        assert "learned from every row" in (tmp_path / "r" / name).read_text()
    with safe_open(tmp_path / "fair.patch.safetensors", "pt") as file:
        assert '"folds"' in str(file.metadata())
    assert not (tmp_path / "fair.resume").exists()


def test_folds_that_are_asked_for_take_fit_and_select_together_and_leave_test(debias, tmp_path, capsys):
    assert debias(*FAST, "--folds", 2, "--report", "r") == 0
    shown = capsys.readouterr()
    assert "2 folds of about 120 rows" in shown.err
    assert "--folds, of the splits fit, select together" in shown.err
    assert "measured on the test rows (n = 240): rows that neither trained nor chose" in shown.out
    config = json.loads((tmp_path / "r" / "report.json").read_text())["config"]
    assert config["folds"] == 2


@pytest.mark.ci
def test_a_dry_run_says_where_no_layer_is_small_enough(debias, capsys):
    assert debias("--fraction", 0.0001, "--dry-run") == 0
    assert "no layer that carries the gap is as small as 0.0001" in capsys.readouterr().err


@pytest.mark.ci
def test_as_many_processes_train_folds_as_are_asked_for(unsplit, monkeypatch):
    from bmft.compute import Workers

    asked = []

    class Alone(Workers):
        def __init__(self, shared, jobs, **options):
            asked.append(jobs)
            super().__init__(shared, 1, **options)  # these tests patch this process only

    monkeypatch.setattr("bmft.methods.folds.Workers", Alone)
    assert unsplit(*FAST, "--folds", 3, "--jobs", 2) == 0
    assert unsplit(*FAST, "--folds", 2, "--jobs", 4) == 0
    assert asked == [2, 2]


@pytest.mark.ci
def test_processes_without_folds_are_remarked_on(debias, capsys):
    assert debias(*FAST, "--jobs", 3) == 0
    assert "--jobs 3 is for folds, of which there are none here" in capsys.readouterr().err


def test_folds_of_a_method_that_has_no_strengths_are_one_line(unsplit, capsys):
    assert unsplit("--folds", 3, "--method", "head") == 2
    assert "folds need candidates that their models have in common" in capsys.readouterr().err


@pytest.mark.ci
def test_a_dry_run_with_folds_shows_the_layers(unsplit, tmp_path, capsys):
    assert unsplit("--dry-run") == 0
    assert "Nothing was changed or written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ci
def test_a_split_column_without_test_rows_measures_on_select(debias, study, capsys):
    assert debias("--test", "select", "--allow-shared-rows", *FAST) == 0
    assert "rows of which fit or select may hold some" in capsys.readouterr().out
    assert debias("--test", "nowhere", *FAST) == 4
    assert "has no split 'nowhere'" in capsys.readouterr().err
    rows = pd.read_csv(study / "isic.csv", dtype=str)
    rows[rows["split"] != "test"].to_csv(study / "no_test.csv", index=False)
    assert debias(*FAST, "--data", study / "no_test.csv") == 0
    assert "measured on the select rows (n = 120): rows that only looked on" in capsys.readouterr().out


def containers(study):
    weights = state(study / "model.pt")
    return {
        "ddp.pth": {"model": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3, "lr": 0.1},
        "light.ckpt": {
            "state_dict": {f"net.{k}": v for k, v in weights.items()},
            "hyper_parameters": {"a": 1},
            "pytorch-lightning_version": "2.0",
        },
        "half.pt": {"state_dict": {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}},
    }


@pytest.mark.ci
@pytest.mark.parametrize("name", ["ddp.pth", "light.ckpt", "half.pt"])
def test_the_container_that_came_in_goes_out_and_the_patch_goes_both_ways(name, debias, bmft, study, tmp_path):
    torch.save(containers(study)[name], tmp_path / name)
    assert debias(*FAST, "--out", f"out-{name}", checkpoint=tmp_path / name) == 0
    before, after = state(tmp_path / name), state(tmp_path / f"out-{name}")
    assert list(before) == list(after)
    entry = next(key for key in ("state_dict", "model") if key in before)
    assert {k: v for k, v in before.items() if k != entry} == {k: v for k, v in after.items() if k != entry}
    assert [(k, v.dtype, v.shape) for k, v in before[entry].items()] == [
        (k, v.dtype, v.shape) for k, v in after[entry].items()
    ]
    patch = f"out-{name.split('.')[0]}.patch.safetensors"
    assert bmft("patch", "apply", tmp_path / name, patch, "--out", "applied") == 0
    assert bmft("patch", "revert", f"out-{name}", patch, "--out", "reverted") == 0
    for ours, theirs in (("applied", f"out-{name}"), ("reverted", name)):
        one, two = state(tmp_path / ours)[entry], state(tmp_path / theirs)[entry]
        assert all(torch.equal(one[key], two[key]) for key in two)


@pytest.mark.ci
def test_safetensors_stay_safetensors_with_their_metadata(debias, study, tmp_path):
    save_file(state(study / "model.pt"), tmp_path / "m.safetensors", metadata={"who": "me"})
    assert debias(*FAST, checkpoint=tmp_path / "m.safetensors") == 0
    with safe_open(tmp_path / "fair.safetensors", "pt") as file:
        assert file.metadata()["who"] == "me"
    assert load_file(tmp_path / "fair.safetensors").keys() == load_file(tmp_path / "m.safetensors").keys()


def test_the_checkpoint_that_is_read_is_never_written_over(debias, study, tmp_path, capsys):
    shutil.copy(study / "model.pt", tmp_path / "fair.pt")
    assert debias(checkpoint="fair.pt") == 2
    assert "fair.pt is the checkpoint that is read" in capsys.readouterr().err
    assert debias("--out", "no/such/folder.pt") == 2


def test_a_pickle_that_runs_code_is_refused(debias, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    assert debias(checkpoint=tmp_path / "evil.pt") == 4
    assert not (tmp_path / "pwned").exists()
    assert "--trust-pickle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--fraction", "2"], 2, "fraction is 2"),
        (["--method", "bmtf"], 2, "did you mean 'bmft'"),
        (["--objective", "equalised_odds"], 2, "did you mean 'equalized_odds'"),
        (["--objective", "nomodule:gap"], 2, "Expected package.module:name"),
        (["--set", "patienc=3"], 2, "did you mean 'patience'"),
        (["--set", "patience"], 2, "is not NAME=VALUE"),
        (["--tune", "layer9.*"], 2, "matches no parameter"),
        (["--label", "dx"], 4, "no label column 'dx'"),
        (["--sensitive", "sexx"], 4, "Did you mean 'sex'"),
        (["--data", "none.csv"], 4, "none.csv"),
        (["--arch", "resnet81"], 4, "resnet18"),
        (["--threshold", "0.5", "--threshold-from", "select"], 2, "give one of them"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_code(debias, args, code, message, capsys):
    assert debias(*args) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.ci
def test_an_objective_of_ones_own_is_named_by_its_module(debias, tmp_path):
    (tmp_path / "own_gap.py").write_text(
        "from bmft.fairness import equal_opportunity_gap\n\n\n"
        "def gap(scores, targets, groups):\n    return equal_opportunity_gap(scores, targets, groups)\n"
    )
    assert debias("--objective", "own_gap:gap", *FAST, "--report", "r") == 0
    config = json.loads((tmp_path / "r" / "report.json").read_text())["config"]
    assert config["objective"] == "own_gap:gap"


@pytest.mark.ci
def test_a_threshold_picked_on_select_is_the_reports(debias, tmp_path):
    assert debias(*FAST, "--threshold-from", "select", "--report", "r") == 0
    assert json.loads((tmp_path / "r" / "report.json").read_text())["config"]["threshold"] != 0.5


@pytest.mark.ci
def test_an_interrupt_leaves_no_file_behind_but_what_resume_goes_on_from(debias, tmp_path, monkeypatch):
    from bmft.training import Selection

    monkeypatch.setattr(Selection, "consider", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    options = ["--epochs", "2", "--set", "strengths=[1.0]", *LOOSE]
    assert debias(*options) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["fair.resume"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert debias(*options, "--resume") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"fair.pt", "fair.patch.safetensors"}


@pytest.mark.ci
def test_other_sites_and_the_leakage_are_in_the_table_and_the_reports(debias, study, tmp_path, capsys):
    site = tmp_path / "clinic.csv"
    rows = (study / "isic.csv").read_text().splitlines()
    site.write_text("\n".join([rows[0], *(f"{study}/{row}" for row in rows[1:101])]) + "\n")
    assert (
        debias("--keep", "last", "--eval", "clinic=clinic.csv", "--leakage", "--report", "r", "--method", "threshold")
        == 0
    )
    shown = capsys.readouterr().out
    assert "measured on clinic (n = 100)" in shown
    assert "leakage of sex, a linear probe's ROC AUC: " in shown
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert set(report["evaluations"]["clinic"]) == {"before", "after"}
    assert report["evaluations"]["clinic"]["after"]["n"] == 100
    # Only the head's bias moved, so the features are the same.
    assert report["leakage"]["sex"]["before"] == report["leakage"]["sex"]["after"]
    for name in ("report.html", "report.md"):
        assert "clinic" in (tmp_path / "r" / name).read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--eval", "clinic"], "NAME=CSV"), (["--eval", "a=x.csv", "--eval", "a=y.csv"], "given twice")],
)
def test_a_site_that_is_not_one_is_a_usage_error(debias, given, message, capsys):
    assert debias(*given) == 2
    assert message in capsys.readouterr().err


def test_a_site_that_labels_otherwise_is_refused_before_anything_is_trained(debias, study, tmp_path, capsys):
    rows = (study / "isic.csv").read_text().splitlines()
    (tmp_path / "clinic.csv").write_text(
        "\n".join(
            [
                rows[0],
                f"{study}/{rows[1]}".replace(",0,", ",no,").replace(",1,", ",no,"),
                f"{study}/{rows[2]}".replace(",0,", ",yes,").replace(",1,", ",yes,"),
            ]
        )
        + "\n"
    )
    assert debias("--eval", "clinic=clinic.csv") == 4
    assert "clinic.csv" in capsys.readouterr().err


@pytest.mark.ci
def test_batch_size_auto_gives_the_same_bytes_where_memory_suffices(debias, tmp_path):
    assert debias(*FAST, "--out", "auto.pt", "--batch-size", "auto") == 0
    assert debias(*FAST, "--out", "plain.pt") == 0
    assert (tmp_path / "auto.pt").read_bytes() == (tmp_path / "plain.pt").read_bytes()


@pytest.mark.parametrize("size", ["0", "some"])
def test_a_batch_size_that_is_none_is_a_usage_error(debias, size, capsys):
    assert debias("--batch-size", size) == 2
    assert "--batch-size" in capsys.readouterr().err


def interrupt_after(monkeypatch, looks):
    """Selection stops the run at this look."""
    original, left = Selection.consider, [looks]

    def consider(self, *args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Selection, "consider", consider)


@pytest.mark.parametrize("looks", [6, *in_ci(1)])
def test_resume_goes_on_to_the_same_bytes_and_leaves_nothing_behind(debias, tmp_path, monkeypatch, looks):
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    options = ["--preset", "path", "--epochs", "3,1", "--keep", "last", "--set", "path=[1.0]"]
    assert debias(*options, "--out", "whole/fair.pt", "--report", "whole/report") == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, looks)
        assert debias(*options, "--out", "again/fair.pt", "--report", "again/report") == 130
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["fair.resume"]
    assert debias(*options, "--out", "again/fair.pt", "--report", "again/report", "--resume") == 0
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"fair.pt", "fair.patch.safetensors", "report"}
    for file in ("fair.pt", "fair.patch.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    reports = [json.loads((tmp_path / name / "report/report.json").read_text()) for name in ("whole", "again")]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]


@pytest.mark.ci
def test_resume_with_other_options_is_refused_and_loses_nothing(debias, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        assert debias(*FAST) == 130
    before = {path.name: path.read_bytes() for path in (tmp_path / "fair.resume").iterdir()}
    assert debias(*FAST, "--resume", "--seed", 5) == 2
    assert "another seed (0, now 5)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "fair.resume").iterdir()} == before


@pytest.mark.ci
def test_resume_with_nothing_to_resume_says_so_and_runs(debias, capsys):
    assert debias(*FAST, "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().err
