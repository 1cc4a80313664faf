import copy

import pytest
import torch
from captum.attr import Saliency
from torch import nn

from bmft import fairness
from bmft.data import from_arrays
from bmft.errors import ConfigError, GroupError, NonFiniteError
from bmft.masks import WeightMask, relative, weight_importance, weight_importances
from bmft.masks.importance import SCORES
from bmft.models import settle


def net(outputs=1, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, outputs)
    )


def samples(n=64, classes=2, seed=0, attributes=1):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (n,), generator=generator)
    groups = torch.randint(0, 2, (n, attributes), generator=generator)
    inputs = torch.randn(n, 1, 8, 8, generator=generator) + (targets + 0.7 * groups[:, 0])[:, None, None, None]
    return from_arrays(inputs, targets, groups)


def autograd(model, objective, data):
    """The obvious way: one graph over the whole set, in evaluation mode."""
    model = copy.deepcopy(model).eval()
    probabilities = fairness.probabilities(model(data.inputs(slice(0, len(data)))).double())
    value = objective(probabilities, fairness.one_vs_rest(data.targets, probabilities.shape[1]), data.groups[:, 0])
    value.backward()
    return value.item(), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", sorted(fairness.OBJECTIVES))
def test_saliency_importance_equals_autograd_over_the_whole_set(name):
    model, data, objective = net(), samples(), fairness.OBJECTIVES[name]
    scores = weight_importance(model, objective, data, score="saliency", batch_size=10)
    value, gradient = autograd(model, objective, data)
    assert scores.value == pytest.approx(value, rel=1e-5)
    for key, expected in gradient.items():
        torch.testing.assert_close(scores[key], expected.abs(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("score", ["fisher", "saliency", "input_x_gradient"])
def test_exact_importance_does_not_depend_on_batch_size_or_order(score):
    model, data = net(), samples()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    versions = [
        weight_importance(model, fairness.equalized_odds_gap, part, score=score, batch_size=size)
        for part, size in ((data, 64), (data, 7), (data.subset(order), 16))
    ]
    for other in versions[1:]:
        for name in versions[0]:
            torch.testing.assert_close(other[name], versions[0][name], rtol=1e-3, atol=1e-9)


def test_the_published_form_does_depend_on_batch_size():
    model, data = net(), samples()
    one, two = (
        weight_importance(model, fairness.equalized_odds_gap, data, exact=False, batch_size=size) for size in (64, 8)
    )
    assert one.value < two.value  # the mean of batch gaps overstates the gap
    assert not torch.allclose(one["0.weight"], two["0.weight"], rtol=0.05)


def test_scores_are_the_stated_functions_of_the_gradient():
    model, data = net(), samples()
    options = {"objective": fairness.equalized_odds_gap, "data": data}
    saliency = weight_importance(model, score="saliency", **options)
    weights = dict(model.named_parameters())
    for name, tensor in saliency.items():
        torch.testing.assert_close(weight_importance(model, score="fisher", **options)[name], tensor**2)
        product = weight_importance(model, score="input_x_gradient", **options)[name]
        torch.testing.assert_close(product, tensor * weights[name].detach().abs(), rtol=1e-4, atol=1e-9)
        own = weight_importance(model, score=lambda weight, gradient: gradient.abs() + 0 * weight, **options)[name]
        torch.testing.assert_close(own, tensor)


def test_it_is_captum_s_saliency_over_the_weights():
    model, data = net().eval(), samples()
    value_of = lambda p: fairness.equalized_odds_gap(p, data.targets[:, None], data.groups[:, 0])  # noqa: E731
    names = [name for name, _ in model.named_parameters()]

    def forward(*weights):
        logits = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), data.inputs(slice(0, 64)))
        return value_of(torch.sigmoid(logits)).reshape(1)

    expected = Saliency(forward).attribute(tuple(p.detach().clone().requires_grad_() for p in model.parameters()))
    scores = weight_importance(model, fairness.equalized_odds_gap, data, score="saliency")
    for name, tensor in zip(names, expected, strict=True):
        torch.testing.assert_close(scores[name], tensor, rtol=1e-3, atol=1e-7)


def test_two_objectives_share_one_forward_pass_per_batch():
    model, data = net(), samples()
    settle(model, data)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    pair = weight_importances(model, [fairness.equalized_odds_gap, fairness.cross_entropy], data, batch_size=16)
    assert (calls.count(True), calls.count(False)) == (4, 4)
    alone = weight_importance(model, fairness.cross_entropy, data, batch_size=16)
    assert all(torch.equal(alone[name], pair[1][name]) for name in alone)


def test_integrated_gradients_are_complete_and_say_how_far_off_they_are():
    model, data = net(), samples(32)
    scores = weight_importance(
        model, fairness.cross_entropy, data, score="integrated_gradients", steps=32, batch_size=32
    )
    assert scores.completeness_delta is not None
    assert abs(scores.completeness_delta) < 0.02
    assert scores.value == pytest.approx(autograd(model, fairness.cross_entropy, data)[0], rel=1e-4)
    assert scores["0.weight"].shape == model[0].weight.shape


