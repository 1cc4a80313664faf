import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, RMSprop, Rprop

from bmft import fairness
from bmft.data import from_arrays
from bmft.errors import ConfigError, MismatchError, NonFiniteError
from bmft.masks import WeightMask
from bmft.models import find_head, penultimate_features, reset_head
from bmft.training import Loss, PooledLoss, SelectedWeights, Step, line_search, masked, tune
from bmft.training.line_search import best_step

OPTIMIZERS = [
    partial(SGD, lr=0.1),
    partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    partial(Adam, lr=0.01, weight_decay=1e-2),
    partial(AdamW, lr=0.01),
    partial(AdamW, lr=0.01, amsgrad=True),
    partial(RMSprop, lr=0.01, momentum=0.9),
    partial(Adagrad, lr=0.1),
]
SHAPE_FREE = [*OPTIMIZERS, partial(Rprop, lr=0.01)]


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1))


def images(n=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets, groups = torch.arange(n) % 2, (torch.arange(n) // 2) % 2
    inputs = torch.randn(n, 1, 8, 8, generator=generator) + (targets + 0.7 * groups)[:, None, None, None]
    return from_arrays(inputs, targets, groups)


def half_mask(model, soft=False, seed=1):
    generator = torch.Generator().manual_seed(seed)
    random = {n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}
    return WeightMask({n: r * (r > 0.5) if soft else r > 0.5 for n, r in random.items()})


def train(model, optimizer, steps=20, data=None):
    data = data or images()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(data.inputs(slice(0, 32)))[:, 0], data.targets[:32].float()
        )
        loss.backward()
        optimizer.step()


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", SHAPE_FREE)
@pytest.mark.parametrize("soft", [False, True])
def test_weights_outside_the_mask_are_bit_identical(optimizer, soft):
    model = net().eval()
    mask, before = half_mask(model, soft), weights(model)
    owner = optimizer(model.parameters())
    with masked(owner, model, mask):
        train(model, owner)
    for name, after in weights(model).items():
        frozen = mask.tensors[name] == 0
        assert torch.equal(after[frozen], before[name][frozen]), name
        assert frozen.all() or not torch.equal(after, before[name]), name


def test_a_masked_gradient_alone_would_move_weights_outside_the_mask():
    # What the published code does: the reason `masked` masks the step.
    model = net().eval()
    mask, before = half_mask(model), weights(model)
    owner = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(5):
        train(model, _GradientMasked(owner, model, mask), steps=1)
    assert any((weights(model)[n] != before[n])[~mask.tensors[n]].any() for n in before)


class _GradientMasked:
    def __init__(self, owner, model, mask):
        self.owner, self.model, self.mask, self.zero_grad = owner, model, mask, owner.zero_grad

    def step(self):
        for name, parameter in self.model.named_parameters():
            parameter.grad *= self.mask.tensors[name]
        self.owner.step()


def test_weights_outside_the_mask_survive_lbfgs_and_reused_momentum():
    model = net().eval()
    owner = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, owner)
    mask, before = half_mask(model), weights(model)
    with masked(owner, model, mask):
        train(model, owner)
    lbfgs = LBFGS(model.parameters(), max_iter=3)

    def closure():
        lbfgs.zero_grad()
        loss = model(images().inputs(slice(0, 16))).square().mean()
        loss.backward()
        return loss

    with masked(lbfgs, model, mask):
        lbfgs.step(closure)
    assert all(torch.equal(after[~mask.tensors[n]], before[n][~mask.tensors[n]]) for n, after in weights(model).items())


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.1), partial(Adam, lr=0.01), partial(AdamW, lr=0.01)])
def test_a_soft_mask_scales_the_update_with_every_optimizer(optimizer):
    # Scaling the gradient instead has no effect with Adam: the step ratio stays 1.
    plain, soft = net().eval(), net().eval()
    mask = WeightMask({n: torch.full(p.shape, 0.1) for n, p in soft.named_parameters()})
    before = weights(plain)
    train(plain, optimizer(plain.parameters()), steps=1)
    owner = optimizer(soft.parameters())
    with masked(owner, soft, mask):
        train(soft, owner, steps=1)
    for name, start in before.items():
        torch.testing.assert_close(
            weights(soft)[name] - start, 0.1 * (weights(plain)[name] - start), rtol=1e-3, atol=1e-7
        )


@pytest.mark.parametrize("soft", [False, True])
def test_a_non_finite_step_does_not_reach_frozen_weights(soft):
    model = net().eval()
    mask, before = half_mask(model, soft), weights(model)
    owner = SGD(model.parameters(), lr=0.1)
    with masked(owner, model, mask):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        owner.step()
    for name, after in weights(model).items():
        frozen = mask.tensors[name] == 0
        assert torch.equal(after[frozen], before[name][frozen]), name


