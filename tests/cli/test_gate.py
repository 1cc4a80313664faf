"""`bmft gate`: every exit code from the command line, and what it leaves behind."""

import csv
import json
import shutil
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

from bmft.gate import parse_policy


def policy(metric="false_positive_rate", bound="max_difference = 0.9", gate="", sensitive="sex", more=""):
    return f'[gate]\n{gate}\n[[check]]\nmetric = "{metric}"\nsensitive = ["{sensitive}"]\n{bound}\n{more}'


@pytest.fixture
def gate(bmft, study, tmp_path):
    """Gate the study's model by a policy's text; the attributes are the policy's."""
    options = [
        "--data",
        study / "isic.csv",
        "--label",
        "malignant",
        "--cluster",
        "patient_id",
        "--split-column",
        "split",
        "--image-size",
        32,
        "--policy",
        "p.toml",
    ]

    def run(text, *args, checkpoint=study / "model.pt"):
        (tmp_path / "p.toml").write_text(text)
        return bmft("gate", checkpoint, *options, *args)

    return run


def table(path, rows=600, seed=0, drop=0.0):
    """Predictions of two groups; `drop` lowers the second group's scores."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["y_true", "y_score", "sex", "patient"])
        for i in range(rows):
            label, sex = int(rng.random() < 0.5), int(rng.integers(2))
            score = float(np.clip(0.5 + 0.3 * (2 * label - 1) + rng.normal(0, 0.15) - drop * sex, 0, 1))
            out.writerow([label, score, ("female", "male")[sex], i // 2])
    return path


def test_a_wide_tolerance_passes(gate, capsys):
    assert gate(policy()) == 0
    assert capsys.readouterr().out.startswith("PASS: 1 passed")


def test_a_proven_violation_fails(gate, capsys):
    # The study's model takes the tint of the group for the label.
    assert gate(policy(bound="max_difference = 0.01")) == 1
    assert "beyond max_difference 0.01" in capsys.readouterr().out


@pytest.mark.parametrize(("setting", "code"), [("fail", 3), ("warn", 0), ("pass", 0)])
def test_too_few_to_tell_is_a_code_of_its_own(gate, tmp_path, setting, code):
    text = policy(gate=f'on_inconclusive = "{setting}"\nmin_positives = 200')
    assert gate(text, "--json", "g.json") == code
    assert json.loads((tmp_path / "g.json").read_text())["decision"] == "inconclusive"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (policy(metric="true_positive_rat"), "Did you mean 'true_positive_rate'"),
        (policy(gate='cluster = "lesion"'), "--cluster is patient_id, but the policy's cluster is lesion"),
        (policy(more='[[non_inferiority]]\nmetric = "roc_auc"\nmargin = 0.1'), "--baseline"),
    ],
)
def test_a_wrong_policy_is_a_usage_error(gate, capsys, text, words):
    assert gate(text) == 2
    assert words in capsys.readouterr().err


def test_missing_files_are_no_decision(gate, bmft, study, capsys):
    assert gate(policy(), checkpoint="none.pt") == 4
    assert bmft("gate", study / "model.pt", "--data", "x.csv", "--label", "y", "--policy", "none.toml") == 2
    assert "none.toml" in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["model.pt", "--predictions", "p.csv"]])
def test_there_is_one_thing_to_gate(bmft, capsys, args):
    assert bmft("gate", *args) == 2
    assert "one of CHECKPOINT and --predictions" in capsys.readouterr().err


def test_the_outputs_agree(gate, tmp_path):
    rules = policy(bound="max_difference = 0.01")
    assert gate(rules, "--json", "g.json", "--junit", "g.xml", "--summary", "g.md") == 1
    content = json.loads((tmp_path / "g.json").read_text())
    assert (content["schema"], content["decision"]) == (1, "fail")
    assert {"policy", "checkpoint", "data", "content"} <= set(content["hashes"])
    assert "python" in content["versions"]
    assert content["hashes"]["policy"] == parse_policy(rules).hash
    assert ET.parse(tmp_path / "g.xml").getroot().get("failures") == "1"
    assert "FAIL: 1 failed" in (tmp_path / "g.md").read_text()


def test_json_on_standard_output_is_all_there_is_on_it(gate, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert gate(policy(bound="max_difference = 0.01"), "--json", "-") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["decision"] == "fail"
    assert "::error title=fairness gate fail" in shown.err


def test_github_is_told_only_on_github_and_its_summary_is_added_to(gate, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert gate(policy(bound="max_difference = 0.01")) == 1
    assert "::error" not in capsys.readouterr().out
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert gate(policy(bound="max_difference = 0.01"), "--summary", summary) == 1
    assert "::error" in capsys.readouterr().out
    assert summary.read_text().startswith("before\n## Fairness gate")


def test_a_checkpoint_is_no_baseline_of_itself(gate, study, tmp_path, capsys):
    rules = policy(more='[[non_inferiority]]\nmetric = "roc_auc"\nmargin = 0.1')
    assert gate(rules, "--baseline", study / "model.pt") == 2
    assert "the checkpoint itself" in capsys.readouterr().err
    # The same weights in another file are caught by their answers.
    state = torch.load(study / "model.pt", weights_only=True)
    torch.save({"state_dict": state}, tmp_path / "again.pt")
    assert gate(rules, "--baseline", "again.pt", "--json", "g.json") == 3
    assert "compared with itself" in (tmp_path / "g.json").read_text()


def test_a_gate_on_the_set_that_was_debiased_on_is_refused(bmft, gate, study, data_options, tmp_path, capsys):
    shutil.copy(study / "model.pt", tmp_path / "model.pt")
    how = ["--method", "head", "--epochs", 1, "--keep", "last", "--out", "fair.pt"]
    assert bmft("debias", "model.pt", *data_options, *how) == 0
    assert gate(policy(), "--test", "fit", checkpoint="fair.pt") == 2
    assert "the set this model was debiased on" in capsys.readouterr().err
    assert gate(policy(), checkpoint="fair.pt") == 0


@pytest.mark.ci
def test_a_debiased_checkpoint_is_gated_against_the_original(bmft, gate, study, data_options, tmp_path):
    how = ["--method", "head", "--epochs", 1, "--keep", "last", "--out", "fair.pt"]
    assert bmft("debias", study / "model.pt", *data_options, *how) == 0
    rules = policy(more='[[non_inferiority]]\nmetric = "roc_auc"\nmargin = 0.5\nper_group = true')
    assert gate(rules, "--baseline", study / "model.pt", "--json", "g.json", checkpoint="fair.pt") == 0
    ids = [one["id"] for one in json.loads((tmp_path / "g.json").read_text())["checks"]]
    assert ids == ["false_positive_rate/sex", "roc_auc/baseline", "roc_auc/baseline/sex"]


def test_predictions_of_any_model_can_be_gated(bmft, tmp_path):
    table(tmp_path / "new.csv")
    table(tmp_path / "old.csv", drop=0.4)
    more = '[[non_inferiority]]\nmetric = "accuracy"\nmargin = 0.05\nper_group = true'
    (tmp_path / "p.toml").write_text(policy("true_positive_rate", "max_difference = 0.2", more=more))
    own = ["--predictions", "new.csv", "--baseline", "old.csv", "--cluster", "patient", "--policy", "p.toml"]
    assert bmft("gate", *own) == 0
    swapped = ["--predictions", "old.csv", "--baseline", "new.csv", "--policy", "p.toml"]
    assert bmft("gate", *swapped) == 1


@pytest.mark.parametrize(("score", "words"), [("1.2", "row 0: '1.2'"), ("high", "row 0: 'high'"), ("", "row 0")])
def test_scores_that_are_no_probabilities_are_listed(bmft, tmp_path, capsys, score, words):
    (tmp_path / "p.csv").write_text(f"y_true,y_score,sex\n1,{score},f\n0,0.2,m\n")
    (tmp_path / "p.toml").write_text(policy())
    assert bmft("gate", "--predictions", "p.csv", "--policy", "p.toml") == 4
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_predictions_may_have_several_classes_or_labels(bmft, tmp_path, kind):
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 400)
    truth = ["y_true"] if kind == "classes" else ["y_true_mel", "y_true_nv"]
    with (tmp_path / "p.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*truth, "y_score_mel", "y_score_nv", "sex"])
        for value, sex in zip(right, rng.integers(0, 2, 400), strict=True):
            labels = [("mel", "nv")[value]] if kind == "classes" else [1 - value, value]
            out.writerow([*labels, 0.9 - 0.8 * value, 0.1 + 0.8 * value, "fm"[sex]])
    (tmp_path / "p.toml").write_text(policy("roc_auc", "min_group = 0.8"))
    assert bmft("gate", "--predictions", "p.csv", "--policy", "p.toml", "--json", "g.json") == 0
    ids = [one["id"] for one in json.loads((tmp_path / "g.json").read_text())["checks"]]
    assert ids == ["roc_auc/sex/mel", "roc_auc/sex/nv"]


def test_a_policy_to_start_from_is_written_once_and_can_be_used(bmft, tmp_path, capsys):
    table(tmp_path / "p.csv")
    start = ["gate", "--predictions", "p.csv", "--sensitive", "sex", "--policy", "start.toml"]
    assert bmft(*start, "--init") == 0
    assert "# true_positive_rate/sex: largest difference" in (tmp_path / "start.toml").read_text()
    assert bmft(*start, "--init") == 2
    assert "is there already" in capsys.readouterr().err
    assert bmft(*start) in (0, 3)
