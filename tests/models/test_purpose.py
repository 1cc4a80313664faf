"""What is no classifier of images says what it is."""

import pytest
import torch
import torchvision
from torch import nn

from bmft.errors import ArchitectureError
from bmft.models import answer_to_an_image, outline, purpose_of, shapes_of
from tests.tiers import in_ci

NONE = {"weights": None, "weights_backbone": None}
NAMES = sorted(torchvision.models.list_models(module=torchvision.models))


def outlined(make):
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize(
    ("make", "does"),
    [
        (lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(**NONE), "segments images"),
        (lambda: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(**NONE), "segments images"),
        (lambda: torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn(**NONE), "detects objects"),
        (lambda: torchvision.models.detection.ssdlite320_mobilenet_v3_large(**NONE), "detects objects"),
        (lambda: torchvision.models.video.r3d_18(), "takes volumes, of three dimensions"),
    ],
)
def test_weights_of_other_kinds_are_told_by_their_names(make, does):
    assert purpose_of(shapes_of(outlined(make).state_dict())) == does


@pytest.mark.parametrize("name", ["resnet18", *in_ci(*(name for name in NAMES if name != "resnet18"))])
def test_no_classifier_of_torchvision_is_taken_for_something_else(name):
    assert purpose_of(shapes_of(outline(f"torchvision:{name}").state_dict())) is None


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, image, table):
        return self.fc(table)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Conv2d(3, 2, 1), r"Conv2d segments or makes images \(it answers with 2x224x224"),
        (nn.Conv3d(1, 2, 1), "takes volumes, of three dimensions"),
        (torchvision.models.detection.ssdlite320_mobilenet_v3_large(**NONE), "SSD detects objects"),
        (nn.Sequential(nn.Conv2d(3, 4, 32, 32), nn.Flatten(2)), r"answers 2 images with \(2, 4, 49\)"),
    ],
)
def test_an_answer_that_is_no_classes_is_refused_by_what_it_is(model, said):
    with pytest.raises(ArchitectureError, match=said):
        answer_to_an_image(model)


def test_a_network_of_a_size_of_its_own_is_run_at_that():
    model = nn.Sequential(nn.Conv2d(1, 4, 32, 32), nn.Flatten(), nn.Linear(4, 3))
    assert answer_to_an_image(model) == "3 outputs for an image of 1 x 32 x 32"


def test_a_network_of_two_inputs_is_said_not_to_run():
    assert "could not be run" in answer_to_an_image(Two())


def test_running_leaves_the_network_and_the_random_numbers_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    answer_to_an_image(model)
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
