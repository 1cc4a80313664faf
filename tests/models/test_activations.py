import copy
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from bmft.data import from_arrays
from bmft.errors import ArchitectureError
from bmft.methods import debias
from bmft.models import Activations, tail_above
from tests.tiers import in_ci

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small(name, **options):
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(num_classes=1, weights=None, **options).eval()


@pytest.mark.parametrize(
    ("name", "moving", "entry"),
    [
        ("resnet18", "layer4.1.conv2.weight", "layer4.1"),
        ("resnet18", "layer3.0.downsample.0.weight", "layer3.0"),
        ("resnet18", "fc.bias", "fc"),
        ("mobilenet_v3_small", "features.11.block.0.0.weight", "features.11"),
        *in_ci(
            ("densenet121", "features.denseblock4.denselayer16.conv2.weight", "features.denseblock4"),
            ("convnext_tiny", "features.7.2.block.0.weight", "features.7.2"),
            ("swin_v2_t", "features.7.1.mlp.0.weight", "features.7.1"),
        ),
    ],
)
def test_the_tail_of_a_network_gives_the_networks_answer(name, moving, entry):
    model = small(name)
    with torch.no_grad():
        whole = model(IMAGES)
    tail = tail_above(model, [moving], IMAGES)
    assert tail is not None
    assert tail.entry == entry
    with torch.no_grad():
        assert torch.equal(tail(tail.entering(IMAGES)), whole)


def test_a_vision_transformers_upper_blocks_are_a_tail():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(64, 16, 3, 2, 24, 48, num_classes=1).eval()
    tail = tail_above(model, ["encoder.layers.encoder_layer_2.mlp.0.weight"], IMAGES)
    assert tail is not None
    assert tail.entry == "encoder.layers.encoder_layer_2", "what enters further up is not all that passes upwards"
    with torch.no_grad():
        # torchvision's head starts as zeros, which hid that.
        model.heads.head.weight.normal_()
        assert torch.equal(tail(tail.entering(IMAGES)), model(IMAGES))


def test_nothing_below_the_entry_runs_and_every_module_is_put_back():
    model, ran = small("resnet18"), []
    tail = tail_above(model, ["layer4.0.conv1.weight"], IMAGES)
    activations = tail.entering(IMAGES)
    model.layer2[0].conv1.register_forward_hook(lambda *_: ran.append(True))
    with torch.no_grad():
        tail(activations)
    assert not ran
    with torch.no_grad():
        assert torch.equal(model(IMAGES), tail(activations))
    assert ran
    assert not any("forward" in vars(module) for module in model.modules())


def test_nothing_above_the_entry_runs_for_the_activations_that_enter_it():
    model, ran = small("resnet18"), []
    tail = tail_above(model, ["layer3.0.conv1.weight"], IMAGES)
    for layer in (model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda module, *_: ran.append(module))
    entering = tail.entering(IMAGES)
    assert ran == [model.layer2]
    assert entering.shape == (4, 128, 8, 8)
    assert not model.layer3[0]._forward_pre_hooks


