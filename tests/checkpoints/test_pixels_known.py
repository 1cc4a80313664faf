"""What a checkpoint, or a file beside it, says about its pixels; the libraries that wrote it are the oracle."""

import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from bmft import load_manifest, read_checkpoint
from bmft.checkpoints import processors
from bmft.data import Preprocessing
from bmft.errors import ConfigError, MissingExtraError

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
HALF = {"mean": [0.5] * 3, "std": [0.25] * 3}
NUMBERS = "0.5,0.5,0.5/0.25,0.25,0.25"
SHAPES = {
    "wide": IMAGE,
    "tall": IMAGE.transpose(1, 0, 2),
    "smaller than the cut": IMAGE[:9, :12],
    "square": IMAGE[:, :30],
}


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


def shown(manifest, checkpoint, image=IMAGE, **options):
    """What the network sees of one image."""
    Image.fromarray(image).save(manifest.parent / "0.png")
    return inputs(manifest, known=checkpoint.pixels, **options).inputs(slice(0, 1))[0]


def about_pixels(data):
    return [one for one in data.assumed if one.subject == "pixels"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("fraction", [1.0, 0.875])
def test_timms_configuration_gives_timms_own_transform(tmp_path, manifest, mode, fraction, shape):
    data = pytest.importorskip("timm.data")
    config = {"input_size": [3, 16, 16], "interpolation": "bicubic", "crop_pct": fraction, "crop_mode": mode, **HALF}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": config}))
    theirs = data.create_transform(**data.resolve_data_config({}, pretrained_cfg=config))
    found = shown(manifest, read(tmp_path), SHAPES[shape])
    assert torch.allclose(found, theirs(Image.fromarray(SHAPES[shape])), atol=1e-5)


def test_a_folder_with_timms_configuration_in_it_is_read(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"input_size": [3, 16, 16], "crop_pct": 1.0, "crop_mode": "squash", **HALF}
    (folder / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": config}))
    save_file({"fc.weight": torch.ones(2)}, folder / "model.safetensors")
    assert read_checkpoint(folder).pixels[0] == Preprocessing(16, NUMBERS, "squash", 1.0, "bicubic")
    # Beside a file of weights in it, too.
    assert read_checkpoint(folder / "model.safetensors").pixels == read_checkpoint(folder).pixels


def test_what_timms_configuration_leaves_out_is_as_timm_takes_it(tmp_path, manifest):
    data = pytest.importorskip("timm.data")
    config = {"input_size": [3, 16, 24]}
    theirs = data.create_transform(**data.resolve_data_config({}, pretrained_cfg=config))
    assert torch.allclose(
        shown(manifest, read(tmp_path, pretrained_cfg=config)), theirs(Image.fromarray(IMAGE)), atol=1e-5
    )


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_without_timm_its_configuration_gives_the_same(tmp_path, manifest, mode, monkeypatch):
    data = pytest.importorskip("timm.data")
    config = {"input_size": [3, 16, 16], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": mode, **HALF}
    monkeypatch.setattr(processors, "find_spec", lambda name: None)
    theirs = data.create_transform(**data.resolve_data_config({}, pretrained_cfg=config))
    assert torch.allclose(
        shown(manifest, read(tmp_path, pretrained_cfg=config)), theirs(Image.fromarray(IMAGE)), atol=1e-5
    )


@pytest.mark.parametrize("config", [{"input_size": [3, 16, 24]}, {"input_size": [3, 16, 16], "crop_mode": "border"}])
def test_what_only_timm_can_do_is_refused_without_it(tmp_path, manifest, config, monkeypatch):
    monkeypatch.setattr(processors, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bmft\[timm\]'.*say --transform"):
        shown(manifest, read(tmp_path, pretrained_cfg=config))


@pytest.mark.parametrize("given", [{"mean": None, "img_size": None}, {"mean": [0.1] * 3, "img_size": 48}])
def test_a_checkpoint_of_timms_training_script_means_timms_defaults(tmp_path, manifest, given):
    timm = pytest.importorskip("timm")
    args = {"model": "vit_tiny_patch16_224", "std": given["mean"], "crop_pct": None, "interpolation": "", **given}
    theirs = timm.data.resolve_data_config(args, pretrained_cfg=timm.get_pretrained_cfg(args["model"]).to_dict())
    expected = timm.data.create_transform(**theirs)(Image.fromarray(IMAGE))
    checkpoint = read(tmp_path, args=Namespace(**args))
    assert torch.allclose(shown(manifest, checkpoint), expected, atol=1e-5)
    assert "vit_tiny" in checkpoint.pixels[1]


@pytest.mark.parametrize("name", ["ResNet50_Weights.IMAGENET1K_V2", "ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1"])
@pytest.mark.parametrize("shape", SHAPES)
def test_torchvisions_weights_by_name_give_torchvisions_own_transform(tmp_path, manifest, name, shape):
    theirs = torchvision.models.get_weight(name).transforms()(Image.fromarray(SHAPES[shape]))
    found = shown(manifest, read(tmp_path, args={"weights": name}), SHAPES[shape])
    assert torch.allclose(found, theirs, atol=1e-5)


def test_a_weights_entry_named_beside_its_network_is_that_networks(tmp_path):
    known, source = read(tmp_path, args={"model": "resnet50", "weights": "DEFAULT"}).pixels
    assert (known.image_size, known.crop_fraction, known.interpolation) == (224, 224 / 232, "bilinear")
    assert source == "torchvision's ResNet50_Weights.IMAGENET1K_V2, which the checkpoint's args names"


def test_hyper_parameters_come_before_the_weights_they_started_from(tmp_path):
    known, _ = read(tmp_path, args={"weights": "ResNet18_Weights.DEFAULT", "img_size": 64, **HALF}).pixels
    assert (known.image_size, known.normalize, known.crop_fraction) == (64, NUMBERS, 0.875)


@pytest.mark.parametrize("where", ["args", "hyper_parameters", "config"])
def test_hyper_parameters_say_it(tmp_path, where):
    known, source = read(tmp_path, **{where: {"img_size": 32, **HALF}}).pixels
    assert (known, source) == (Preprocessing(32, NUMBERS), f"the checkpoint's {where}")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"image_mean": [0.5], "image_std": [0.25]}, Preprocessing(normalize="0.5/0.25")),
        ({"mean": torch.tensor([0.5] * 3), "std": torch.tensor([0.25] * 3)}, Preprocessing(normalize=NUMBERS)),
        (
            {"mean": np.full(3, 0.5), "std": np.full(3, 0.25), "img_size": np.int64(32), "crop_pct": np.zeros(9)},
            Preprocessing(32, NUMBERS),
        ),
        ({"mean": [127.5] * 3, "std": [63.75] * 3}, Preprocessing(normalize=NUMBERS)),
        ({"val_crop_size": 224, "val_resize_size": 256}, Preprocessing(224, crop_fraction=0.875)),
        ({"mean": [0.5] * 3}, None),
        ({"mean": "x", "std": [1, 2], "img_size": True, "crop_pct": 7}, None),
    ],
)
def test_hyper_parameters_have_several_names_and_may_make_no_sense(tmp_path, said, expected):
    assert read(tmp_path, args=said).pixels[0] == expected


