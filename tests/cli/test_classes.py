"""Which class is positive: whatever the names' alphabetical order, the figures are scikit-learn's."""

import csv
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import nn

import bmft as library
from bmft.checkpoints import class_names, read_checkpoint
from tests.tiers import in_ci

NAMES = ("nevus", "melanoma")  # 0 and 1 of the study; in alphabetical order the positive one comes first
TEST = ["--sensitive", "sex", "--split-column", "split", "--image-size", "32"]


@pytest.fixture(scope="module")
def named(study, tmp_path_factory):
    """The study's manifest with names for labels, and its model with two outputs in either order."""
    folder = tmp_path_factory.mktemp("named")
    with (study / "isic.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "named.csv").open("w", newline="") as file:
        out = csv.DictWriter(file, [*rows[0], "dx"])
        out.writeheader()
        out.writerows({**row, "path": study / row["path"], "dx": NAMES[int(row["malignant"])]} for row in rows)
    state = torch.load(study / "model.pt", weights_only=True)
    own = {"fc.weight", "fc.bias"}
    assert all(len(state[name]) == 1 for name in own)
    for order in ("positive_last", "positive_first"):
        two = {
            name: torch.cat([0 * tensor, tensor] if order == "positive_last" else [tensor, 0 * tensor])
            if name in own
            else tensor
            for name, tensor in state.items()
        }
        torch.save({"state_dict": two}, folder / f"{order}.pt")
        index = NAMES if order == "positive_last" else NAMES[::-1]
        torch.save(
            {"state_dict": two, "class_to_idx": {n: i for i, n in enumerate(index)}}, folder / f"{order}_says.pt"
        )
    torch.save({"state_dict": state}, folder / "one.pt")
    return folder


@pytest.fixture(scope="module")
def oracle(study):
    """scikit-learn's AUC of the study's model on the test rows, by plain torch."""
    data = library.load_manifest(
        study / "isic.csv", target="malignant", sensitive="sex", split_column="split", split="test", image_size=32
    )
    model = library.load_checkpoint(study / "model.pt")
    with torch.no_grad():
        logits = model(data.inputs(slice(None)))[:, 0]
    return roc_auc_score(data.targets.numpy(), logits.numpy())


@pytest.fixture
def audit(bmft, named, tmp_path):
    def run(checkpoint, *options):
        data = ["--data", named / "named.csv", "--label", "dx", *TEST]
        code = bmft("audit", named / checkpoint, *data, *options, "--json", "a.json")
        return json.loads((tmp_path / "a.json").read_text()) if code == 0 else code

    return run


@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        ("one.pt", ["--positive", "melanoma"]),
        ("positive_last_says.pt", []),
        ("positive_first.pt", ["--classes", "melanoma,nevus", "--positive", "melanoma"]),
        ("positive_first_says.pt", ["--positive", "melanoma"]),
        ("positive_last_says.pt", ["--positive", "nevus"]),
        *in_ci(
            ("one.pt", ["--classes", "nevus,melanoma"]),
            ("one.pt", ["--classes", "Nevus, MELANOMA", "--positive", "melanoma"]),
            ("positive_last.pt", ["--positive", "melanoma"]),
            ("positive_last_says.pt", ["--positive", "Melanoma"]),
            ("positive_first_says.pt", []),
        ),
    ],
)
def test_the_auc_is_that_of_scikit_learn_whatever_the_names_order(audit, oracle, checkpoint, options):
    report = audit(checkpoint, *options)
    assert report["overall"]["roc_auc"] == pytest.approx(oracle, abs=1e-6)
    healthy = options == ["--positive", "nevus"] or (checkpoint, options) == ("positive_first_says.pt", [])
    positive = "nevus" if healthy else "melanoma"
    assert report["classes"][1].lower() == positive
    assert positive in report["assumed"]["classes"][0]["value"].lower()


def test_the_checkpoint_is_named_as_the_source(audit):
    assert audit("positive_last_says.pt")["assumed"]["classes"][0]["from"] == "the checkpoint's class_to_idx"


def test_two_names_that_nothing_explains_are_an_error_that_names_the_options(audit, capsys):
    assert audit("one.pt") == 2
    said = capsys.readouterr().err
    assert "--positive" in said
    assert "--classes" in said
    assert "melanoma" in said


