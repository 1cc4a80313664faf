"""One of a network's many outputs, as the command line names it: `--output` and `--output-is`."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.tiers import in_ci

FINDINGS = ["Atelectasis", "Pleural_Effusion", "Malignant", "", "Edema"]


def write_many(study, path, names=FINDINGS, **beside):
    """The study's model as output 2 of five, the others made of the same features."""
    state = torch.load(study / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(3)
    weight, bias = state["fc.weight"], state["fc.bias"]
    rows = torch.randn(len(FINDINGS), weight.shape[1], generator=generator) * weight.std()
    offsets = torch.randn(len(FINDINGS), generator=generator)
    rows[2], offsets[2] = weight[0], bias[0]
    state["fc.weight"], state["fc.bias"] = rows, offsets
    torch.save({"state_dict": state, **({"pathologies": names} if names else {}), **beside}, path)
    return state


@pytest.fixture
def many(study, tmp_path):
    """A checkpoint of five findings, `FINDINGS`, of which number 2 is the study's label."""
    write_many(study, tmp_path / "many.pt")
    return "many.pt"


def outputs_on(study, path, split):
    """Every output for the rows of a split, by plain torch, and the labels."""
    content = torch.load(path, weights_only=True)["state_dict"]
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=len(content["fc.bias"]))
    model.load_state_dict(content)
    table = pd.read_csv(study / "isic.csv").query("split == @split")
    images = np.stack([np.asarray(Image.open(study / name)) for name in table["path"]])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model.eval()(inputs).double(), table["malignant"].to_numpy()


def audited(bmft, *arguments):
    assert bmft("audit", *arguments, "--json", "audit.json") == 0
    return json.loads(Path("audit.json").read_text())


@pytest.mark.parametrize("name", [" malignant", *in_ci("Malignant", "2")])
def test_the_output_that_is_named_is_measured(bmft, study, many, data_options, name):
    found = audited(bmft, many, *data_options, "--output", name)
    logits, targets = outputs_on(study, many, "test")
    assert found["overall"]["roc_auc"] == pytest.approx(roc_auc_score(targets, logits[:, 2]), abs=1e-9)
    right = (torch.sigmoid(logits[:, 2]).numpy() >= 0.5) == targets
    assert found["overall"]["accuracy"] == pytest.approx(right.mean(), abs=1e-9)
    assert found["assumed"]["output"][0]["value"] == "number 2 of 5, from 0 on, Malignant"
    assert found["assumed"]["output"][0]["from"] == "the checkpoint's pathologies"


def test_one_class_of_a_softmax_is_read_against_the_others(bmft, study, many, data_options):
    found = audited(bmft, many, *data_options, "--output", "2", "--output-is", "class")
    logits, targets = outputs_on(study, many, "test")
    own = logits.softmax(1)[:, 2].numpy()
    assert found["overall"]["roc_auc"] == pytest.approx(roc_auc_score(targets, own), abs=1e-6)
    assert found["overall"]["brier_score"] == pytest.approx(np.mean((own - targets) ** 2), abs=1e-6)


def test_without_an_output_the_error_lists_them_and_says_the_option(bmft, many, data_options, capsys):
    assert bmft("audit", many, *data_options) == 4
    message = capsys.readouterr().err
    assert "--output Malignant" in message  # the label's own name
    assert "0 Atelectasis, 1 Pleural_Effusion, 2 Malignant, 3, 4 Edema" in message
    assert "--num-classes" not in message


def test_outputs_without_names_are_listed_by_their_places(bmft, study, tmp_path, data_options, capsys):
    write_many(study, tmp_path / "nameless.pt", names=None)
    assert bmft("debias", "nameless.pt", *data_options) == 4
    assert "--output NAME|INDEX): they are 0 to 4" in capsys.readouterr().err
    assert bmft("audit", "nameless.pt", *data_options, "--output", "Edema") == 2
    assert "nothing names the outputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("5", "the model has 5 outputs: 0 Atelectasis"),
        ("-1", "counted from 0"),
        ("Edemma", "Did you mean 'Edema'?"),
        ("1.5", "no output is called '1.5'"),
    ],
)
def test_an_output_that_is_not_there_is_a_usage_error(bmft, many, data_options, name, problem, capsys):
    assert bmft("audit", many, *data_options, "--output", name) == 2
    message = capsys.readouterr().err
    assert problem in message
    assert "Traceback" not in message