def test_the_metadata_of_a_safetensors_file_is_text(tmp_path):
    config = json.dumps({"input_size": [3, 16, 16], "crop_mode": "squash", "crop_pct": 1.0, **HALF})
    save_file({"fc.weight": torch.ones(2)}, tmp_path / "m.safetensors", metadata={"pretrained_cfg": config})
    known, source = read_checkpoint(tmp_path / "m.safetensors").pixels
    assert known == Preprocessing(16, NUMBERS, "squash", 1.0, "bicubic")
    assert source == "the checkpoint's pretrained_cfg"


SIZED = {"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
PROCESSORS = [
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, **SIZED},
    {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 20},
        "crop_size": {"height": 16, "width": 16},
        "do_center_crop": True,
        **SIZED,
    },
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 16}, "crop_pct": 0.8, **SIZED},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.8, **SIZED},
    {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        **SIZED,
        "rescale_factor": 1 / 127.5,
    },
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, **SIZED, "do_normalize": False},
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, **SIZED, "do_rescale": False},
]


@pytest.mark.parametrize("itself", [True, False], ids=["itself", "by its settings"])
@pytest.mark.parametrize("said", PROCESSORS)
def test_a_hugging_face_processor_beside_the_file_is_used(tmp_path, manifest, said, itself, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="the oracle, which bmft does not need, is not installed")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(Image.fromarray(IMAGE), return_tensors="pt")
    if not itself:
        monkeypatch.setattr(processors, "find_spec", lambda name: None)
    found = shown(manifest, read(tmp_path))
    # Of the settings alone the last step of 255 may differ, as pixels are resized by another library.
    tolerance = (
        1e-4 if itself else 1.1 / 255 / 0.25 * (255 if "do_rescale" in said else 2 if "rescale_factor" in said else 1)
    )
    assert torch.allclose(found, theirs["pixel_values"][0], atol=tolerance)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": {"height": 8, "width": 8}, "resample": 2}, Preprocessing(8, None, "squash", None, "bilinear")),
        (
            {"size": {"shortest_edge": 10}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
            Preprocessing(8, None, "shorter", 0.8),
        ),
        ({"do_normalize": False, "do_resize": False}, Preprocessing(normalize="none")),
        ({"image_processor": {"do_normalize": False, "do_resize": False}}, Preprocessing(normalize="none")),
        ({"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 127.5}, Preprocessing(normalize="0.25/0.25")),
        ({"do_rescale": False, "do_normalize": False}, Preprocessing(normalize="0/0.00392156863")),
    ],
)
def test_the_settings_of_a_hugging_face_processor_are_read(tmp_path, said, expected, monkeypatch):
    monkeypatch.setattr(processors, "find_spec", lambda name: None)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert read(tmp_path).pixels == (expected, "preprocessor_config.json beside the checkpoint")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"do_pad": True}, "has do_pad"),
        ({"size": 224}, "resizes to 224"),
        ({"size": {"longest_edge": 224}}, "resizes to"),
        ({"size": {"shortest_edge": 224}}, "resizes to"),
        ({"size": -3}, "resizes to -3"),
    ],
)
def test_what_only_the_processor_can_do_is_refused_without_it(tmp_path, manifest, said, reason, monkeypatch):
    monkeypatch.setattr(processors, "find_spec", lambda name: None)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(MissingExtraError, match=rf"{re.escape(reason)}.*pip install 'bmft\[transformers\]'"):
        shown(manifest, read(tmp_path))
    with pytest.raises(
        ConfigError, match=r"--image-size: .* cannot be combined .* --resize, --crop-fraction, --interpolation"
    ):
        shown(manifest, read(tmp_path), image_size=8)
    options = {"image_size": 8, "resize": "squash", "crop_fraction": 1.0, "interpolation": "bilinear"}
    assert shown(manifest, read(tmp_path), **options).shape == (3, 8, 8)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"mean": "x"}', "\ufeff{}"])