def test_an_unknown_positive_is_an_error_that_names_the_classes(audit, capsys):
    assert audit("one.pt", "--positive", "melanom") == 2
    assert "Did you mean 'melanoma'?" in capsys.readouterr().err


def test_swapped_classes_are_a_warning_of_an_audit(audit, oracle, capsys):
    report = audit("one.pt", "--positive", "nevus")
    assert report["overall"]["roc_auc"] == pytest.approx(1 - oracle, abs=1e-6)
    assert any("swapped" in flag for flag in report["flags"])
    assert "swapped" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["debias", *in_ci("search", "compare")])
def test_swapped_classes_are_not_tuned(bmft, named, tmp_path, command, capsys):
    data = ["--data", named / "named.csv", "--label", "dx", *TEST, "--positive", "nevus"]
    assert bmft(command, named / "one.pt", *data) == 4
    said = capsys.readouterr().err
    assert "swapped" in said
    assert "--positive" in said
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.ci
def test_debias_narrows_the_gap_of_a_model_whose_positive_output_is_first(whole, bmft, named, oracle, tmp_path):
    # That the other order is its mirror image is tested below.
    order = NAMES[::-1]
    data = [
        "--data",
        named / "named.csv",
        "--label",
        "dx",
        *TEST,
        "--positive",
        "melanoma",
        "--classes",
        ",".join(order),
    ]
    run = ["--epochs", "2,2", "--out", "fair.pt", "--report", "r"]
    assert bmft("debias", named / "positive_first.pt", *data, *run) == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    gaps = [report[side]["gaps"]["sex"]["equalized_odds_difference"] for side in ("before", "after")]
    assert gaps[1] < gaps[0]
    # what was written is what was measured, read by plain torch
    model = library.load_checkpoint(tmp_path / "fair.pt")
    rows = library.load_manifest(
        named / "named.csv", target="dx", sensitive="sex", split_column="split", split="test", image_size=32,
        positive="melanoma",
    )  # fmt: skip
    with torch.no_grad():
        logits = model(rows.inputs(slice(None)))
    at = order.index("melanoma")
    score = (logits[:, at] - logits[:, 1 - at]).numpy()
    auc = roc_auc_score(rows.targets.numpy(), score)
    assert report["after"]["overall"]["roc_auc"] == pytest.approx(auc, abs=1e-5)
    assert auc > oracle - 0.05


def test_turning_a_head_and_back_keeps_every_bit():
    from bmft.models import turn_head, turned_model

    torch.manual_seed(0)
    for outputs in (1, 2):
        model, inputs = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)), torch.randn(5, 4)
        copy = turned_model(model, inputs)
        assert torch.equal(copy(inputs).flip(1) if outputs == 2 else -copy(inputs), model(inputs))
        turn_head(dict(copy.named_parameters()), ("2.weight", "2.bias"), outputs)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"class_to_idx": {"b": 1, "a": 0}}, ("a", "b")),
        ({"idx_to_class": {1: "a", 0: "b"}}, ("b", "a")),
        ({"id2label": {"0": "x", "1": "y", "2": "z"}}, ("x", "y", "z")),
        ({"hyper_parameters": {"classes": ["n", "m"]}}, ("n", "m")),
        ({"hyper_parameters": {"label_names": np.array(["n", "m"])}}, ("n", "m")),
        ({"classes": ("n", "m")}, ("n", "m")),
        ({"config": {"data": {"label_names": ("n", "m")}}}, ("n", "m")),
        ({"label2id": {"LABEL_0": 0, "LABEL_1": 1}}, None),
        ({"classes": 2, "class_names": None}, None),
        ({"class_to_idx": {"a": 0, "b": 2}}, None),
    ],
)
def test_class_names_are_read_in_every_usual_form(tmp_path, beside, expected):
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}, **beside}, tmp_path / "m.pt")
    found = class_names(read_checkpoint(tmp_path / "m.pt"))
    assert (found and found.names) == expected


WORDS = ("normal", "abnormal")  # the healthy name comes last in the alphabet


