"""From a decoded image to what the network sees, by settings or by a function of one's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from bmft import load_manifest
from bmft.data import Preprocessing, images_from_array
from bmft.errors import ConfigError, DataError

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)


@pytest.fixture
def manifest(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "0.png")
    (tmp_path / "m.csv").write_text("path,y,sex\n0.png,0,f\n0.png,1,m\n0.png,1,f\n")
    return tmp_path / "m.csv"


def inputs(manifest, **options):
    return load_manifest(manifest, target="y", sensitive="sex", **options).inputs(slice(0, 1))[0]


def transform(image):
    return torch.from_numpy(np.array(image)[:4, :6]).permute(2, 0, 1) * -2.5


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("fraction", [1.0, 0.8])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (9, 12), (16, 16)])
def test_the_shorter_side_then_the_centre_is_torchvisions(interpolation, fraction, shape):
    mode = v2.InterpolationMode(interpolation)
    theirs = v2.Compose([v2.Resize(round(16 / fraction), mode), v2.CenterCrop(16)])
    image = IMAGE.transpose(1, 0, 2)[: shape[0], : shape[1]] if shape[0] > shape[1] else IMAGE[: shape[0], : shape[1]]
    image = np.ascontiguousarray(image)
    found = Preprocessing(16, "none", "shorter", fraction, interpolation).prepared(image)
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(theirs(Image.fromarray(image))))


def test_squash_shows_all_and_pad_adds_black(manifest):
    squashed = inputs(manifest, image_size=10, resize="squash", normalize="none")
    theirs = np.asarray(Image.fromarray(IMAGE).resize((10, 10), Image.Resampling.BILINEAR)) / 255
    assert np.allclose(squashed.permute(1, 2, 0), theirs, atol=1e-6)
    padded = inputs(manifest, image_size=10, resize="pad", normalize="none")
    assert padded[:, :2].max() == padded[:, 8:].max() == 0
    assert padded[:, 2:8].min(-1).values.max() > 0


@pytest.mark.parametrize("resize", ["shorter", "squash", "pad"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK"])
def test_every_kind_of_image_is_prepared_as_its_colours_are(manifest, mode, resize):
    image = Image.fromarray(IMAGE).convert(mode)
    image.save(manifest.parent / "0.tiff")
    manifest.write_text("path,y,sex\n0.tiff,0,f\n0.tiff,1,m\n")
    found = inputs(manifest, image_size=8, resize=resize, normalize="none")
    expected = Preprocessing(8, "none", resize).prepared(np.asarray(image.convert("RGB")))
    assert torch.equal((found * 255).round().to(torch.uint8), torch.from_numpy(expected.copy()))
    grey = inputs(manifest, image_size=8, resize=resize, normalize="none", channels=1)
    assert grey.shape == (1, 8, 8)


def test_half_is_from_minus_one_to_one(manifest):
    expected = v2.Normalize([0.5] * 3, [0.5] * 3)(torch.from_numpy(IMAGE).permute(2, 0, 1) / 255)
    assert torch.allclose(inputs(manifest, normalize="half"), expected, atol=1e-6)


def test_an_npz_is_prepared_as_files_are(tmp_path, manifest):
    np.savez(tmp_path / "images.npz", images=np.stack([IMAGE] * 3))
    how = {"image_size": 12, "resize": "pad", "crop_fraction": 0.8, "interpolation": "bicubic", "normalize": "half"}
    assert torch.equal(inputs(manifest, images=tmp_path / "images.npz", **how), inputs(manifest, **how))


@pytest.mark.parametrize("cache", [0, 1 << 20])
@pytest.mark.parametrize("made", [lambda tensor: tensor, lambda tensor: tensor.numpy().astype(np.float64)])
def test_a_transform_of_ones_own_is_used_as_it_is(manifest, cache, made):
    found = inputs(manifest, transform=lambda image: made(transform(image)), cache_bytes=cache)
    assert torch.equal(found, transform(IMAGE))
    assert found.dtype == torch.float32


def test_a_transform_is_named_in_what_is_assumed(manifest):
    data = load_manifest(manifest, target="y", sensitive="sex", transform=transform)
    assert [one.value for one in data.assumed if one.subject == "pixels"] == [
        f"prepared by {transform.__module__}:transform"
    ]
    data = load_manifest(manifest, target="y", sensitive="sex", transform=v2.Compose([v2.PILToTensor()]))
    assert "Compose" in next(one.value for one in data.assumed if one.subject == "pixels")


WRONG = {
    "nothing": (lambda image: None, "gives a NoneType"),
    "an image": (lambda image: image, "gives a Image"),
    "text": (lambda image: np.array(["a"]), "gives a ndarray"),
    "flat": (lambda image: torch.zeros(7), r"gives \(7,\)"),
    "a batch": (lambda image: torch.zeros(1, 3, 4, 4), r"gives \(1, 3, 4, 4\)"),
    "channels last": (lambda image: torch.zeros(4, 4, 3), r"gives \(4, 4, 3\)"),
    "empty": (lambda image: torch.zeros(3, 0, 4), r"gives \(3, 0, 4\)"),
    "complex": (lambda image: torch.zeros(3, 4, 4, dtype=torch.complex64), r"gives \(3, 4, 4\)"),
}


@pytest.mark.parametrize("cache", [0, 1 << 20])
@pytest.mark.parametrize("kind", WRONG)
def test_a_transform_that_gives_no_tensor_of_the_right_shape_is_refused(manifest, kind, cache):
    wrong, reason = WRONG[kind]
    with pytest.raises(DataError, match=rf"0\.png: the transform {reason}: expected a tensor \(3, height, width\)"):
        inputs(manifest, transform=wrong, cache_bytes=cache)
    with pytest.raises(DataError, match=reason):
        images_from_array(IMAGE[None], how=Preprocessing(transform=wrong), channels=3)


def test_a_transform_that_fails_on_some_images_lists_them(manifest):
    Image.fromarray(IMAGE[:20]).save(manifest.parent / "1.png")
    manifest.write_text("path,y,sex\n0.png,0,f\n1.png,1,m\n0.png,1,f\n")

    def picky(image):
        return torch.zeros(3, 4, 4) if image.height == 30 else None

    with pytest.raises(DataError, match=r"row 1: .*1\.png.*gives a NoneType"):
        inputs(manifest, transform=picky)
    data = load_manifest(manifest, target="y", sensitive="sex", transform=picky, on_bad_image="skip")
    assert (len(data), data.skipped) == (2, 1)


def test_a_transform_that_gives_several_shapes_is_refused(manifest, tmp_path):
    Image.fromarray(IMAGE[:20]).save(tmp_path / "1.png")
    manifest.write_text("path,y,sex\n0.png,0,f\n1.png,1,m\n0.png,1,f\n")
    with pytest.raises(DataError, match="A transform has to do that"):
        inputs(manifest, transform=v2.PILToTensor())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"transform": transform, "normalize": "half"}, "leave out --normalize"),
        ({"transform": transform, "image_size": 8, "resize": "pad"}, "leave out --image-size, --resize"),
        ({"resize": "stretch"}, "expected shorter, squash, pad"),
        ({"interpolation": "area"}, "expected nearest, bilinear, bicubic, lanczos"),
        ({"crop_fraction": 0.0}, "more than 0"),
        ({"crop_fraction": 1.5}, "at most 1"),
        ({"image_size": 0}, "positive"),
        ({"normalize": "caffe"}, "expected imagenet"),
    ],
)
def test_settings_that_make_no_sense_are_refused(manifest, options, reason):
    with pytest.raises(ConfigError, match=reason):
        inputs(manifest, **options)