def test_the_hooks_are_gone_afterwards_also_on_failure():
    model = net().eval()
    owner, before = SGD(model.parameters(), lr=0.1), weights(model)
    with pytest.raises(ZeroDivisionError), masked(owner, model, ~WeightMask.by_name(model)):
        raise ZeroDivisionError
    train(model, owner, steps=1)
    assert all((after != before[n]).any() for n, after in weights(model).items())


def test_a_mask_for_another_model_is_refused():
    model, other = net(), nn.Linear(2, 1)
    with pytest.raises(MismatchError), masked(SGD(model.parameters(), lr=0.1), model, WeightMask.by_name(other)):
        pass
    with pytest.raises(MismatchError):
        SelectedWeights(model, WeightMask.by_name(other))


@pytest.mark.parametrize("optimizer", SHAPE_FREE)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gathered_steps_equal_masked_steps_bit_for_bit(optimizer, soft, layout):
    one, two = net().eval().to(memory_format=layout), net().eval().to(memory_format=layout)
    mask = half_mask(one, soft)
    owner = optimizer(one.parameters())
    with masked(owner, one, mask):
        train(one, owner, steps=6)
    chosen = SelectedWeights(two, mask)
    gathered = _Gathered(chosen, optimizer([chosen.vector]), two)
    train(two, gathered, steps=6)
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(two).values(), strict=True))


class _Gathered:
    def __init__(self, chosen, owner, model):
        self.chosen, self.owner, self.zero_grad = chosen, owner, model.zero_grad

    def step(self):
        self.chosen.collect_gradients()
        self.chosen.step(self.owner)


def test_optimizer_state_is_in_proportion_to_the_mask():
    model = net()
    mask = WeightMask.top_fraction({n: torch.rand(p.shape) for n, p in model.named_parameters()}, 0.05)
    chosen = SelectedWeights(model, mask)
    owner = Adam([chosen.vector])
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    chosen.collect_gradients()
    chosen.step(owner)
    kept = sum(v.numel() for v in owner.state[chosen.vector].values())
    assert kept <= 2 * mask.selected + 1


def settings(**changes):
    return Step(**{"epochs": 2, "lr": 0.05, "batch_size": 32, "balance": "cell"} | changes)


def run(model, mask, step=None, loss=None, seed=0, **options):
    tune(
        model,
        images(),
        loss or Loss(fairness.equalized_odds_gap, 1.0, 1.0),
        mask,
        step or settings(),
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_tuning_keeps_weights_outside_the_mask_and_statistics(optimizer):
    model = net().train()
    mask, before, buffers = half_mask(model), weights(model), copy.deepcopy(dict(model.named_buffers()))
    run(model, mask, settings(optimizer=optimizer, weight_decay=0.1, average=0.9))
    for name, after in weights(model).items():
        assert torch.equal(after[~mask.tensors[name]], before[name][~mask.tensors[name]]), name
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())


def test_normalization_statistics_move_only_when_asked():
    model = net()
    before = model[1].running_var.clone()
    run(model, half_mask(model), settings(norm_stats="update"))
    assert not torch.equal(model[1].running_var, before)


def test_dropout_is_off_while_tuning():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 1)).train()
    other = copy.deepcopy(model)
    other[2] = nn.Identity()
    run(model, WeightMask.by_name(model))
    run(other, WeightMask.by_name(other))
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(other).values(), strict=True))


def test_the_model_s_flags_are_put_back_also_on_failure():
    model = net().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]

    def stop(epoch, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, half_mask(model), after_epoch=stop)
    assert flags == [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())


def test_the_same_seed_gives_the_same_bytes():
    one, two, three = net(), net(), net()
    for model, seed in ((one, 3), (two, 3), (three, 4)):
        run(model, half_mask(model), settings(augment=("hflip", "transpose")), seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(two).values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(three).values(), strict=True))


def test_a_non_finite_loss_stops_before_anything_moves():
    model = net()
    before = weights(model)
    data = images()
    data.inputs(slice(0, 1))
    broken = from_arrays(torch.full((8, 1, 8, 8), float("inf")), [0, 1] * 4, [0, 0, 1, 1] * 2)
    with pytest.raises(NonFiniteError, match="loss is nan"):
        tune(
            model,
            broken,
            Loss(fairness.equalized_odds_gap, 0.0, 1.0),
            WeightMask.by_name(model),
            settings(),
            generator=torch.Generator(),
        )
    assert all(torch.equal(after, before[n]) for n, after in weights(model).items())


