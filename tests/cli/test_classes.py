"""Which class is positive: whatever the names' alphabetical order, the figures are scikit-learn's."""

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import bmft as library
from bmft.auditing import read_predictions
from bmft.checkpoints import class_names, read_checkpoint

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
        ("one.pt", ["--classes", "nevus,melanoma"]),
        ("one.pt", ["--classes", "Nevus, MELANOMA", "--positive", "melanoma"]),
        ("positive_last.pt", ["--positive", "melanoma"]),
        ("positive_last_says.pt", []),
        ("positive_last_says.pt", ["--positive", "Melanoma"]),
        ("positive_first.pt", ["--classes", "melanoma,nevus", "--positive", "melanoma"]),
        ("positive_first_says.pt", ["--positive", "melanoma"]),
        ("positive_first_says.pt", []),
        ("positive_last_says.pt", ["--positive", "nevus"]),
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


@pytest.mark.parametrize("command", ["debias", "search", "compare"])
def test_swapped_classes_are_not_tuned(bmft, named, tmp_path, command, capsys):
    data = ["--data", named / "named.csv", "--label", "dx", *TEST, "--positive", "nevus"]
    assert bmft(command, named / "one.pt", *data) == 4
    said = capsys.readouterr().err
    assert "swapped" in said
    assert "--positive" in said
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("checkpoint", ["positive_first.pt", "positive_last.pt"])
def test_debias_narrows_the_gap_of_a_model_whose_positive_output_is_first(bmft, named, oracle, tmp_path, checkpoint):
    order = NAMES if checkpoint == "positive_last.pt" else NAMES[::-1]
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
    assert bmft("debias", named / checkpoint, *data, "--epochs", "3,3", "--out", "fair.pt", "--report", "r") == 0
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


def test_numbered_folders_in_the_order_of_their_text_are_read_in_the_checkpoints_order(tmp_path):
    from bmft.tables import ClassNames, encode_labels, read_table

    (tmp_path / "t.csv").write_text("y\n2\n10\n1\n")
    table = read_table(tmp_path / "t.csv")
    assert encode_labels(table, "y", ClassNames(("1", "10", "2"), "a checkpoint")).targets.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("words", "targets"),
    [("No,YES,no", [0, 1, 0]), ("positive,Negative", [1, 0]), ("True,true", [1, 1]), ("neg,pos", [0, 1])],
)
def test_words_that_say_what_is_positive_need_no_option(tmp_path, words, targets):
    from bmft.tables import encode_labels, read_table

    (tmp_path / "t.csv").write_text("y\n" + words.replace(",", "\n") + "\n")
    assert encode_labels(read_table(tmp_path / "t.csv"), "y").targets.tolist() == targets


def test_names_of_several_classes_need_an_order(tmp_path):
    from bmft.tables import encode_labels, read_table

    (tmp_path / "t.csv").write_text("y\nc\na\nb\n")
    table = read_table(tmp_path / "t.csv")
    with pytest.raises(library.errors.ConfigError, match="--classes"):
        encode_labels(table, "y")
    assert encode_labels(table, "y", ["c", "a", "b"]).targets.tolist() == [0, 1, 2]


def test_predictions_of_a_table_are_about_the_positive_name(tmp_path):
    rng = np.random.default_rng(0)
    truth, sex = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    score = np.clip(truth * 0.3 + rng.uniform(0, 0.7, 200), 0, 1)
    lines = [f"{('normal', 'abnormal')[t]},{s},{'fm'[g]}" for t, s, g in zip(truth, score, sex, strict=True)]
    (tmp_path / "p.csv").write_text("y_true,y_score,sex\n" + "\n".join(lines) + "\n")
    found = read_predictions(tmp_path / "p.csv", sensitive="sex", positive="abnormal")
    assert library.audit(found).overall["roc_auc"] == pytest.approx(roc_auc_score(truth, score))
    with pytest.raises(library.errors.ConfigError, match="--positive"):
        read_predictions(tmp_path / "p.csv", sensitive="sex")
