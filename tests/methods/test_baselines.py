import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from bmft.data import from_arrays
from bmft.errors import ConfigError
from bmft.inference import audit, predict
from bmft.methods import METHODS, debias
from bmft.methods.full_network import _RobustLoss
from bmft.methods.head_only import DFR_STRENGTHS
from bmft.methods.pruning import PRUNED
from tests.tiers import in_ci
from tests.upright import upright

NEW = ("dfr", "group_dro", "bias_gradient_descent", "fairprune", "threshold")
QUICK = {"epochs": (2, 1), "batch_size": 32, "lr": (0.05, 0.05), "path": 1.0}


def people(classes=2, n=320, seed=0):
    """Four readings; the label is in the first ones, group 1's are shifted upwards."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=generator)
    group = (torch.rand(n, generator=generator) < 0.4).long()
    x = torch.randn(n, 4, generator=generator)
    x[:, 0] += 1.5 * label + 0.9 * group
    x[:, 1] += 2.0 * group
    return x, label, group


def network(outputs=1, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, outputs, bias=bias)).eval()


def trained(outputs=1, classes=2):
    x, label, _ = people(classes)
    model = network(outputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        logits = model(x)
        loss = (
            nn.functional.binary_cross_entropy_with_logits(logits[:, 0], label.float())
            if outputs == 1
            else nn.functional.cross_entropy(logits, label)
        )
        loss.backward()
        optimizer.step()
    return model


def sets(classes=2):
    x, label, group = people(classes)
    return from_arrays(x, label, group).split(0.5, 0.5, seed=0)


def run(model, method, data=None, **options):
    fit, select = data or sets()
    options = {"keep": "last", "config": METHODS[method].reading(QUICK), **options}
    return debias(model, fit, select, method=method, device="cpu", **options)


@pytest.mark.parametrize("method", NEW)
@pytest.mark.parametrize("outputs", [2, *in_ci(1)])
def test_every_baseline_moves_only_its_mask_of_a_binary_model(method, outputs):
    model = trained(outputs)
    before = copy.deepcopy(model.state_dict())
    outcome = run(model, method)
    for name, after in outcome.model.state_dict().items():
        outside = outcome.mask.tensors[name] == 0
        assert torch.equal(after[outside], before[name][outside]), name
    assert outcome.patch.moved > 0


@pytest.mark.parametrize("method", ["group_dro", "fairprune", *in_ci("dfr", "bias_gradient_descent")])
def test_three_classes_work(method):
    outcome = run(trained(3, classes=3), method, sets(classes=3))
    assert outcome.patch.moved > 0
    assert np.isfinite(outcome.after.overall["roc_auc"])


@pytest.mark.parametrize("method", ["group_dro", "fairprune", *in_ci("dfr", "bias_gradient_descent")])
def test_several_labels_work(method):
    x, label, group = people()
    labels = torch.stack([label, (x[:, 2] > 0).long()], 1)
    data = from_arrays(x, labels, group, task="multilabel").split(0.5, 0.5, seed=0)
    outcome = run(network(2), method, data, multi_label=True)
    assert outcome.patch.moved > 0


def test_a_threshold_of_several_classes_is_refused():
    with pytest.raises(ConfigError, match="one threshold of a binary label, and this is multiclass"):
        run(trained(3, classes=3), "threshold", sets(classes=3))


@pytest.mark.parametrize("method", ["dfr", "threshold"])
def test_a_head_that_cannot_be_written_is_refused(method):
    with pytest.raises(ConfigError, match=r"head's bias, and '2' has none"):
        run(upright(network(1, bias=False), sets()[1]), method)


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_shifted_bias_decides_as_the_shifted_threshold_and_keeps_the_ranking(outputs):
    model = trained(outputs)
    outcome = run(model, "threshold", keep="best")
    assert outcome.accepted, outcome.reason
    select = sets()[1]
    old, new = (predict(each, select).scores[:, 0] for each in (model, outcome.model))
    shift = float((outcome.model[2].bias[-1] - model[2].bias[-1]).detach())
    expected = 1 / (1 + np.exp(-(np.log(old / (1 - old)) + shift)))
    np.testing.assert_allclose(new, expected, atol=1e-6)
    assert outcome.after.overall["roc_auc"] == pytest.approx(outcome.before.overall["roc_auc"])
    assert outcome.patch.moved == 1


def test_the_chosen_threshold_keeps_the_balanced_accuracy():
    outcome = run(trained(), "threshold", keep="best", max_auc_drop=0.02)
    lost = outcome.before.overall["balanced_accuracy"] - outcome.after.overall["balanced_accuracy"]
    assert lost <= 0.02 + 1e-9


def test_dfr_offers_every_strength_and_its_weakest_l1_is_near_a_plain_logistic_head():
    model = trained()
    outcome = run(model, "dfr", keep="best", max_auc_drop=1.0, max_group_auc_drop=1.0)
    assert len(outcome.report.history) == 1 + len(DFR_STRENGTHS)
    fit, select = sets()
    features = [torch.relu(model[0](part.inputs(slice(None)))).detach().numpy() for part in (fit, select)]
    plain = LogisticRegression(max_iter=1000, class_weight="balanced").fit(features[0], fit.targets)
    ours = run(model, "dfr").model  # the strongest l1 comes last
    assert np.count_nonzero(ours[2].weight.detach().numpy()) < 12
    areas = [audit(each, select, intervals=False).overall["roc_auc"] for each in (outcome.model,)]
    oracle = np.mean(plain.predict(features[1]) == select.targets.numpy())
    found = np.mean(predict(outcome.model, select).decisions()[:, 0] == select.targets.numpy())
    assert found == pytest.approx(oracle, abs=0.06)
    assert areas[0] > 0.7


def test_the_robust_loss_is_the_weighted_sum_of_cell_losses_and_follows_the_worst():
    loss = _RobustLoss(1.0, multi_label=False)
    scores, targets = torch.tensor([[0.9], [0.2]]), torch.tensor([[1.0], [1.0]])
    groups = torch.tensor([0, 1])
    cells = -torch.log(scores[:, 0])
    means = torch.tensor([0.0, float(cells[0]), 0.0, float(cells[1])])
    weights = torch.softmax(means, 0)
    assert float(loss(scores, targets, groups)) == pytest.approx(float((weights * means).sum()), rel=1e-5)
    for _ in range(20):
        loss(scores, targets, groups)
    assert int(loss.weights.argmax()) == 3
    assert float(loss.weights[3] / loss.weights.sum()) > 0.9


def test_unknown_groups_take_no_part_in_the_robust_loss():
    loss = _RobustLoss(0.1, multi_label=False)
    targets, groups = torch.ones(2, 1), torch.tensor([0, -1])
    values = [float(loss(torch.tensor([[0.9], [score]]), targets, groups)) for score in (0.1, 0.8)]
    assert values[0] == pytest.approx(values[1], rel=0.1)
    assert values[0] < 0.5


def test_group_dro_takes_the_combinations_of_several_attributes():
    x, label, group = people()
    other = (x[:, 3] > 0).long()
    data = from_arrays(x, label, torch.stack([group, other], 1)).split(0.5, 0.5, seed=0)
    assert run(trained(), "group_dro", data).patch.moved > 0


def test_pruning_zeroes_the_asked_share_of_the_extractor_and_nothing_else():
    model = trained()
    outcome = run(model, "fairprune")
    zeros = sum(int((outcome.model[0].get_parameter(name) == 0).sum()) for name in ("weight", "bias"))
    assert zeros == round(PRUNED[-1] * 60)
    assert torch.equal(outcome.model[2].weight, model[2].weight)


def test_bias_gradient_descent_lowers_the_gap_of_the_fit_set():
    model = trained()
    fit, _ = sets()
    outcome = run(model, "bias_gradient_descent", config={"epochs": (4, 0), "lr": (0.02, 0.02), "batch_size": 32})
    gaps = [
        audit(each, fit, intervals=False).gaps["group"]["average_odds_difference"] for each in (model, outcome.model)
    ]
    assert gaps[1] < gaps[0]
