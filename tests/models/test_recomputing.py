import pytest
import torch
import torchvision
from torch import nn

import bmft
from bmft import fairness
from bmft.compute import Room
from bmft.data import from_arrays
from bmft.errors import ConfigError
from bmft.masks import WeightMask, weight_importances
from bmft.models import recomputing, tail_above
from bmft.training import Loss, Step, tune
from tests.tiers import in_ci


def transformer():
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(16, 8, 3, 2, 16, 32, num_classes=1).eval()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


def residual():
    torch.manual_seed(0)
    blocks = [Residual() for _ in range(3)]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    ).eval()


NETWORKS = pytest.mark.parametrize("build", [transformer, residual])


def rows(n=24):
    generator = torch.Generator().manual_seed(0)
    targets, groups = torch.arange(n) % 2, torch.arange(n) // 2 % 2
    inputs = torch.randn(n, 3, 16, 16, generator=generator) + (targets + 0.5 * groups)[:, None, None, None]
    return from_arrays(inputs, targets, groups)


def kept_bytes(model, inputs, on):
    """What a forward pass keeps for the backward pass, outside of what it computes again."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), recomputing(model, on):
        model(inputs).sum().backward()
    return sum(sizes)


@NETWORKS
def test_gradients_are_the_same_to_the_last_bit_and_less_is_kept(build):
    model, inputs = build(), torch.randn(4, 3, 16, 16)
    gradients, sizes = [], []
    for on in (False, True):
        model.zero_grad()
        sizes.append(kept_bytes(model, inputs, on))
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))
    assert sizes[1] < sizes[0] / 2


@NETWORKS
def test_the_model_is_as_it_was_afterwards_also_on_failure(build):
    model = build()
    with pytest.raises(ZeroDivisionError), recomputing(model):
        raise ZeroDivisionError
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_block_runs_again_in_the_backward_pass_and_never_without_gradients():
    model, runs = residual(), []
    block = model[1][0]
    inside = block.first.forward
    with recomputing(model):
        with torch.no_grad():
            model(torch.ones(1, 3, 8, 8))
        block.first.forward = lambda x: (runs.append(1), inside(x))[1]
        model(torch.ones(1, 3, 8, 8)).sum().backward()
        assert len(runs) == 1, "somebody's own forward inside is left alone"
        del block.first.forward
    seen = []
    block.__class__ = type(
        "Counted", (Residual,), {"forward": lambda self, x: (seen.append(1), Residual.forward(self, x))[1]}
    )
    with recomputing(model):
        with torch.no_grad():
            model(torch.ones(1, 3, 8, 8))
        assert len(seen) == 1
        model(torch.ones(1, 3, 8, 8)).sum().backward()
    assert len(seen) == 3


@NETWORKS
@pytest.mark.parametrize("score", ["fisher", *in_ci("input_x_gradient")])
@pytest.mark.parametrize("exact", [True, False])
def test_importances_are_the_same_to_the_last_bit(build, score, exact):
    model, data = build(), rows()
    objectives = [fairness.equalized_odds_gap, fairness.cross_entropy]
    options = {"score": score, "exact": exact, "batch_size": 8}
    plain, again = (weight_importances(model, objectives, data, recompute=on, **options) for on in (False, True))
    for one, other in zip(plain, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("names", [["encoder.layers.encoder_layer_1.mlp.0.weight"], ["heads.head.weight"]])
def test_above_activations_that_are_kept_too(names):
    model, data = transformer(), rows()
    tail = tail_above(model, names, data.inputs(slice(0, 4)))
    inputs = tail.entering(data.inputs(slice(0, 8)))
    found = []
    for on in (False, True):
        model.zero_grad()
        with recomputing(tail, on):
            tail(inputs).sum().backward()
        found.append([model.get_parameter(name).grad.clone() for name in names])
    assert all(map(torch.equal, *found))


@NETWORKS
@pytest.mark.parametrize("most", [3, *in_ci(float("inf"))])
def test_a_training_ends_with_the_same_weights(build, most):
    data, ends = rows(), []
    for on in (False, True):
        model = build()
        tune(
            model,
            data,
            Loss(fairness.equalized_odds_gap, 1.0, 1.0),
            WeightMask.by_name(model, "*weight"),
            Step(2, 0.0, batch_size=8, balance="cell"),
            generator=torch.Generator().manual_seed(0),
            room=Room(most=most, recompute=on),
        )
        ends.append(list(model.parameters()))
    assert all(map(torch.equal, *ends))
    assert not all(map(torch.equal, ends[0], build().parameters()))


def test_memory_that_runs_out_begins_to_recompute_before_fewer_samples_go_at_once():
    room, tried = Room(shrinks=True, may_recompute=True), []

    def work(size):
        tried.append((size, room.recompute))
        if size > 20 or not room.recompute:
            raise torch.OutOfMemoryError
        return size

    assert room(work, 64) == 16
    assert tried == [(64, False), (64, True), (32, True), (16, True)]
    once = Room(may_recompute=True)
    with pytest.raises(torch.OutOfMemoryError):
        once(work, 64)
    assert once.recompute


def test_a_run_gives_the_same_weights_with_checkpointing(few_steps):
    fit, select = rows(48).split(0.5, 0.5)
    model = residual()
    with torch.no_grad():
        model[-1].bias -= model(select.inputs(slice(None))).median()
    runs = [
        bmft.debias(model, fit, select, config={"epochs": 1, "checkpointing": value}, keep="last", device="cpu")
        for value in ("off", "on")
    ]
    for name, tensor in runs[0].model.state_dict().items():
        assert torch.equal(tensor, runs[1].model.state_dict()[name]), name


def test_statistics_that_move_go_without_it():
    with pytest.raises(ConfigError, match="checkpointing off"):
        bmft.Settings().with_values({"checkpointing": "on", "norm_stats": "update"})