@pytest.fixture
def scored(tmp_path):
    """A table of predictions with names for labels, and scikit-learn's AUC of its positive class."""
    rng = np.random.default_rng(0)
    truth, sex = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
    score = np.clip(truth * 0.3 + rng.uniform(0, 0.7, 400), 0, 1).round(4)
    auc = roc_auc_score(truth, score)
    columns = {
        "y_true": [WORDS[t] for t in truth],
        "truth": truth,
        "y_score": score,
        "y_score_abnormal": score,
        "y_score_normal": 1 - score,
        "sex": ["fm"[g] for g in sex],
    }

    def write(*names, **renamed):
        table = pd.DataFrame({renamed.get(name, name): columns[name] for name in names})
        table.to_csv(tmp_path / "p.csv", index=False)
        return "p.csv"

    return write, auc


ONE, BOTH, SWAPPED = ("y_score",), ("y_score_abnormal", "y_score_normal"), ("y_score_normal", "y_score_abnormal")


@pytest.mark.parametrize(
    ("columns", "options", "positive"),
    [
        (ONE, ["--positive", "abnormal"], "abnormal"),
        (ONE, ["--classes", "normal,abnormal"], "abnormal"),
        (ONE, ["--classes", "normal,abnormal", "--positive", "normal"], "normal"),
        (BOTH, ["--positive", "abnormal"], "abnormal"),
        (SWAPPED, ["--positive", "Abnormal"], "abnormal"),
        (BOTH, ["--positive", "normal"], "normal"),
        (BOTH, ["--classes", "normal,abnormal"], "abnormal"),
        (SWAPPED, ["--classes", "abnormal,normal"], "normal"),
    ],
)
def test_predictions_are_about_the_class_that_is_said(bmft, scored, tmp_path, capsys, columns, options, positive):
    write, auc = scored
    table = write("y_true", *columns, "sex")
    assert bmft("audit", "--predictions", table, "--sensitive", "sex", *options, "--json", "a.json") == 0
    found = json.loads((tmp_path / "a.json").read_text())
    # Each of two classes against the other has the same AUC; the wrong one would have 1 - auc.
    assert found["overall"]["roc_auc"] == pytest.approx(auc)
    assert found["classes"][1] == positive
    assert found["overall"]["n_positive"] == sum(pd.read_csv(tmp_path / "p.csv")["y_true"] == positive)
    assert found["assumed"]["classes"][0]["value"].startswith(f"{positive} is positive")
    out = capsys.readouterr().out
    assert f"{positive} is positive" in out
    assert f"(from {options[-2]}" in out


@pytest.mark.parametrize("command", ["audit", "gate"])
def test_names_that_nothing_explains_in_predictions_are_a_usage_error(bmft, scored, tmp_path, capsys, command):
    (tmp_path / "fairness.toml").write_text(POLICY)
    options = ["--sensitive", "sex"] if command == "audit" else []
    assert bmft(command, "--predictions", scored[0]("y_true", *ONE, "sex"), *options) == 2
    said = capsys.readouterr().err
    assert "--positive NAME" in said
    assert "abnormal" in said


@pytest.mark.parametrize("columns", [BOTH, SWAPPED])
def test_of_two_named_columns_each_is_measured_where_nothing_says_which_is_positive(bmft, scored, tmp_path, columns):
    write, auc = scored
    assert (
        bmft("audit", "--predictions", write("y_true", *columns, "sex"), "--sensitive", "sex", "--json", "a.json") == 0
    )
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["task"], found["overall"]["worst_class"]["roc_auc"]) == ("multiclass", pytest.approx(auc))


def test_numbers_beside_named_columns_are_asked_about(bmft, scored, tmp_path, capsys):
    write, auc = scored
    table = write("truth", *BOTH, "sex", truth="y_true")
    options = ["audit", "--predictions", table, "--sensitive", "sex", "--json", "a.json"]
    assert bmft(*options) == 2
    assert "which of abnormal and normal is positive" in capsys.readouterr().err
    assert bmft(*options, "--positive", "abnormal") == 0
    assert json.loads((tmp_path / "a.json").read_text())["overall"]["roc_auc"] == pytest.approx(auc)


@pytest.mark.parametrize("columns", [BOTH, SWAPPED])
def test_columns_that_say_what_is_positive_need_no_option(bmft, scored, tmp_path, columns):
    write, auc = scored
    names = {"truth": "y_true", "y_score_abnormal": "y_score_yes", "y_score_normal": "y_score_No"}
    table = write("truth", *columns, "sex", **names)
    assert bmft("audit", "--predictions", table, "--sensitive", "sex", "--json", "a.json") == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["classes"], found["overall"]["roc_auc"]) == (["No", "yes"], pytest.approx(auc))


