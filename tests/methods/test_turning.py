"""A model whose positive output comes first is debiased as its mirror image is, to the last bit."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import bmft
from bmft.comparison import Budget, World, compare
from bmft.data import as_grouped, from_arrays
from bmft.errors import ConfigError, DataError
from bmft.methods import debias
from bmft.models import read_as, turn_head, turned_model
from bmft.training import Conditions
from tests.tiers import in_ci
from tests.upright import upright

FAST = {"epochs": [3, 2], "path": [0.5, 1.0], "bias_weight": [1.0, 0.4], "precision": "float32"}
LOOSE = {"max_auc_drop": 0.3, "max_group_auc_drop": 0.4, "max_calibration_rise": 1.0, "device": "cpu"}
CLASSES = ("sick", "well")


class Answering(nn.Module):
    """The logits of `net`, or what they are wrapped in."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form
        self.last = nn.Softmax(1) if form == "softmax" else nn.Sigmoid() if form == "sigmoid" else nn.Identity()

    def forward(self, x):
        logits = self.net(x)
        if self.form == "dict":
            return {"features": x, "label": logits}
        if self.form == "probabilities":
            return torch.softmax(logits, 1) if logits.shape[1] == 2 else torch.sigmoid(logits)
        return self.last(logits)


def rows(n=320):
    generator = torch.Generator().manual_seed(0)
    label, group = torch.randint(0, 2, (2, n), generator=generator)
    x = torch.randn(n, 6, generator=generator)
    x[:, 0] += 1.2 * label + 0.9 * group
    return x, label, group


def plain():
    """The positive class is 1, and its output the last."""
    x, label, group = rows()
    return from_arrays(x, label, group).split(0.4, 0.3, 0.3, seed=0)


def mirrored():
    """The same rows; the positive class is 0, and its output the first."""
    x, label, group = rows()
    return from_arrays(x, 1 - label, group, classes=CLASSES, positive="sick").split(0.4, 0.3, 0.3, seed=0)


def network(outputs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs)).eval()
    upright(net, plain()[0])
    with torch.no_grad():
        logits = net(plain()[1].inputs(slice(None)))
        score = logits[:, 1] - logits[:, 0] if outputs == 2 else logits[:, 0]
        net[2].bias[-1] -= score.median()
    return net


def mirror(net, outputs, prefix=""):
    other = copy.deepcopy(net)
    turn_head(dict(other.named_parameters()), (f"{prefix}2.weight", f"{prefix}2.bias"), outputs)
    return other


def assert_mirrored(model, other, outputs, prefix=""):
    back = mirror(other, outputs, prefix)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


@pytest.mark.parametrize("outputs", [2, *in_ci(1)])
@pytest.mark.parametrize("method", ["bmft", "dfr", *in_ci("swift", "head", "threshold", "rw")])
def test_every_method_gives_the_mirror_image(method, outputs):
    net, found = network(outputs), []
    for model, (fit, select, test) in ((net, plain()), (mirror(net, outputs), mirrored())):
        before = copy.deepcopy(model.state_dict())
        config = bmft.METHODS[method].reading(FAST)
        found.append(debias(model, fit, select, test=test, method=method, config=config, keep="last", **LOOSE))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    one, other = found
    assert_mirrored(one.model, other.model, outputs)
    assert any(not torch.equal(*pair) for pair in zip(net.parameters(), one.model.parameters(), strict=True))
    assert one.after.gaps == other.after.gaps
    assert other.after.classes == ("well", "sick")
    # The patch is of the model that came in, and the mask of its weights.
    patched = other.patch.apply(mirror(net, outputs).state_dict())
    assert all(torch.equal(patched[name], tensor) for name, tensor in other.model.state_dict().items())
    for name, tensor in one.mask.tensors.items():
        turned = other.mask.tensors[name]
        assert torch.equal(tensor, turned.flip(0) if name.startswith("2.") and outputs == 2 else turned), name


