"""What the model returns, as the command line reads it: `--answer` and `--answer-is`."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

from tests.tiers import in_ci

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh())
        self.adversary, self.label = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x):
        x = self.body(x)
        return ANSWER


def build():
    return Net()
"""
BOTH = '{"adversary": self.adversary(x), "label": self.label(x)}'


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a network whose `forward` returns this expression; gives back the network."""

    def write(answer, name):
        (tmp_path / f"{name}.py").write_text(SOURCE.replace("ANSWER", answer))
        monkeypatch.syspath_prepend(tmp_path)
        torch.manual_seed(0)
        model: nn.Module = __import__(name).build()
        torch.save(model.state_dict(), tmp_path / "net.pt")
        return model.eval()

    return write


def pixels(study, split):
    table = pd.read_csv(study / "isic.csv").query("split == @split")
    images = np.stack([np.asarray(Image.open(study / path)) for path in table["path"]])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2), table["malignant"].to_numpy()


def test_the_part_that_is_named_is_measured_and_two_that_fit_are_listed(bmft, study, data_options, written, capsys):
    model = written(BOTH, "two_heads")
    options = [*data_options, "--arch", "two_heads:build"]
    assert bmft("audit", "net.pt", *options) == 4
    message = capsys.readouterr().err
    assert "adversary (8, 1), label (8, 1)" in message
    assert "--answer" in message
    inputs, targets = pixels(study, "test")
    for part in ("adversary", "label"):
        assert bmft("audit", "net.pt", *options, "--answer", part, "--json", "audit.json") == 0
        with torch.no_grad():
            expected = roc_auc_score(targets, model(inputs)[part][:, 0])
        assert json.loads(Path("audit.json").read_text())["overall"]["roc_auc"] == pytest.approx(expected, abs=1e-9)


def test_a_head_that_makes_another_part_is_refused_at_load(bmft, data_options, written, capsys):
    written(BOTH, "wrong_head")
    options = [*data_options, "--arch", "wrong_head:build", "--answer", "label"]
    assert bmft("debias", "net.pt", *options, "--head", "adversary") == 4
    assert "'adversary' is not the model's logits, which 'label' makes" in capsys.readouterr().err


def test_probabilities_are_refused_and_read_as_they_are_when_told(bmft, study, data_options, written, capsys):
    model = written("torch.sigmoid(self.label(x))", "squashed")
    options = [*data_options, "--arch", "squashed:build"]
    for command in ("audit", "debias"):
        assert bmft(command, "net.pt", *options) == 4
        assert "--answer-is probabilities" in capsys.readouterr().err
    assert bmft("audit", "net.pt", *options, "--answer-is", "probabilities", "--json", "audit.json") == 0
    inputs, targets = pixels(study, "test")
    own = model(inputs).detach()[:, 0].numpy()
    overall = json.loads(Path("audit.json").read_text())["overall"]
    assert overall["roc_auc"] == pytest.approx(roc_auc_score(targets, own), abs=1e-9)
    assert overall["accuracy"] == pytest.approx(np.mean((own >= 0.5) == targets), abs=1e-9)


@pytest.mark.parametrize("answer", [BOTH, *in_ci("torch.sigmoid(self.label(x))")])
def test_a_debiasing_of_either_is_that_of_the_plain_model(bmft, data_options, written, answer, capsys):
    written("self.label(x)", "plain_net")
    fast = [*data_options, "--epochs", "2", "--keep", "last", "--threshold-from", "select"]
    assert bmft("debias", "net.pt", *fast, "--arch", "plain_net:build", "--out", "plain.pt") == 0
    name = "squashed_net" if answer != BOTH else "both_net"
    written(answer, name)
    said = ["--answer", "label"] if answer == BOTH else ["--answer-is", "probabilities"]
    assert bmft("debias", "net.pt", *fast, "--arch", f"{name}:build", *said, "--out", "other.pt") == 0
    plain, other, start = (torch.load(file, weights_only=True) for file in ("plain.pt", "other.pt", "net.pt"))
    assert not torch.equal(plain["label.weight"], start["label.weight"])
    for key in plain:
        torch.testing.assert_close(plain[key], other[key], rtol=1e-3, atol=1e-4)


def test_a_depthwise_first_layer_takes_colour_images(bmft, data_options, tmp_path, monkeypatch):
    (tmp_path / "depthwise.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 8, 8, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(__import__("depthwise").build().state_dict(), tmp_path / "net.pt")
    assert bmft("audit", "net.pt", *data_options, "--arch", "depthwise:build") == 0
