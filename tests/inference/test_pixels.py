"""Pixel attributions: the right cases, the right place in the picture, and models left as they were."""

import io

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from bmft.auditing import Predictions
from bmft.data import GroupedData, from_arrays
from bmft.errors import DataError
from bmft.inference import TILE, ChangedCase, changed_cases, explain_cases, predict
from bmft.tables import Attribute

SEX = Attribute("sex", ("female", "male"))


class Half(nn.Module):
    """Its logit is what a convolution finds in the left or in the right half of the image."""

    def __init__(self, left: bool, outputs: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, outputs)
        self.left = left
        with torch.no_grad():
            self.conv.weight.fill_(0.1)
            self.conv.bias.zero_()
            self.head.bias.zero_()
            self.head.weight.copy_(torch.linspace(-1, 1, outputs)[:, None] if outputs > 1 else torch.ones(1, 4))

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.act(self.conv(images)))
        half = features[..., :8] if self.left else features[..., 8:]
        return self.head(half.mean((2, 3)))


def images(n: int = 12) -> GroupedData:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 3, 16, 16, generator=generator)
    return from_arrays(inputs, [i % 2 for i in range(n)], [i // 2 % 2 for i in range(n)], attributes=[SEX])


def case(index: int = 0, column: int = 0, num_columns: int = 1) -> ChangedCase:
    return ChangedCase(index, index, "sex", "female", column, num_columns, "1", 1, 0.2, 0.8)


def tiles(png: bytes) -> list[np.ndarray]:
    strip = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert strip.shape == (TILE, 3 * TILE + 6, 3)
    return [strip[:, start : start + TILE] for start in (0, TILE + 3, 2 * (TILE + 3))]


def colour(tile: np.ndarray) -> np.ndarray:
    """How far from grey each column of the tile is."""
    return np.asarray((tile.max(2) - tile.min(2)).mean(0))


def scored(scores: list[float], groups: list[int], **fields: object) -> Predictions:
    return Predictions(scores, [1] * len(scores), groups, (SEX,), **fields)


def test_the_cases_are_those_whose_decision_changed_and_whose_score_moved_most():
    before = scored([0.10, 0.40, 0.45, 0.90, 0.60, 0.20], [0, 0, 0, 0, 1, -1])
    after = scored([0.40, 0.90, 0.55, 0.95, 0.30, 0.90], [0, 0, 0, 0, 1, -1])
    found = changed_cases(before, after, per_group=2)
    assert [(each.group, each.index) for each in found] == [("female", 1), ("female", 2), ("male", 4)]
    assert (found[0].score_before, found[0].score_after, found[0].target) == (0.4, 0.9, 1)


def test_no_changed_decision_is_no_case():
    same = scored([0.1, 0.9], [0, 1])
    assert changed_cases(same, same) == []


def test_the_threshold_decides_what_changed():
    before, after = scored([0.1, 0.3], [0, 1]), scored([0.2, 0.4], [0, 1])
    assert changed_cases(before, after) == []
    assert [each.index for each in changed_cases(before, after, threshold=0.35)] == [1]


def test_of_several_classes_the_column_that_moved_most_is_explained():
    classes = ("nv", "mel", "bcc")
    before = Predictions([[0.5, 0.3, 0.2]], [0], [0], (SEX,), task="multiclass", classes=classes)
    after = Predictions([[0.3, 0.1, 0.6]], [0], [0], (SEX,), task="multiclass", classes=classes)
    (found,) = changed_cases(before, after)
    assert (found.label, found.column, found.target) == ("bcc", 2, 0)


def test_predictions_of_other_rows_are_refused():
    with pytest.raises(DataError, match="different rows"):
        changed_cases(scored([0.1], [0]), scored([0.9], [0], rows=np.array([7])))


def test_the_colour_lies_where_each_model_looks():
    (found,) = explain_cases(Half(True), Half(False), images(), [case()])
    picture, before, after = (colour(tile) for tile in tiles(found.png))
    assert before[: TILE // 3].mean() > 20 * before[-TILE // 3 :].mean()
    assert after[-TILE // 3 :].mean() > 20 * after[: TILE // 3].mean()
    assert picture.mean() > 20
    assert before.mean() > 1


def test_both_maps_share_one_scale():
    weak, strong = Half(True), Half(True)
    with torch.no_grad():
        weak.head.weight.mul_(0.05)
    (found,) = explain_cases(weak, strong, images(), [case()])
    _, before, after = (colour(tile).mean() for tile in tiles(found.png))
    assert after > 4 * before


def test_the_models_are_left_as_they_were():
    models = [torchvision.models.resnet18(num_classes=1).train(), torchvision.models.resnet18(num_classes=1).eval()]
    states = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    explain_cases(*models, images(), [case()], steps=2)
    for model, state in zip(models, states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(module.training for module in models[0].modules())
    assert not any(module.training for module in models[1].modules())


def test_two_outputs_of_a_binary_label_are_explained_by_their_difference():
    two, one = Half(True, outputs=2), Half(True)
    with torch.no_grad():
        two.head.weight.copy_(torch.stack([torch.zeros(4), torch.ones(4)]))
    (a,) = explain_cases(two, two, images(), [case()])
    (b,) = explain_cases(one, one, images(), [case()])
    assert a.png == b.png


def test_a_whole_run_from_predictions_to_pictures_is_the_same_twice():
    data, before, after = images(), Half(True).eval(), Half(False).eval()
    for model in (before, after):
        with torch.no_grad():
            model.head.bias -= model(data.inputs(slice(None))).median()
    found = changed_cases(predict(before, data), predict(after, data))
    assert found
    first, second = (explain_cases(before, after, data, found, steps=5) for _ in range(2))
    assert first == second
    assert first[0].text.startswith("sex = female, row ")


def test_grey_images_and_a_constant_image_are_shown():
    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images).mean((1, 2, 3))

    data = from_arrays(
        torch.zeros(1, 1, 16, 16), [1], [0], attributes={"sex": ("female",)}, task="binary", classes=("0", "1")
    )
    (found,) = explain_cases(Grey(), Grey(), data, [case()])
    assert all(tile.max() == 0 for tile in tiles(found.png))


def test_what_cannot_be_explained_is_refused_with_the_reason():
    data, model = images(), Half(True)
    with pytest.raises(DataError, match="not at place 3"):
        explain_cases(model, model, data, [ChangedCase(3, 99, "sex", "female", 0, 1, "1", 1, 0.2, 0.8)])
    flat = from_arrays(torch.zeros(2, 5), [0, 1], [0, 1], attributes=[SEX])
    with pytest.raises(DataError, match="need images"):
        explain_cases(nn.Linear(5, 1), nn.Linear(5, 1), flat, [case()])