def test_names_of_another_number_of_outputs_do_not_name_these(bmft, study, tmp_path, data_options, capsys):
    write_many(study, tmp_path / "longer.pt", names=[*FINDINGS, "Mass"])
    assert bmft("audit", "longer.pt", *data_options, "--output", "Malignant") == 2
    assert "has 6 names, and the model has 5 outputs" in capsys.readouterr().err
    assert bmft("audit", "longer.pt", *data_options, "--output", "2") == 0


def test_a_name_that_two_outputs_have_is_refused_with_their_places(bmft, study, tmp_path, data_options, capsys):
    write_many(study, tmp_path / "twice.pt", names=["Mass", "Mass", "Malignant", "Edema", "Other"])
    assert bmft("audit", "twice.pt", *data_options, "--output", "mass") == 2
    assert "one of 0, 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("beside", "source", "kind"),
    [
        ({"id2label": dict(enumerate("abcde")), "problem_type": "multi_label_classification"}, "id2label", "own"),
        ({"hyper_parameters": {"classes": list("abcde")}}, "hyper_parameters/classes", "own"),
        *in_ci(
            (
                {"id2label": dict(enumerate("abcde")), "problem_type": "single_label_classification"},
                "id2label",
                "softmax",
            ),
            ({"class_to_idx": {name: place for place, name in enumerate("abcde")}}, "class_to_idx", "softmax"),
        ),
    ],
)
def test_the_checkpoint_says_what_the_outputs_are(bmft, study, tmp_path, data_options, beside, source, kind):
    write_many(study, tmp_path / "said.pt", names=None, **beside)
    which, how = audited(bmft, "said.pt", *data_options, "--output", "c")["assumed"]["output"]
    assert which["from"] == f"the checkpoint's {source}"
    assert kind in how["value"]
    assert how["guess"] == ("hyper_parameters" in beside)


@pytest.mark.parametrize("more", [["--multi-label"], ["--label", "age2"]])
def test_an_output_is_about_one_label(bmft, study, many, data_options, tmp_path, more, capsys):
    table = pd.read_csv(study / "isic.csv")
    table["age2"] = (table["age"] > 50).astype(int)
    table.to_csv(tmp_path / "two.csv", index=False)
    options = [*data_options, "--images", study, *more, "--output", "2"]
    options[1] = str(tmp_path / "two.csv")
    assert bmft("audit", many, *options) == 2
    assert "--output picks one of the model's outputs" in capsys.readouterr().err