def test_two_scores_that_do_not_add_up_to_one_are_refused(bmft, scored, tmp_path, capsys):
    table = scored[0]("y_true", "y_score_abnormal", "y_score", "sex", y_score="y_score_normal")
    assert bmft("audit", "--predictions", table, "--sensitive", "sex", "--positive", "abnormal") == 4
    assert "add up to" in capsys.readouterr().err


POLICY = """
[[check]]
metric = "false_positive_rate"
sensitive = ["sex"]
max_difference = 0.9
[[non_inferiority]]
metric = "roc_auc"
margin = 0.99
"""


def test_a_gate_says_which_class_is_positive_and_warns_of_swapped_ones_and_the_baselines(
    bmft, scored, tmp_path, capsys
):
    write, auc = scored
    (tmp_path / write("y_true", *BOTH, "sex")).rename(tmp_path / "good.csv")
    write("y_true", "y_score_normal", "sex", y_score_normal="y_score")
    (tmp_path / "fairness.toml").write_text(POLICY)
    outputs = ["--json", "g.json", "--junit", "g.xml", "--summary", "g.md"]
    options = ["--predictions", "good.csv", "--positive", "abnormal", "--baseline", "p.csv", *outputs]
    assert bmft("gate", *options) == 0
    texts = [capsys.readouterr().out, *((tmp_path / name).read_text() for name in ("g.md", "g.xml"))]
    for text in texts:
        assert "abnormal is positive, normal is not" in text
        assert "of the baseline the classes look swapped" in text
        assert f"{1 - auc:.3f}" in text
    found = json.loads((tmp_path / "g.json").read_text())
    assert found["assumed"]["classes"][0]["value"] == "abnormal is positive, normal is not"
    assert len([one for one in found["warnings"] if "swapped" in one]) == 1
    bmft("gate", *options[:1], "p.csv", *options[2:4], "--baseline", "good.csv", *outputs)
    assert "warning: the classes look swapped: the ROC AUC of abnormal" in capsys.readouterr().out


@pytest.fixture(scope="module")
def mirrored(named):
    """Options for the study's model with the positive output last, and for its mirror image."""
    data = ["--data", named / "named.csv", "--label", "dx", *TEST, "--positive", "melanoma", "--epochs", "2,1"]
    return {
        order: [named / f"{order}.pt", *data, "--classes", ",".join(names)]
        for order, names in (("positive_last", NAMES), ("positive_first", NAMES[::-1]))
    }


def assert_mirrored(one, other):
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in (one, other))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name].flip(0) if name.startswith("fc.") else other[name]), name


