import numpy as np
import pytest
import torch
from torch import nn

import bmft
from bmft.comparison import World, compare
from bmft.errors import ConfigError, MissingExtraError
from bmft.methods import METHODS, installed_methods
from tests.upright import upright

CONFIG = {"epochs": [3, 1]}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 8),
            nn.ReLU(),
        )
        self.fc = nn.Linear(8, 1)

    def forward(self, x):
        return self.fc(self.body(x))


@pytest.fixture
def task():
    n = torch.arange(192)
    targets, groups = n % 2, n // 2 % 2
    torch.manual_seed(1)
    data = bmft.from_arrays(torch.randn(192, 2, 9, 9) + (targets + 0.7 * groups)[:, None, None, None], targets, groups)
    fit, select = data.split(0.5, 0.5)
    model = upright(Net().eval(), select)
    with torch.no_grad():
        model.fc.bias -= model(select.inputs(slice(None))).median()
    return model, fit, select


def debias(task, **options):
    model, fit, select = task
    defaults = {"method": "lora", "config": CONFIG, "keep": "last", "device": "cpu"}
    return bmft.debias(model, fit, select, **{**defaults, **options})


def test_adapters_are_merged_into_the_layers_that_call_them(task):
    pytest.importorskip("peft")
    model, outcome = task[0], debias(task)
    before, after = model.state_dict(), outcome.model.state_dict()
    assert list(after) == list(before), "the checkpoint keeps its keys"
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {"body.0.weight", "body.5.weight", "body.9.weight"}
    assert moved == layers | {"fc.weight", "fc.bias"}, "neither biases, nor statistics, nor a grouped convolution"
    assert {name for name, part in outcome.mask.tensors.items() if part.any()} == moved
    for name in ("body.5.weight", "body.9.weight"):
        change = (after[name] - before[name]).flatten(1).double()
        assert 0 < np.linalg.matrix_rank(change.numpy(), tol=1e-5) <= 8, name


def test_the_network_that_was_trained_is_the_one_that_was_judged(task):
    pytest.importorskip("peft")
    outcome, select = debias(task), task[2]
    last = outcome.report.history[-1]
    assert (last.chosen, last.epoch) == (True, 4)
    assert bmft.audit(outcome.model, select, intervals=False).overall["roc_auc"] == pytest.approx(last.roc_auc)
    torch.manual_seed(9)
    again = debias(task)
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), "the same seed, the same bytes"
    losses = [entry.loss for entry in outcome.report.history[1:]]
    assert losses[-1] < losses[0]


def test_a_killed_run_goes_on_to_the_same_bytes(task, tmp_path):
    pytest.importorskip("peft")
    whole = debias(task)

    def stop(now):
        if now.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        debias(task, journal=tmp_path / "run", progress=stop)
    again = debias(task, journal=tmp_path / "run", resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert [e.gap for e in again.report.history] == [e.gap for e in whole.report.history]


def test_what_lora_cannot_do_is_refused_by_name(task):
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match="norm_stats"):
        debias(task, config={**CONFIG, "norm_stats": "update"})
    with pytest.raises(ConfigError, match="linear layer or a convolution"):
        debias(task, config={**CONFIG, "tune": ["body.1.*"]})


@pytest.mark.ci
def test_a_search_ends_with_lora_too(task):
    pytest.importorskip("peft")
    pytest.importorskip("optuna")
    model, fit, select = task
    found = bmft.search(
        model,
        fit,
        select,
        trials=1,
        config=CONFIG,
        goal="average_odds",
        device="cpu",
        max_auc_drop=0.3,
        max_group_auc_drop=0.4,
    )
    assert found.summary["finals"][-1]["name"] == "LoRA"
    assert "lora" in METHODS


def test_without_peft_the_extra_is_named_and_the_rest_works(task, monkeypatch):
    monkeypatch.setattr("bmft.methods.lora.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bmft\[lora\]'"):
        debias(task)
    assert set(METHODS) - set(installed_methods()) == {"lora"}
    model, fit, select = task
    with pytest.raises(ConfigError, match=r"bmft\[lora\]"):
        compare(World(model, fit, select, None), methods=["lora"])
