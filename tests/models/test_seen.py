"""Whether pixels look like those of the training, as the first normalization layer tells."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from scipy import integrate, stats
from torch import nn

from bmft import load_checkpoint, load_manifest
from bmft.data import from_arrays
from bmft.models import seen, settle
from bmft.models.seen import unlike_training
from tests.conftest import draw, people

SHARED = Path(os.environ.get("BMFT_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "models/ham10000_resnet18.pt"
IMAGENET = "imagenet"


def images(n=96, seed=1):
    labels, groups = people(n, 0.5, np.random.default_rng(seed))
    return draw(labels, groups, np.random.default_rng(seed + 1))


def data(pixels, normalize=IMAGENET):
    return from_arrays(pixels, [0, 1] * (len(pixels) // 2), [0, 1] * (len(pixels) // 2), normalize=normalize)


def trained(network, normalize=IMAGENET, steps=40):
    """Its statistics are those of drawn images, and its weights have moved a little."""
    inputs = data(images(), normalize).inputs(slice(None))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    for step in range(steps):
        batch = inputs[step % 6 * 16 :][:16]
        network(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


NETWORKS = {
    "resnet": lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=1),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=1),
    "normalized first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(1)),
    "frozen": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(1)),
}


@pytest.fixture(scope="module")
def networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = {name: trained(make()) for name, make in NETWORKS.items()}
    own = found["frozen"][1]
    frozen = torchvision.ops.FrozenBatchNorm2d(8)
    frozen.load_state_dict(own.state_dict(), strict=False)
    found["frozen"][1] = frozen
    return found


SHOWN = {
    "grey": lambda pixels: np.repeat(pixels.mean(3, keepdims=True), 3, axis=3).astype(np.uint8),
    "half as bright": lambda pixels: pixels // 2,
    "a 16th as bright": lambda pixels: pixels // 16,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_right_pixels_are_no_remark(networks, name):
    for n in (2, 8, 96):
        assert not unlike_training(networks[name], data(images(n, seed=7)))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wrong", ["none", "half", "0/0.00392157", "0.76,0.55,0.57/0.14,0.15,0.17"])
def test_another_normalization_is_a_remark_that_names_the_right_one(networks, name, wrong):
    (said,) = unlike_training(networks[name], data(images(seed=7), wrong))
    assert said.guess
    assert "; --normalize imagenet would look right" in said.value


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", SHOWN)
def test_other_pixels_are_a_remark(networks, name, how):
    (said,) = unlike_training(networks[name], data(SHOWN[how](images(seed=7))))
    assert "do not look like" in said.value


def test_colours_in_another_order_are_named_where_the_images_tell_them_apart(networks):
    reddish = images(seed=3)
    reddish[..., 2] //= 2
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(1))
    network(data(reddish).inputs(slice(None)))
    network[1].momentum = 1.0
    network(data(reddish).inputs(slice(None)))
    network.eval()
    assert not unlike_training(network, data(reddish))
    (said,) = unlike_training(network, data(np.ascontiguousarray(reddish[..., ::-1])))
    assert "red and blue exchanged" in said.value


def test_the_rows_own_normalization_is_named_where_it_is_right():
    network = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(1)), "0.5/0.13")
    (said,) = unlike_training(network, data(images(seed=7), "none"))
    assert "(of these rows themselves) would look right" in said.value


@pytest.mark.parametrize(
    ("mean", "variance", "of", "spread"), [(0, 1, 0, 1), (0, 1, 2, 1), (1, 4, -1, 0.5), (0, 9, 0, 1)]
)
def test_the_distance_is_hellingers(mean, variance, of, spread):
    one, other = stats.norm(mean, variance**0.5), stats.norm(of, spread**0.5)
    overlap, _ = integrate.quad(lambda x: np.sqrt(one.pdf(x) * other.pdf(x)), -40, 40)
    figures = (torch.tensor(float(value)) for value in (mean, variance, of, spread))
    assert seen._hellinger(*figures).item() == pytest.approx(1 - overlap, abs=1e-6)


def test_the_statistics_are_those_of_everything_that_enters_the_layer(networks):
    network, shown = networks["resnet"], data(images(20, seed=7), "half")
    with torch.no_grad():
        entered = network.conv1(shown.inputs(slice(None))).double()
    mean, variance = entered.mean((0, 2, 3)), entered.var((0, 2, 3), correction=0)
    spread = network.bn1.running_var.double() + variance
    overlap = (2 * (network.bn1.running_var.double() * variance).sqrt() / spread).sqrt()
    overlap *= (-((mean - network.bn1.running_mean) ** 2) / (4 * spread)).exp()
    (said,) = unlike_training(network, shown)
    assert f"{1 - overlap.mean().item():.2f} apart" in said.value


def without_statistics():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.LazyLinear(1)
    )


SILENT = {
    "never trained": lambda: torchvision.models.resnet18(num_classes=1),
    "no normalization": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(1)),
    "no statistics": without_statistics,
    "of each image": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(1)),
}


@pytest.mark.parametrize("kind", SILENT)
def test_networks_that_cannot_tell_say_nothing(kind):
    network = SILENT[kind]()
    network(data(images(2)).inputs(slice(None)))
    if kind == "never trained":
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
    assert not unlike_training(network.eval(), data(images(seed=7), "0/0.00392157"))


def test_inputs_that_are_no_images_say_nothing(networks):
    network = nn.Sequential(nn.BatchNorm1d(4, momentum=1.0), nn.Linear(4, 1))
    network(torch.randn(64, 4))
    assert not unlike_training(network.eval(), from_arrays(torch.randn(8, 4) * 100, [0, 1] * 4, [0, 1] * 4))


def test_arrays_are_checked_too_and_nothing_is_proposed_for_them(networks):
    inputs = data(images(seed=7)).inputs(slice(None)) * 5
    (said,) = unlike_training(networks["resnet"], from_arrays(inputs, [0, 1] * 48, [0, 1] * 48))
    assert "would look right" not in said.value


def test_channels_that_died_in_training_do_not_count(networks):
    network = copy.deepcopy(networks["resnet"])
    with torch.no_grad():
        network.bn1.running_var[:32] = 0
    assert not unlike_training(network, data(images(seed=7)))


def test_nothing_of_the_model_changes_and_no_hook_stays(networks):
    network = networks["resnet"].train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    unlike_training(network, data(images(seed=7), "none"))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())
    network.eval()


def test_a_model_that_changes_its_input_in_place_changes_no_rows(networks):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = networks["resnet"]

        def forward(self, x):
            return self.inner(x.mul_(1.0).add_(0.0))

    shown = data(images(seed=7), "none")
    inputs = shown.inputs(slice(None))
    held = from_arrays(inputs, [0, 1] * 48, [0, 1] * 48)
    assert unlike_training(InPlace(), held)
    assert torch.equal(held.inputs(slice(None)), inputs)


def test_the_remark_comes_with_the_first_look_at_a_model(networks):
    shown = data(images(seed=7), "none")
    assert [one.subject for one in settle(copy.deepcopy(networks["resnet"]), shown)] == ["pixels"]


@pytest.mark.ci
@pytest.mark.skipif(not REAL.exists(), reason=f"the shared checkpoint is not at {REAL} (set BMFT_SHARED)")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, False),
        ({"image_size": 32}, False),
        ({"image_size": 224}, False),
        ({"normalize": "imagenet"}, True),
        ({"normalize": "half"}, True),
        ({"normalize": "none"}, True),
        ({"normalize": "0/0.00392157"}, True),
    ],
)
def test_real_images_are_told_from_real_mistakes(tmp_path, options, told):
    table = (SHARED / "data/ham10000-64/metadata.csv").read_text().splitlines()
    rows = [row for row in table[1:] if row.endswith(",fit")][::12]
    (tmp_path / "m.csv").write_text("\n".join([table[0], *rows]))
    how = {"image_size": 64, "normalize": "0.76,0.55,0.57/0.14,0.15,0.17", **options}
    real = {"target": "label", "sensitive": "age_ge60", "images": SHARED / "data/ham10000-64"}
    found = unlike_training(load_checkpoint(REAL), load_manifest(tmp_path / "m.csv", **real, **how))
    assert bool(found) == told
