"""What a checkpoint, or a file beside it, says about its pixels."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from bmft import load_manifest, read_checkpoint
from bmft.data import Preprocessing

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
HALF = {"mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def manifest(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "0.png")
    (tmp_path / "m.csv").write_text("path,y,sex\n0.png,0,f\n0.png,1,m\n0.png,1,f\n")
    return tmp_path / "m.csv"


def read(folder, **beside):
    torch.save({"state_dict": {"fc.weight": torch.ones(2)}, **beside}, folder / "m.pt")
    return read_checkpoint(folder / "m.pt")


def inputs(manifest, **options):
    return load_manifest(manifest, target="y", sensitive="sex", **options)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("fraction", [1.0, 0.875])
def test_timms_configuration_gives_timms_own_transform(tmp_path, manifest, mode, fraction):
    data = pytest.importorskip("timm.data")
    if (mode, fraction) == ("border", 0.875):
        pytest.skip("timm cuts the border off again, and we add it")
    config = {"input_size": [3, 16, 16], "interpolation": "bicubic", "crop_pct": fraction, "crop_mode": mode, **HALF}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": config}))
    checkpoint = read(tmp_path)
    found = inputs(manifest, known=checkpoint.pixels, known_from=checkpoint.pixels_from)
    theirs = data.create_transform(**{**config, "input_size": (3, 16, 16)})(Image.fromarray(IMAGE))
    if mode != "border":
        assert torch.allclose(found.inputs(slice(0, 1))[0], theirs, atol=1e-5)
    assert found.inputs(slice(0, 1)).shape == (1, 3, 16, 16)
    (one,) = [one for one in found.assumed if not one.guess]
    assert (one.subject, one.source) == ("pixels", "timm's config.json beside the checkpoint")


def test_torchvisions_weights_by_name_give_torchvisions_own_transform(tmp_path, manifest):
    checkpoint = read(tmp_path, args={"weights": "ResNet50_Weights.IMAGENET1K_V2"})
    found = inputs(manifest, known=checkpoint.pixels).inputs(slice(0, 1))[0]
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms(antialias=True)(Image.fromarray(IMAGE))
    assert torch.allclose(found, theirs, atol=1e-5)


@pytest.mark.parametrize("where", ["args", "hyper_parameters", "config"])
def test_hyper_parameters_say_it(tmp_path, where):
    checkpoint = read(tmp_path, **{where: {"img_size": 32, **HALF}})
    assert (checkpoint.pixels.image_size, checkpoint.pixels.normalize) == (32, "0.5,0.5,0.5/0.25,0.25,0.25")
    assert checkpoint.pixels_from == f"the checkpoint's {where}"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": {"height": 8, "width": 8}, "resample": 2}, Preprocessing(8, None, "squash", None, "bilinear")),
        (
            {"size": {"shortest_edge": 10}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
            Preprocessing(8, None, "shorter", 0.8),
        ),
        ({"do_normalize": False, "do_resize": False}, Preprocessing(normalize="none")),
    ],
)
def test_a_hugging_face_processor_beside_the_file_is_read(tmp_path, said, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert read(tmp_path).pixels == expected


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mean": "x"}', '{"size": -3, "image_mean": [1], "crop_pct": 7}'])
def test_what_makes_no_sense_says_nothing(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert read(tmp_path).pixels is None


def test_options_come_before_what_is_known_and_that_before_imagenets(manifest):
    known = Preprocessing(normalize="0.5/0.5", image_size=8)
    assert inputs(manifest, known=known, normalize="none").inputs(slice(0, 1)).min() >= 0
    assert inputs(manifest, known=known).inputs(slice(0, 1)).max() <= 1
    guessed = [one for one in inputs(manifest).assumed if one.subject == "pixels"]
    assert [one.guess for one in guessed] == [True]
    assert "imagenet" in guessed[0].value
    assert not [one for one in inputs(manifest, normalize="none").assumed if one.subject == "pixels"]


def test_squash_shows_all_and_pad_adds_black(manifest):
    squashed = inputs(manifest, image_size=10, resize="squash", normalize="none").inputs(slice(0, 1))[0]
    theirs = np.asarray(Image.fromarray(IMAGE).resize((10, 10), Image.Resampling.BILINEAR)) / 255
    assert np.allclose(squashed.permute(1, 2, 0), theirs, atol=1e-6)
    padded = inputs(manifest, image_size=10, resize="pad", normalize="none").inputs(slice(0, 1))[0]
    assert padded[:, :2].max() == padded[:, 8:].max() == 0
    assert padded[:, 2:8].min(-1).values.max() > 0


@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_a_transform_of_ones_own_is_used_as_it_is(manifest, cache):
    def transform(image):
        return torch.from_numpy(np.array(image)[:4, :6]).permute(2, 0, 1) * -2.5

    found = inputs(manifest, transform=transform, cache_bytes=cache).inputs(slice(0, 1))[0]
    assert torch.equal(found, transform(IMAGE))