def test_a_file_beside_it_that_says_nothing_says_nothing(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert read(tmp_path).pixels == (None, "")


def test_options_come_before_what_is_known_and_that_before_imagenets(manifest):
    known = (Preprocessing(normalize="0.5/0.5", image_size=8), "the file")
    assert inputs(manifest, known=known, normalize="none").inputs(slice(0, 1)).min() >= 0
    assert inputs(manifest, known=known).inputs(slice(0, 1)).max() <= 1
    (guessed,) = about_pixels(inputs(manifest))
    assert guessed.guess
    assert "imagenet" in guessed.value
    assert not about_pixels(inputs(manifest, normalize="none"))


def test_what_is_known_is_told_with_its_source_and_what_is_left_as_a_guess(manifest):
    known = (Preprocessing(image_size=8, resize="squash"), "the file")
    found, guessed = about_pixels(inputs(manifest, known=known))
    assert (found.value, found.source, found.guess) == ("image size 8, resized by both sides", "the file", False)
    assert (guessed.value, guessed.guess) == ("normalized by imagenet, crop fraction 1, bilinear", True)
    assert guessed.option == "--normalize, --crop-fraction, --interpolation, --transform"


@pytest.mark.parametrize(("size", "told"), [(30, False), (20, True)])
def test_how_images_are_resized_is_a_guess_only_where_they_are(manifest, size, told):
    Image.fromarray(IMAGE[:, :30]).save(manifest.parent / "0.png")
    found = about_pixels(inputs(manifest, image_size=size, normalize="half"))
    assert [one.value for one in found] == [
        "resized by the shorter side, centre cut out, crop fraction 1, bilinear"
    ] * told