def test_after_epoch_can_stop_the_training():
    seen = []
    run(net(), half_mask(net()), settings(epochs=5), after_epoch=lambda epoch, loss: seen.append(epoch) or epoch == 2)
    assert seen == [1, 2]


def test_the_average_lies_between_the_start_and_the_last_weights():
    start, last, mean = net(), net(), net()
    run(last, WeightMask.by_name(last), settings(average=0.0))
    run(mean, WeightMask.by_name(mean), settings(average=0.99))
    distance = [
        sum(float((a - b).norm()) for a, b in zip(weights(m).values(), weights(start).values(), strict=True))
        for m in (last, mean)
    ]
    assert 0 < distance[1] < distance[0]


def pooled_loss(data, logits, **options):
    return PooledLoss(Loss(fairness.equalized_odds_gap, **options), data, logits, multi_label=False)


def test_batch_gradients_of_the_whole_set_s_gap_add_up_to_the_whole_gradient():
    data = images()
    logits = torch.randn(len(data), 1)
    leaf = logits.double().requires_grad_()
    fairness.equalized_odds_gap(torch.sigmoid(leaf), data.targets[:, None].double(), data.groups[:, 0]).backward()
    loss = pooled_loss(data, logits)
    total = torch.zeros_like(logits)
    batches = torch.arange(len(data)).view(4, -1)  # every batch holds the cells in the set's own shares
    for index in batches:
        part = logits[index].clone().requires_grad_()
        loss(part, index).backward()
        total[index] = part.grad / len(batches)
    torch.testing.assert_close(total, leaf.grad.float(), rtol=1e-5, atol=1e-8)


def test_a_cell_given_a_larger_share_of_the_batch_counts_no_more():
    data = images()
    logits = torch.randn(len(data), 1)
    one, two = (
        logits[index].clone().requires_grad_()
        for index in (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 0, 1, 2, 3]))
    )
    pooled_loss(data, logits)(one, torch.tensor([0, 1, 2, 3])).backward()
    pooled_loss(data, logits)(two, torch.tensor([0, 0, 0, 1, 2, 3])).backward()
    torch.testing.assert_close(two.grad[:3].sum(), one.grad[0].squeeze(0).sum())
    torch.testing.assert_close(two.grad[3:], one.grad[1:])


def test_a_batch_without_two_groups_has_no_bias_term_as_published():
    data = images()
    loss = pooled_loss(data, torch.zeros(len(data), 1), whole_set=False)
    one_group = (data.groups[:, 0] == 0).nonzero().squeeze(1)[:8]
    assert float(loss(torch.randn(8, 1), one_group)) == 0.0


@pytest.mark.parametrize("balance", ["label", "cell"])
def test_an_all_negative_batch_weighs_as_its_samples_do(balance):
    # The published per-batch pos_weight gives such a batch about 5e-12.
    data = images()
    loss = pooled_loss(data, torch.zeros(len(data), 1), bias_weight=0.0, task_weight=1.0, balance=balance)
    negatives = (data.targets == 0).nonzero().squeeze(1)[:16]
    assert float(loss(torch.zeros(16, 1), negatives)) == pytest.approx(0.6931, rel=1e-3)


def test_head_steps_on_cached_features_equal_full_forward_steps():
    cached, slow = net().eval(), net().eval()
    data = images()
    head = find_head(cached, data.inputs(slice(0, 2)))
    features = penultimate_features(cached, head, data)
    assert features is not None
    module = cached.get_submodule(head.name)
    options = {"loss": Loss(fairness.equalized_odds_gap, 0.1, 1.0), "step": settings(epochs=3)}
    for model, source in ((module, features), (slow, data)):
        mask = WeightMask.by_name(model, *(head.parameters if model is slow else ()))
        tune(model, source, options["loss"], mask, options["step"], generator=torch.Generator().manual_seed(0))
    for a, b in zip(weights(cached).values(), weights(slow).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_features_are_not_cached_where_the_head_is_not_the_last_thing_that_happens():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    data = images()
    assert penultimate_features(model, find_head(model, data.inputs(slice(0, 2))), data) is None


def test_the_head_is_reset_whole_or_where_marked():
    model = net()
    head = find_head(model, torch.randn(2, 1, 8, 8))
    where = {n: p > 0 for n, p in model.named_parameters() if n in head.parameters}
    reset_head(model, head, where)
    assert not (model[4].weight > 0).any()
    assert (model[4].weight < 0).any()
    reset_head(model, head)
    assert not model[4].weight.any()
    assert not model[4].bias.any()
    assert model[0].weight.any()


def test_a_parametrized_head_is_not_zeroed_into_nan():
    model = net()
    nn.utils.parametrizations.weight_norm(model[4])
    head = find_head(model, torch.randn(2, 1, 8, 8))
    with pytest.raises(ConfigError, match="parametrized"):
        reset_head(model, head)
    assert torch.isfinite(model(torch.randn(2, 1, 8, 8))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"trust": 0.0}, "trust"),
        ({"batch_size": 0}, "batch_size"),
        ({"optimizer": "sgdd"}, "sgdd"),
        ({"augment": ("rotate",)}, "rotate"),
        ({"average": 1.0}, "average"),
        ({"norm_stats": "on"}, "norm_stats"),
        ({"weight_decay": float("nan")}, "weight_decay"),
    ],
)
def test_a_step_that_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        settings(**change)