@pytest.mark.parametrize("score", SCORES)
def test_the_model_is_left_as_it_was(score):
    model = net().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    weight_importance(model, fairness.equalized_odds_gap, samples(16), score=score, steps=2)
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_score_that_works_in_place_does_not_reach_the_model():
    model = net()
    before = copy.deepcopy(model.state_dict())
    weight_importance(model, fairness.equalized_odds_gap, samples(), score=lambda weight, gradient: weight.zero_())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_random_scores_follow_the_seed_and_ones_are_ones():
    model, data = net(), samples(16)
    draw = lambda seed: weight_importance(model, fairness.equalized_odds_gap, data, score="random", seed=seed)  # noqa: E731
    assert torch.equal(draw(1)["0.weight"], draw(1)["0.weight"])
    assert not torch.equal(draw(1)["0.weight"], draw(2)["0.weight"])
    assert weight_importance(model, fairness.equalized_odds_gap, data, score="ones")["0.weight"].eq(1).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_several_outputs_are_scored(classes):
    model, data = net(classes), samples(classes=classes)
    scores = weight_importance(model, fairness.equalized_odds_gap, data, score="saliency")
    _, gradient = autograd(model, fairness.equalized_odds_gap, data)
    torch.testing.assert_close(scores["0.weight"], gradient["0.weight"].abs(), rtol=1e-3, atol=1e-7)


def test_labels_and_attributes_of_several_columns_are_scored():
    data = samples(attributes=2)
    labels = from_arrays(data.inputs(slice(0, 64)), torch.stack([data.targets, 1 - data.targets], 1), data.groups)
    mean, worst = (
        weight_importance(net(2), fairness.equalized_odds_gap, labels, multi_label=True, combine=combine)
        for combine in ("mean", "worst")
    )
    assert mean.value < worst.value


def test_parameters_that_the_forward_does_not_use_score_zero():
    model = net()
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: nn.Sequential(*list(model)[:6])(x)
    scores = weight_importance(model, fairness.equalized_odds_gap, samples())
    assert scores["unused.weight"].eq(0).all()
    assert scores["0.weight"].gt(0).any()


def test_nothing_to_compare_is_an_error():
    data = from_arrays(torch.randn(8, 1, 8, 8), [0, 1] * 4, torch.full((8,), -1), attributes=None)
    for exact in (True, False):
        with pytest.raises(GroupError, match="no two groups"):
            weight_importance(net(), fairness.equalized_odds_gap, data, exact=exact)


def test_an_unknown_score_is_refused():
    with pytest.raises(ConfigError, match="fisherr"):
        weight_importance(net(), fairness.equalized_odds_gap, samples(), score="fisherr")


def test_weights_that_are_not_finite_are_an_error():
    model = net()
    nn.init.constant_(model[5].weight, float("nan"))
    with pytest.raises((NonFiniteError, GroupError)):
        weight_importance(model, fairness.equalized_odds_gap, samples())


def test_relative_importance_of_constant_and_unused_tensors_selects_something():
    # The published min-max of a constant tensor is NaN, and its mask empty without a word.
    bias = {"w": torch.tensor([0.0, 1.0, 2.0]), "dead": torch.zeros(3), "same": torch.full((2,), 5.0)}
    task = {"w": torch.tensor([1.0, 1.0, 1.0]), "dead": torch.zeros(3), "same": torch.tensor([1.0, 2.0])}
    for scale in ("tensor", "global"):
        ratio = relative(bias, to=task, scale=scale)
        assert all(torch.isfinite(tensor).all() for tensor in ratio.values())
        assert WeightMask.top_fraction(ratio, 0.2).selected == 2


def test_relative_refuses_what_does_not_belong_together():
    with pytest.raises(ConfigError, match="different weights"):
        relative({"a": torch.ones(1)}, to={"b": torch.ones(1)})
    with pytest.raises(ConfigError, match="scale"):
        relative({"a": torch.ones(1)}, to={"a": torch.ones(1)}, scale="layer")


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_some_weights_are_those_among_all(score):
    model, data = net(), samples()
    whole = weight_importance(model, fairness.equalized_odds_gap, data, score=score)
    some = weight_importance(model, fairness.equalized_odds_gap, data, score=score, only=["5.weight"])
    assert set(some) == {"5.weight"}
    # Integrated gradients start where only the scored weights are 0; the random ones are drawn in turn.
    if score not in ("integrated_gradients", "random"):
        torch.testing.assert_close(some["5.weight"], whole["5.weight"])


def test_a_weight_that_is_not_there_cannot_be_scored():
    with pytest.raises(ConfigError, match="no parameter '9"):
        weight_importance(net(), fairness.equalized_odds_gap, samples(), only=["9.weight"])


def test_logits_that_are_known_are_not_computed_again():
    data, runs = from_arrays(torch.randn(40, 3), torch.arange(40) % 2, torch.arange(40) // 20), []
    model = nn.Linear(3, 1)
    with torch.no_grad():
        logits = model(data.inputs(slice(0, 40)))
    model.register_forward_hook(lambda *_: runs.append(1))
    (plain,) = weight_importances(model, [fairness.equalized_odds_gap], data, batch_size=20)
    without, runs[:] = len(runs), []
    (known,) = weight_importances(model, [fairness.equalized_odds_gap], data, batch_size=20, logits=logits)
    assert len(runs) == without - 2, "two batches fewer"
    torch.testing.assert_close(dict(known), dict(plain))