@pytest.mark.ci
def test_a_patch_of_a_turned_run_makes_its_checkpoint_and_the_report_names_the_class(bmft, mirrored, tmp_path, capsys):
    for order, options in mirrored.items():
        assert bmft("debias", *options, "--keep", "last", "--out", f"{order}.pt", "--report", order) == 0
        assert "Classes: melanoma is positive, nevus is not" in capsys.readouterr().out
        for name in ("report.html", "report.md", "report.json"):
            assert "melanoma is positive" in (tmp_path / order / name).read_text()
    assert_mirrored("positive_last.pt", "positive_first.pt")
    patch = "positive_first.patch.safetensors"
    assert bmft("patch", "apply", mirrored["positive_first"][0], patch, "--out", "again.pt") == 0
    assert bmft("patch", "revert", "positive_first.pt", patch, "--out", "back.pt") == 0
    one, two = (torch.load(name, weights_only=True)["state_dict"] for name in ("again.pt", "positive_first.pt"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    before, back = (torch.load(p, weights_only=True)["state_dict"] for p in (mirrored["positive_first"][0], "back.pt"))
    assert all(torch.equal(before[name], back[name]) for name in before)


@pytest.mark.slow  # a turned run and a search by its best.toml are each tested by themselves
def test_a_search_on_a_turned_model_is_repeated_by_its_best_toml(bmft, mirrored, tmp_path, capsys):
    pytest.importorskip("optuna")
    for order, options in mirrored.items():
        loose = ["--max-auc-drop", "0.2", "--max-group-auc-drop", "0.3", "--set", "path=[1.0]"]
        asked = ["--trials", "2", *loose, "--out", f"{order}.pt", "--report", order]
        assert bmft("search", *options, *asked) == 0
        assert "Classes: melanoma is positive" in capsys.readouterr().out
    assert_mirrored("positive_last.pt", "positive_first.pt")
    options = [one for one in mirrored["positive_first"] if one not in ("--epochs", "2,1")]
    assert bmft("debias", *options, "--config", "positive_first/best.toml", "--out", "again.pt") == 0
    one, two = (torch.load(name, weights_only=True)["state_dict"] for name in ("again.pt", "positive_first.pt"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_search_from_weights_whose_outputs_are_in_another_order_is_refused(bmft, named, capsys):
    data = ["--data", named / "named.csv", "--label", "dx", *TEST, "--positive", "melanoma"]
    start = ["--from", named / "positive_first_says.pt"]
    assert bmft("search", named / "positive_last_says.pt", *data, *start) == 2
    assert "--from" in capsys.readouterr().err


@pytest.mark.ci
def test_a_comparison_says_which_class_is_positive(bmft, mirrored, tmp_path, capsys):
    options = ["--methods", "dfr", "--seeds", "1", "--tuning", "1", "--jobs", "1"]
    assert bmft("compare", *mirrored["positive_first"], *options) == 0
    assert "Classes: melanoma is positive" in capsys.readouterr().out
    for name in ("compare.html", "compare.md", "compare.json"):
        assert "melanoma is positive" in (tmp_path / "compare" / name).read_text()


def test_classes_and_positive_may_stand_in_the_settings_file(bmft, named, tmp_path, oracle):
    (tmp_path / "bmft.toml").write_text('classes = ["nevus", "melanoma"]\npositive = "melanoma"\n')
    data = ["--data", named / "named.csv", "--label", "dx", *TEST, "--json", "a.json"]
    assert bmft("audit", named / "one.pt", *data) == 0
    assert json.loads((tmp_path / "a.json").read_text())["overall"]["roc_auc"] == pytest.approx(oracle, abs=1e-6)


def test_inspect_shows_the_outputs_in_their_order_and_who_says_so(bmft, named, capsys):
    assert bmft("inspect", named / "positive_first_says.pt") == 0
    assert re.search("melanoma.*nevus.*from the checkpoint's class_to_idx", capsys.readouterr().out)


def test_the_config_beside_a_hugging_face_file_names_the_classes(tmp_path):
    save_file({"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"id2label": {"0": "nevus", "1": "melanoma"}}')
    found = class_names(read_checkpoint(tmp_path / "model.safetensors"))
    assert found == (("nevus", "melanoma"), "the checkpoint's config.json/id2label")
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert class_names(read_checkpoint(tmp_path / "other.safetensors")) is None


def test_names_that_are_as_many_as_the_outputs_go_before_others(tmp_path):
    other = {"classes": [f"object {k}" for k in range(80)]}
    state = {"fc.weight": torch.zeros(3, 5), "fc.bias": torch.zeros(3)}
    torch.save({"state_dict": state, **other, "hyper_parameters": {"label_names": list("xyz")}}, tmp_path / "m.pt")
    assert class_names(read_checkpoint(tmp_path / "m.pt")).names == ("x", "y", "z")


@pytest.mark.ci
def test_a_baseline_whose_outputs_are_in_another_order_is_measured_about_the_same_class(bmft, named, tmp_path, oracle):
    (tmp_path / "fairness.toml").write_text(POLICY)
    data = ["--data", named / "named.csv", "--label", "dx", *TEST[2:], "--json", "g.json"]
    last, first = named / "positive_last_says.pt", named / "positive_first_says.pt"
    assert bmft("gate", last, "--baseline", first, "--positive", "melanoma", *data) == 3
    found = json.loads((tmp_path / "g.json").read_text())
    assert [one["reason"] for one in found["checks"] if one["bound"] == "margin"] == [
        "the baseline gives the same scores: a model compared with itself shows nothing"
    ]
    # Without it each checkpoint's last class is positive, and they are not the same.
    assert bmft("gate", last, "--baseline", first, *data) == 4