def test_an_output_goes_with_a_checkpoint_only(bmft, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("y_true,y_score,sex\n0,0.1,f\n1,0.9,m\n")
    assert bmft("audit", "--predictions", "p.csv", "--sensitive", "sex", "--output", "2") == 2
    assert "--output: goes with a CHECKPOINT" in capsys.readouterr().err


def test_inspect_lists_the_outputs(bmft, many, capsys):
    assert bmft("inspect", many) == 0
    assert (
        "0 Atelectasis, 1 Pleural_Effusion, 2 Malignant, 3, 4 Edema, from the checkpoint's" in capsys.readouterr().out
    )


@pytest.mark.ci
def test_a_debiasing_keeps_every_output_and_says_how_far_the_others_moved(bmft, study, many, data_options, capsys):
    options = [*data_options, "--output", "Malignant", "--epochs", "2,2", "--keep", "last", "--report", "report"]
    assert bmft("debias", many, *options, "--out", "fair.pt") == 0
    terminal = capsys.readouterr().out
    start, fair = (torch.load(file, weights_only=True) for file in (many, "fair.pt"))
    assert fair["pathologies"] == FINDINGS
    moved = [
        k for k in range(5) if not torch.equal(start["state_dict"]["fc.weight"][k], fair["state_dict"]["fc.weight"][k])
    ]
    assert moved == [2]
    assert [k for k in range(5) if start["state_dict"]["fc.bias"][k] != fair["state_dict"]["fc.bias"][k]] in ([2], [])
    report = json.loads(Path("report/report.json").read_text())
    assert report["other_outputs"]["limit"] == 0.05
    assert list(report["other_outputs"]["fit"]) == ["Atelectasis", "Pleural_Effusion", "output 3", "Edema"]
    for split in ("fit", "select", "test"):
        (old, _), (new, _) = (outputs_on(study, file, split) for file in (many, "fair.pt"))
        change = (torch.sigmoid(new) - torch.sigmoid(old)).abs()[:, [0, 1, 3, 4]]
        found = report["other_outputs"][split]
        assert [one["mean"] for one in found.values()] == pytest.approx(change.mean(0).tolist(), abs=1e-6)
        assert [one["largest"] for one in found.values()] == pytest.approx(change.amax(0).tolist(), abs=1e-6)
        assert all(one["drift"] >= one["mean"] > 0 for one in found.values())
    assert "other outputs (4): drift at most" in terminal
    for file in ("report.md", "report.html"):
        assert "Drift of each other output" in Path("report", file).read_text()
    assert bmft("patch", "apply", many, "fair.patch.safetensors", "--out", "again.pt") == 0
    again = torch.load("again.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(again[name], fair["state_dict"][name]) for name in again)


@pytest.mark.ci
def test_a_candidate_whose_other_outputs_drift_too_far_is_refused(bmft, study, many, data_options, capsys):
    options = [*data_options, "--output", "2", "--epochs", "2,1", "--max-auc-drop", "1", "--max-group-auc-drop", "1"]
    options += ["--max-calibration-rise", "1", "--set", "others_weight=0", "--report", "report"]
    assert bmft("debias", many, *options, "--max-other-drift", "0.000001") == 1
    assert "drift of another output" in capsys.readouterr().out
    assert not Path("fair.pt").exists()
    report = json.loads(Path("report/report.json").read_text())
    assert report["config"]["max_other_drift"] == 0.000001
    assert not any(entry["eligible"] for entry in report["history"] if entry["step"])


@pytest.mark.ci
def test_search_compare_and_gate_take_an_output_too(bmft, study, many, data_options, tmp_path):
    own = [many, *data_options, "--output", "malignant"]
    quick = ["--methods", "head,threshold", "--seeds", "1", "--jobs", "1", "--report", "compare"]
    assert bmft("compare", *own, *quick) in (0, 1)
    found = json.loads(Path("compare/compare.json").read_text())
    assert found["assumed"]["output"][0]["value"].endswith("Malignant")
    assert found["limits"]["max_other_drift"] == 0.05
    assert bmft("search", *own, "--trials", "1", "--epochs", "1", "--report", "search") in (0, 1)
    assert "select" in json.loads(Path("search/report.json").read_text())["other_outputs"]
    (tmp_path / "p.toml").write_text(
        '[[check]]\nmetric = "false_positive_rate"\nsensitive = ["sex"]\nmax_difference = 0.9\n'
    )
    assert bmft("debias", *own, "--method", "threshold", "--keep", "last", "--out", "fair.pt") == 0
    assert bmft("gate", "fair.pt", *own[1:], "--policy", "p.toml", "--baseline", many, "--json", "gate.json") == 0
    assert "Malignant" in json.dumps(json.loads(Path("gate.json").read_text())["assumed"]["output"])


def test_one_hot_label_columns_are_measured_as_the_classes_of_a_softmax(bmft, study, data_options, tmp_path, capsys):
    write_many(study, tmp_path / "three.pt", names=None)
    content = torch.load("three.pt", weights_only=True)
    for name in ("fc.weight", "fc.bias"):
        content["state_dict"][name] = content["state_dict"][name][:3]
    torch.save(content, "three.pt")
    table = pd.read_csv(study / "isic.csv")
    names = np.array(["NV", "BCC", "MEL"])
    own = np.where(table["malignant"] == 1, 2, table["age"] > 50)
    for place, name in enumerate(names):
        table[name] = (own == place).astype(int)
    table.to_csv("hot.csv", index=False)
    options = ["hot.csv" if one == str(study / "isic.csv") else one for one in data_options]
    at = options.index("--label")
    options[at : at + 2] = [word for name in names for word in ("--label", name)]
    found = audited(bmft, "three.pt", *options, "--images", study)
    logits, _ = outputs_on(study, "three.pt", "test")
    right = names[logits.argmax(1)] == names[own[(table["split"] == "test").to_numpy()]]
    assert found["overall"]["accuracy"] == pytest.approx(right.mean(), abs=1e-9)
    assert "exactly one of the 3 label columns is 1 in every row" in found["assumed"]["classes"][0]["value"]
    assert "--multi-label" in capsys.readouterr().err
    labels = audited(bmft, "three.pt", *options, "--images", study, "--multi-label")
    decided = (torch.sigmoid(logits).numpy() >= 0.5) == np.eye(3)[own[(table["split"] == "test").to_numpy()]]
    assert labels["overall"]["accuracy"] == pytest.approx(decided.mean(), abs=1e-9)
