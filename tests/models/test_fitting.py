"""Networks with other channels, sizes of image and heads than the published ones, recognised by shapes."""

import pytest
import torch
import torchvision
from torch import nn

from benchmarks.forms import deeper_head, grey_resnet
from bmft.errors import ArchitectureError
from bmft.models import build_model, fitted, recognised, shapes_of
from tests.tiers import in_ci


def same(model, found):
    """Whether the network that was found, with the model's weights, answers as the model does."""
    built = found.build().eval()
    built.load_state_dict(model.state_dict())
    channels = next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    images = torch.rand(2, channels, 64, 64)
    with torch.no_grad():
        return torch.equal(built(images), model.eval()(images))


@pytest.mark.parametrize("make", [grey_resnet, *in_ci(deeper_head)])
def test_other_channels_and_a_replaced_head_are_recognised_and_answer_as_before(make):
    model = make()
    assert same(model, recognised(shapes_of(model.state_dict())))


def test_an_activation_that_leaves_no_trace_is_said_to_be_a_guess():
    (said,) = recognised(shapes_of(deeper_head().state_dict())).assumed
    assert said.guess
    assert "Linear, ReLU, Linear" in said.value
    assert said.option == "--arch"


def test_one_layer_after_dropout_is_no_guess():
    (said,) = recognised(shapes_of(grey_resnet().state_dict())).assumed
    assert not said.guess


def test_layers_in_a_row_get_no_activation_between_them():
    model = torchvision.models.resnet18()
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 2))
    assert same(model, recognised(shapes_of(model.state_dict())))


def test_a_head_with_batch_normalization_is_recognised():
    model = torchvision.models.resnet18()
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    assert same(model, recognised(shapes_of(model.state_dict())))


def test_a_whole_classifier_that_became_one_layer_is_recognised():
    model = torchvision.models.mobilenet_v3_small()
    model.classifier = nn.Linear(576, 3)
    found = recognised(shapes_of(model.state_dict()))
    assert same(model, found)
    assert found.outputs == 3


def test_a_head_of_other_layers_is_refused():
    model = torchvision.models.resnet18()
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    with pytest.raises(ArchitectureError, match=r"Nearest: torchvision:resnet18 .*--arch"):
        recognised(shapes_of(model.state_dict()))


def test_another_size_of_image_is_read_off_the_positions():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=80, in_chans=1)
    shapes = shapes_of(model.state_dict())
    assert (
        fitted("timm:vit_tiny_patch16_224", lambda _: shapes).arch == "timm:vit_tiny_patch16_224,in_chans=1,img_size=80"
    )


@pytest.mark.ci
def test_networks_that_share_their_shapes_at_another_size_are_asked_for():
    timm = pytest.importorskip("timm")
    shapes = shapes_of(timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32).state_dict())
    with pytest.raises(ArchitectureError, match=r"timm:vit_tiny_patch16_224,img_size=32.*Say which with --arch"):
        recognised(shapes)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "eva02_tiny_patch14_224"])
def test_networks_whose_own_head_has_no_outputs_get_one(name):
    pytest.importorskip("timm")
    shapes = shapes_of(build_model(f"timm:{name}", num_outputs=2).state_dict())
    found = fitted(f"timm:{name}", lambda _: shapes)
    assert (found.outputs, found.fit.distance) == (2, 0)