def test_augmenting_what_is_no_square_image_is_refused():
    data = from_arrays(torch.randn(16, 5), [0, 1] * 8, [0, 0, 1, 1] * 4)
    model = nn.Linear(5, 1)
    with pytest.raises(ConfigError, match="square images"):
        tune(
            model,
            data,
            Loss(fairness.equalized_odds_gap),
            WeightMask.by_name(model),
            settings(augment=("hflip",)),
            generator=torch.Generator(),
        )


def convolving(scale=1.0):
    """A network whose answer does not depend on the scale of its first weights: they are normalized away."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1)
    ).eval()
    with torch.no_grad():
        net[0].weight.mul_(scale)
        net[1].running_mean.mul_(scale)
        net[1].running_var.mul_(scale * scale)
        net[1].eps = 1e-12
        net[4].weight.mul_(10)
    return net


def shades():
    inputs = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets, groups = torch.arange(64) % 2, torch.arange(64) // 2 % 2
    return from_arrays(inputs + targets[:, None, None, None] * (1 + groups[:, None, None, None]), targets, groups)


def searched(net, optimizer="sgd", **how):
    data = shades()
    chosen = SelectedWeights(net, WeightMask.by_name(net, "0.weight"))
    with torch.no_grad():
        logits = net(data.inputs(slice(0, 64)))
    pooled = PooledLoss(Loss(fairness.equalized_odds_gap, 1.0, 1.0), data, logits, False)
    step = Step(1, 0.0, optimizer=optimizer, batch_size=16, **how)
    return pooled, best_step(net, chosen, pooled, data, step, seed=0), data


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_best_step_lowers_the_loss_more_than_a_far_longer_or_shorter_one(optimizer, between):
    net = convolving()
    before = copy.deepcopy(net.state_dict())
    pooled, rate, data = searched(net, optimizer, rate_between=between)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()), "the weights stay"

    def loss_after(rate):
        net.load_state_dict(before)
        found = Step(1, rate, optimizer=optimizer).make_optimizer([net[0].weight])
        everything = torch.arange(64)
        value = pooled(net(data.inputs(everything)), everything)
        found.zero_grad()
        value.backward()
        found.step()
        return pooled(net(data.inputs(everything)), everything).item()

    assert loss_after(rate) < min(loss_after(rate * 50), loss_after(rate / 50), loss_after(1e-12))


def test_the_best_step_follows_the_scale_of_the_weights():
    rates = [searched(convolving(scale))[1] for scale in (1.0, 10.0)]
    assert 30 <= rates[1] / rates[0] <= 300, "a hundredfold, in factors of 3"


def test_the_first_rate_is_searched_in_the_precision_of_the_steps():
    net, half = convolving(), []
    net.register_forward_pre_hook(lambda *_: half.append(torch.is_autocast_enabled("cpu")))
    mask, step = WeightMask.by_name(net, "0.weight"), Step(1, 0.0, batch_size=16)
    precision = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    loss, generator = Loss(fairness.equalized_odds_gap, 1.0, 1.0), torch.Generator().manual_seed(0)
    tune(net, shades(), loss, mask, step, generator=generator, autocast=precision)
    assert len(half) > 3 * 4, "first logits and an epoch are four batches each"
    assert all(half)


@pytest.mark.parametrize("best", [1.9e-4, 2.2e-4, 2.7e-4])
def test_a_rate_between_those_that_are_tried_is_found_by_their_losses(monkeypatch, best):
    net = convolving()
    start = net[0].weight.detach().clone()

    def parabola(model, *_):
        # Adam's first step is as long as the rate, in every weight.
        return (math.log2((model[0].weight - start).abs().mean().item() / best)) ** 2 - 100

    monkeypatch.setattr(line_search, "_mean_loss", parabola)
    assert searched(net, "adam", rate_factor=2.0, rate_between=True)[1] == pytest.approx(best, rel=1e-3)
    assert searched(net, "adam", rate_factor=2.0)[1] == pytest.approx(2.5e-4)