class Skipping(nn.Module):
    """What the first layer gives passes by the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, inputs):
        low = self.first(inputs)
        return self.third(self.second(low) + low)


def test_a_skip_connection_is_not_cut():
    torch.manual_seed(0)
    model, inputs = Skipping(), torch.rand(4, 4)
    assert tail_above(model, ["second.weight"], inputs) is None
    assert tail_above(model, ["third.weight"], inputs).entry == "third"


class Sometimes(Skipping):
    """The second layer is for small batches."""

    def forward(self, inputs):
        low = self.first(inputs)
        return self.third(self.second(low) if len(inputs) < 5 else low)


def test_a_model_that_leaves_the_entry_out_for_some_inputs_is_an_error():
    tail = tail_above(Sometimes(), ["second.weight"], torch.ones(3, 4))
    assert tail.entry == "second"
    with pytest.raises(ArchitectureError, match=r"'second' for some inputs only: let every block move"):
        tail.entering(torch.ones(5, 4))


def test_there_is_no_tail_where_the_lowest_layer_moves():
    assert tail_above(small("resnet18"), ["conv1.weight", "layer4.1.conv2.weight"], IMAGES) is None


def test_gradients_of_the_tail_are_those_of_the_network():
    model = small("resnet18")
    tail = tail_above(model, ["layer4.0.conv1.weight"], IMAGES)
    weight = model.layer4[0].conv1.weight
    found = [torch.autograd.grad(run.sum(), weight)[0] for run in (model(IMAGES), tail(tail.entering(IMAGES)))]
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)


def images(n=24):
    torch.manual_seed(1)
    targets, groups = torch.arange(n) % 2, torch.arange(n) // 2 % 2
    pixels = torch.randn(n, 3, 16, 16) + targets[:, None, None, None] + 0.5 * groups[:, None, None, None]
    return from_arrays(pixels, targets, groups)


def test_activations_are_computed_once_per_set_and_weights_and_within_the_limit():
    model, data = small("resnet18"), images()
    tail = tail_above(model, ["layer4.0.conv1.weight"], data.inputs(slice(0, 4)))
    kept = Activations()
    first = kept.of(tail, data)
    assert kept.of(tail, data) is first
    with torch.no_grad():
        model.layer4[0].conv1.weight.add_(1)
    assert kept.of(tail, data) is first, "what moves above the entry changes nothing below it"
    with torch.no_grad():
        model.layer1[0].conv1.weight.add_(1)
    assert kept.of(tail, data) is not first
    assert Activations(limit=1000, on_disk=1000).of(tail, data) is None


def test_what_finds_no_room_in_memory_is_mapped_from_a_file_that_nothing_names(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, data = small("resnet18"), images()
    tail = tail_above(model, ["layer4.0.conv1.weight"], data.inputs(slice(0, 4)))
    in_memory, on_disk = Activations().of(tail, data), Activations(limit=0).of(tail, data, batch_size=7)
    torch.testing.assert_close(on_disk.inputs(slice(0, 24)), in_memory.inputs(slice(0, 24)))
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_filled_takes_no_room():
    model, data = small("resnet18"), images()
    tail = tail_above(model, ["layer4.0.conv1.weight"], data.inputs(slice(0, 4)))
    size = Activations().of(tail, data).inputs(slice(0, 24)).nbytes
    kept, enter = Activations(limit=size, on_disk=0), tail.entering

    def full(inputs):
        if len(inputs) > 1:
            raise torch.OutOfMemoryError
        return enter(inputs)

    tail.entering = full
    with pytest.raises(torch.OutOfMemoryError):
        kept.of(tail, data)
    tail.entering = enter
    assert kept.of(tail, data) is not None


def test_a_disk_without_room_is_no_failure(monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    model, data = small("resnet18"), images()
    tail = tail_above(model, ["layer4.0.conv1.weight"], data.inputs(slice(0, 4)))
    with caplog.at_level("INFO", logger="bmft.models.activations"):
        assert Activations(limit=0).of(tail, data) is None
    assert "No space left" in caplog.text


@pytest.mark.ci
def test_a_debiasing_that_leaves_the_lower_blocks_alone_is_the_same_without_the_cache(monkeypatch, few_steps):
    model, data = small("resnet18"), images()
    with torch.no_grad():
        model.fc.bias -= model(data.inputs(slice(0, 24))).median()
    config = {"tune": ["layer4.*"], "epochs": [2, 1], "precision": "float32", "fraction": 0.3, "path": [1.0]}

    def run():
        return debias(
            copy.deepcopy(model), data, data, config=config, keep="last", device="cpu", allow_shared_rows=True
        )

    ran = []
    handle = torchvision.models.resnet.BasicBlock.forward
    monkeypatch.setattr(
        torchvision.models.resnet.BasicBlock, "forward", lambda self, x: (ran.append(True), handle(self, x))[1]
    )
    with_cache = run()
    few = len(ran)
    monkeypatch.setattr("bmft.methods.run.tail_above", lambda *_, **__: None)
    without = run()
    assert few < len(ran) - few
    for name, tensor in with_cache.model.state_dict().items():
        assert torch.allclose(tensor, without.model.state_dict()[name], rtol=1e-3, atol=1e-5), name