@pytest.mark.parametrize("outputs", [2, *in_ci(1)])
@pytest.mark.parametrize("form", ["last", *in_ci("dict", "probabilities")])
def test_however_the_model_answers_the_mirror_image_comes_out(form, outputs):
    form = {"last": {1: "sigmoid", 2: "softmax"}[outputs]}.get(form, form)
    net, found = network(outputs), []
    for inner, (fit, select, _) in ((net, plain()), (mirror(net, outputs), mirrored())):
        model = Answering(inner, form).eval()
        if form == "probabilities":
            read_as(model, answer_is="probabilities")
        found.append(debias(model, fit, select, config=FAST, keep="last", head="net.2", **LOOSE))
    assert_mirrored(found[0].model, found[1].model, outputs, "net.")
    assert found[0].before.overall["roc_auc"] == pytest.approx(found[1].before.overall["roc_auc"], abs=1e-12)


@pytest.mark.ci
def test_a_model_in_half_precision_is_turned_too():
    net, found = network(2).half(), []
    for model, (fit, select, _) in ((net, plain()), (mirror(net, 2), mirrored())):
        found.append(debias(model, fit, select, config=FAST, keep="last", **LOOSE).model)
    assert found[1][2].weight.dtype == torch.float16
    assert_mirrored(*found, 2)


@pytest.mark.ci
def test_a_turned_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path):
    model, (fit, select, _) = mirror(network(2), 2), mirrored()
    whole = debias(model, fit, select, config=FAST, keep="last", **LOOSE)
    seen = []

    def stop(now):
        seen.append(now)
        if len(seen) == 3:
            raise KeyboardInterrupt

    kept = {"config": FAST, "keep": "last", "journal": tmp_path / "run", **LOOSE}
    with pytest.raises(KeyboardInterrupt):
        debias(model, fit, select, progress=stop, **kept)
    again = debias(model, fit, select, resume=True, **kept)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(ConfigError):
        debias(model, *plain()[:2], resume=True, **kept)


@pytest.mark.ci
def test_a_search_gives_the_mirror_image():
    pytest.importorskip("optuna")
    net, found = network(2), []
    for model, (fit, select, test) in ((net, plain()), (mirror(net, 2), mirrored())):
        found.append(bmft.search(model, fit, select, test=test, trials=2, goal="average_odds", config=FAST, **LOOSE))
    assert_mirrored(found[0].outcome.model, found[1].outcome.model, 2)
    assert found[0].to_toml() == found[1].to_toml()


@pytest.mark.ci
def test_a_comparison_measures_the_mirror_image_alike():
    net, found = network(2), []
    for model, (fit, select, test) in ((net, plain()), (mirror(net, 2), mirrored())):
        conditions = Conditions(device="cpu")
        world = World(model, fit, select, test, {"clinic": test}, conditions)
        found.append(compare(world, methods=["bmft", "dfr"], budget=Budget((1, 1), (1.0,), 1, 1)))
    one, other = (comparison.to_dict() for comparison in found)
    for row, mirrored_row in zip(one["methods"], other["methods"], strict=True):
        assert row["figures"] == mirrored_row["figures"]
        assert row["evaluations"] == mirrored_row["evaluations"]
    assert "sick is positive" in other["assumed"]["classes"][0]["value"]


def test_importance_and_leakage_do_not_mind_which_output_is_first():
    net = network(2)
    scores = [
        bmft.weight_importance(model, bmft.fairness.equalized_odds_gap, data)
        for model, data in ((net, plain()[0]), (mirror(net, 2), mirrored()[0]))
    ]
    for name, tensor in scores[0].items():
        other = scores[1][name].flip(0) if name.startswith("2.") else scores[1][name]
        torch.testing.assert_close(tensor, other)


def test_batches_of_a_set_keep_what_it_says_of_its_classes():
    data = mirrored()[2]
    from_batches = as_grouped(DataLoader(data, batch_size=50))
    assert from_batches.outputs_reversed
    for found in (data, from_batches):
        (said,) = [one.value for one in found.assumed if one.subject == "classes"]
        assert said == "sick is positive, well is not; the model's outputs are sick, well"


def test_sets_that_disagree_about_the_order_are_refused():
    with pytest.raises(DataError, match="different orders"):
        debias(network(2), plain()[0], mirrored()[1], config=FAST, **LOOSE)


def test_a_head_that_cannot_be_turned_is_refused():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            return self.fc(x) + torch.tensor([1.0, -1.0])

    with pytest.raises(ConfigError, match="cannot be exchanged"):
        turned_model(Added(), rows()[0])
