"""One image file decoded to uint8, and a set of them in memory or streamed."""

import contextlib
import io
import logging
import sys
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2

from bmft.data import DecodedImages, images_from_array
from bmft.data.images import decode_image
from bmft.data.preprocessing import Preprocessing
from bmft.data.sources import StreamedImages, load_images
from bmft.data.transforms import parse_normalization
from bmft.errors import ConfigError, DataError, MissingExtraError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
SMOOTH = (np.indices((40, 63)).sum(0)[..., None] * np.array([1, 2, 0.5])).astype(np.uint8)


def encode(array, format="PNG", mode=None, **options):
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, format, **options)
    return buffer.getvalue()


def dicom(stored=None, **elements):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    stored = np.arange(12, dtype=np.int16).reshape(3, 4) * 100 if stored is None else stored
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID)
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *stored.shape[:2], 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = stored.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_lossless_files_come_back_as_they_were(format):
    assert np.array_equal(decode_image(encode(PIXELS, format)), PIXELS)


def test_a_jpeg_comes_back_close():
    decoded = decode_image(encode(SMOOTH, "JPEG", quality=95)).astype(int)
    assert np.abs(decoded - SMOOTH).mean() < 2


def test_a_grey_image_fills_three_channels_or_one():
    grey = PIXELS[..., 0]
    assert np.array_equal(decode_image(encode(grey)), np.stack([grey] * 3, axis=2))
    assert np.array_equal(decode_image(encode(grey), channels=1), grey[..., None])


def test_a_16_bit_image_is_scaled_by_its_full_range():
    deep = np.array([[0, 200, 257, 32896, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        assert decode_image(encode(deep, format), channels=1)[0, :, 0].tolist() == [0, 1, 1, 128, 255]


def test_a_float_tiff_is_scaled_from_0_to_1_and_refused_beyond():
    assert decode_image(encode(np.array([[0, 0.5, 1]], np.float32), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(DataError, match="from 0 to 2 where 0 to 1 were expected"):
        decode_image(encode(np.array([[0.0, 2.0]], np.float32), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    data = encode(PIXELS, "TIFF" if mode == "CMYK" else "PNG", mode)
    assert decode_image(data).shape == PIXELS.shape


def test_alpha_is_dropped_and_not_blended():
    clear = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    assert np.array_equal(decode_image(encode(clear)), PIXELS)


def test_a_transparent_palette_gives_no_warning():
    assert decode_image(encode(PIXELS, "PNG", "P", transparency=b"\0\1\2")).shape == PIXELS.shape


def sized(pixels, size):
    return Preprocessing(image_size=size).prepared(pixels).transpose(1, 2, 0)


@pytest.mark.parametrize("size", [8, 20, 40, 64])
def test_the_resize_and_the_cut_are_torchvisions(size):
    expected = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])(Image.fromarray(SMOOTH))
    assert np.array_equal(sized(decode_image(encode(SMOOTH)), size), np.asarray(expected))


def test_several_frames_are_refused():
    frames = [Image.fromarray(PIXELS)] * 2
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="2 frames where one image was expected"):
        decode_image(buffer.getvalue())


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", encode(PIXELS)[:-40]])
def test_what_is_no_image_is_a_data_error(data):
    with pytest.raises(DataError):
        decode_image(data)


DAMAGED = {
    "png": encode(PIXELS),
    "jpeg": encode(PIXELS, "JPEG"),
    "tiff": encode(PIXELS, "TIFF"),
    "gif": encode(PIXELS, "GIF", "P"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", DAMAGED)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damage_is_decoded_or_a_data_error_but_never_another(kind, data):
    damaged = bytearray(DAMAGED[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for content in (bytes(damaged), bytes(damaged[:cut])):
        with contextlib.suppress(DataError):
            assert decode_image(content).dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_dicom_is_decoded_or_a_data_error_but_never_another(data):
    damaged = bytearray(dicom())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(132, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        assert decode_image(bytes(damaged)).dtype == np.uint8


def test_dicom_without_a_window_uses_its_own_range_after_rescaling():
    decoded = decode_image(dicom(RescaleSlope=2, RescaleIntercept=-1024), channels=1)[..., 0]
    assert decoded.flatten().tolist() == [round(255 * i / 11) for i in range(12)]


def test_a_dicom_window_clips_as_the_standard_says():
    stored = np.array([[0, 100, 160, 400]], np.uint16)
    data = dicom(stored, RescaleSlope=1, RescaleIntercept=-60, WindowCenter=[40, 1], WindowWidth=[81, 1])
    # centre 40, width 81: black at -0.5, white at 79.5; the values are -60, 40, 100, 340
    assert decode_image(data, channels=1)[0, :, 0].tolist() == [0, 129, 255, 255]
    exact = dicom(stored, WindowCenter=130, WindowWidth=60, VOILUTFunction="LINEAR_EXACT")
    assert decode_image(exact, channels=1)[0, :, 0].tolist() == [0, 0, 255, 255]


def test_monochrome1_is_inverted():
    plain = decode_image(dicom(), channels=1).astype(int)
    inverted = decode_image(dicom(PhotometricInterpretation="MONOCHROME1"), channels=1).astype(int)
    assert np.abs(plain + inverted - 255).max() <= 1


def test_a_voi_lut_is_scaled_by_the_bits_of_its_entries():
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.LUTData = np.array([0, 10, 200, 255], np.uint16).tobytes()
    data = dicom(np.array([[0, 1, 2, 3]], np.uint16), VOILUTSequence=[table])
    assert decode_image(data, channels=1)[0, :, 0].tolist() == [0, 10, 200, 255]


@pytest.mark.parametrize(
    ("elements", "reason"),
    [({"NumberOfFrames": 3}, "3 frames"), ({"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "CUBIC"}, "CUBIC")],
)
def test_dicom_that_cannot_be_shown_is_a_data_error(elements, reason):
    with pytest.raises(DataError, match=reason):
        decode_image(dicom(**elements))


def test_dicom_without_pydicom_names_the_extra(monkeypatch):
    data = dicom()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bmft\[medical\]'"):
        decode_image(data)


@pytest.mark.parametrize("text", ["imagenet", "none", "0.5/0.25", "0.76,0.55,0.57/0.14,0.15,0.17"])
def test_normalization_is_scaling_then_mean_and_std(text):
    mean, std = {"imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "none": ([0] * 3, [1] * 3)}.get(
        text, ([0.5] * 3, [0.25] * 3) if text == "0.5/0.25" else ([0.76, 0.55, 0.57], [0.14, 0.15, 0.17])
    )
    image = torch.from_numpy(PIXELS).permute(2, 0, 1)[None]
    expected = v2.Normalize(mean, std)(image.float() / 255)
    assert torch.allclose(parse_normalization(text, 3)(image), expected, atol=1e-5)


@pytest.mark.parametrize("text", ["", "caffe", "0.5", "1,2/3,4", "0/0", "0/-1", "0/nan", "nan/1", "1,2,3/1,2", "0/1/2"])
def test_a_normalization_that_makes_no_sense_shows_the_syntax(text):
    with pytest.raises(ConfigError, match=r"0\.76,0\.55,0\.57/0\.14,0\.15,0\.17"):
        parse_normalization(text, 3)


def test_imagenet_needs_three_channels():
    with pytest.raises(ConfigError, match="1 numbers"):
        parse_normalization("imagenet", 1)


def write(folder, images):
    paths = []
    for i, image in enumerate(images):
        paths.append(folder / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


OPTIONS = {"how": Preprocessing(normalize="0.5/0.25"), "channels": 3, "cache_bytes": 1 << 20}


def test_streamed_and_cached_images_are_the_same(tmp_path):
    paths = write(tmp_path, np.random.default_rng(1).integers(0, 256, (9, 8, 10, 3), dtype=np.uint8))
    cached, _ = load_images(paths, **OPTIONS)
    streamed, _ = load_images(paths, **{**OPTIONS, "cache_bytes": 9 * 8 * 10 * 3 - 1}, workers=3)
    assert isinstance(cached, DecodedImages)
    assert isinstance(streamed, StreamedImages)
    index = torch.tensor([8, 0, 0, 3])
    assert torch.equal(cached.take(index), streamed.take(index))
    assert cached.digests(index) == streamed.digests(index)


def test_unreadable_files_are_reported_in_order_with_the_reason(tmp_path):
    paths = write(tmp_path, [PIXELS] * 5)
    paths[1].write_bytes(b"nothing")
    paths[3].unlink()
    source, bad = load_images(paths, **OPTIONS, workers=4)
    assert [(one.position, one.reason) for one in bad] == [(1, "not an image"), (3, "no such file")]
    assert source.take(torch.tensor([0, 4])).shape == (2, 3, 12, 17)


def test_the_first_file_may_be_the_unreadable_one(tmp_path):
    paths = write(tmp_path, [PIXELS] * 3)
    paths[0].write_bytes(b"nothing")
    source, bad = load_images(paths, **OPTIONS)
    assert [one.position for one in bad] == [0]
    assert source.take(torch.tensor([2])).shape == (1, 3, 12, 17)


def test_images_of_several_sizes_ask_for_an_image_size(tmp_path):
    paths = write(tmp_path, [PIXELS, PIXELS, PIXELS[:, :9]])
    with pytest.raises(DataError, match=r"1 of 3 images are not 17x12 .*2\.png is 9x12.*--image-size"):
        load_images(paths, **OPTIONS)
    source, _ = load_images(paths, **{**OPTIONS, "how": Preprocessing(8, "none")})
    assert source.take(torch.arange(3)).shape == (3, 3, 8, 8)


def test_a_streamed_file_that_vanishes_is_named(tmp_path):
    paths = write(tmp_path, [PIXELS] * 2)
    source, _ = load_images(paths, **{**OPTIONS, "cache_bytes": 0})
    paths[1].unlink()
    with pytest.raises(DataError, match=r"1\.png: could be read before and cannot now"):
        source.take(torch.tensor([1]))


def test_warnings_of_the_decoders_are_logged_once(tmp_path, monkeypatch, caplog):
    def warn(*_, **__):
        warnings.warn("odd metadata", UserWarning, stacklevel=1)
        return PIXELS[:12, :12]

    paths = write(tmp_path, [PIXELS] * 3)
    monkeypatch.setattr("bmft.data.sources.decode_image", warn)
    with caplog.at_level(logging.WARNING):
        load_images(paths, **{**OPTIONS, "how": Preprocessing(12, "none")})
    assert caplog.messages == ["decoding gave 3 warnings; the first: odd metadata"]


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 8, 8, 3), (5, 8, 8, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_of_images_is_decoded_as_their_files_would_be(shape, channels):
    array = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    source = images_from_array(array, how=Preprocessing(6, "none"), channels=channels)
    decoded = [decode_image(encode(a.squeeze(-1) if shape[-1] == 1 else a), channels=channels) for a in array]
    files = [sized(pixels, 6) for pixels in decoded]
    expected = torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2)
    assert torch.equal(source.pixels, expected)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4, 2), np.uint8), np.zeros(4, np.uint8)]
)
def test_an_array_of_another_kind_is_refused(array):
    with pytest.raises(DataError, match="expected uint8"):
        images_from_array(array, how=Preprocessing(normalize="none"), channels=3)


def test_pixels_on_a_gpu_are_normalized_there(monkeypatch):
    source = DecodedImages(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), parse_normalization("imagenet", 3))
    monkeypatch.setattr(DecodedImages, "digests", lambda self, index: [bytes(32)] * len(index))
    # Tensors without values, which know where they are: two that meet on different devices are an error.
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = source.on(torch.device("cuda"), torch.tensor([2, 0, 1]))
        taken = there.take(torch.tensor([1, 0]))
    assert there.pixels.dtype == torch.uint8
    assert (taken.device.type, taken.dtype, taken.shape) == ("cuda", torch.float32, (2, 3, 8, 8))


def test_a_cached_batch_costs_little_more_than_its_copy():
    source = images_from_array(np.zeros((500, 64, 64, 3), np.uint8), how=Preprocessing(normalize="none"), channels=3)
    index = torch.randperm(500)[:64]

    def best(function):
        times = []
        for _ in range(30):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(lambda: source.take(index)) < 3 * best(lambda: source.pixels[index].float()) + 1e-3


def test_checking_many_files_needs_little_memory_for_each(tmp_path, monkeypatch):
    """A record of every call to the pool was two kilobytes for each of a million rows."""
    monkeypatch.setattr("bmft.data.sources._BLOCK", 64)
    (path,) = write(tmp_path, [np.zeros((2, 2, 3), np.uint8)])
    paths = [path] * 3000
    tracemalloc.start()
    load_images(paths, **{**OPTIONS, "cache_bytes": 0})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / len(paths) < 200


def test_a_dicom_palette_is_shown_in_its_colours():
    pydicom = pytest.importorskip("pydicom")
    from pydicom.pixels.processing import apply_color_lut

    reds, greens, blues = np.arange(0, 256), np.arange(255, -1, -1), np.full(256, 7)
    tables = {"Red": reds, "Green": greens, "Blue": blues}
    stored = np.array([[0, 10, 200, 255]], np.uint8)
    elements = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in tables}
    elements |= {f"{n}PaletteColorLookupTableData": (t * 257).astype(np.uint16).tobytes() for n, t in tables.items()}
    data = dicom(stored, PhotometricInterpretation="PALETTE COLOR", **elements)
    theirs = apply_color_lut(stored, pydicom.dcmread(io.BytesIO(data))) / 257
    assert np.array_equal(decode_image(data), theirs)
    assert decode_image(data)[0, 1].tolist() == [10, 245, 7]


def test_dicom_ybr_is_shown_in_rgb():
    pydicom = pytest.importorskip("pydicom")
    from pydicom.pixels.processing import convert_color_space

    data = dicom(
        PIXELS, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="YBR_FULL", PixelRepresentation=0
    )
    assert pydicom.dcmread(io.BytesIO(data)).PhotometricInterpretation == "YBR_FULL"
    assert np.array_equal(decode_image(data), convert_color_space(PIXELS, "YBR_FULL", "RGB"))


EMPTY = ["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "VOILUTFunction"]


@pytest.mark.parametrize("names", [*[[name] for name in EMPTY], EMPTY, EMPTY[:2], EMPTY[2:4]], ids=",".join)
@pytest.mark.parametrize("value", [None, ""])
def test_dicom_elements_without_a_value_are_as_if_they_were_not_there(names, value):
    whole = {"WindowCenter": 500, "WindowWidth": 800, "RescaleSlope": 2, "RescaleIntercept": -100}
    kept = {name: content for name, content in whole.items() if name not in names}
    if set(names) & {"WindowCenter", "WindowWidth"}:
        kept = {name: content for name, content in kept.items() if not name.startswith("Window")}
    defaults = {"RescaleSlope": 1, "RescaleIntercept": 0} if set(names) & {"RescaleSlope", "RescaleIntercept"} else {}
    empty = dicom(**{**whole, **dict.fromkeys(names, value)})
    assert np.array_equal(decode_image(empty), decode_image(dicom(**{**defaults, **kept})))


def test_a_sigmoid_window_is_pydicoms():
    pydicom = pytest.importorskip("pydicom")
    from pydicom.pixels.processing import apply_voi_lut

    stored = np.array([[0, 100, 160, 400, 4095]], np.uint16)
    data = dicom(stored, BitsStored=12, HighBit=11, WindowCenter=160, WindowWidth=200, VOILUTFunction="SIGMOID")
    theirs = apply_voi_lut(stored, pydicom.dcmread(io.BytesIO(data))) / 4095 * 255
    assert np.abs(decode_image(data, channels=1)[..., 0] - theirs).max() <= 0.5


@pytest.mark.parametrize("meta", [False, True], ids=["data set alone", "with file meta"])
def test_a_dicom_file_without_its_preamble_is_read(meta):
    pydicom = pytest.importorskip("pydicom")

    data = dicom()
    short = data[132:]
    if not meta:
        buffer = io.BytesIO()
        dataset = pydicom.dcmread(io.BytesIO(data))
        pydicom.dcmwrite(buffer, pydicom.Dataset(dataset), implicit_vr=True, little_endian=True)
        short = buffer.getvalue()
    assert b"DICM" not in short
    assert np.array_equal(decode_image(short), decode_image(data))


@pytest.mark.parametrize("start", [b"\x08\x00", b"\x02\x00\x10\x00", b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"])
def test_what_only_begins_like_a_data_set_is_a_data_error(start):
    with pytest.raises(DataError, match="DICOM"):
        decode_image(start)


def test_bits_say_what_is_white_in_a_deep_image():
    deep = np.array([[0, 1000, 4095]], np.uint16)
    assert decode_image(encode(deep), channels=1).ravel().tolist() == [0, 4, 16]
    assert decode_image(encode(deep), channels=1, bits=12).ravel().tolist() == [0, 62, 255]
    with pytest.raises(DataError, match="from 0 to 4095 where 0 to 1023 were expected"):
        decode_image(encode(deep), bits=10)


@pytest.mark.parametrize(("top", "said"), [(4095, True), (16000, True), (17000, False), (65535, False)])
def test_a_set_of_nearly_black_deep_images_is_remarked_on(tmp_path, caplog, top, said):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encode(np.full((4, 4), top if i else 3, np.uint16)))
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    load_images(paths, how=Preprocessing(normalize="none"), channels=1, cache_bytes=1 << 20)
    assert ("--bits" in caplog.text) == said
    source, _ = load_images(paths, how=Preprocessing(normalize="none"), channels=1, cache_bytes=0, bits=16)
    assert source.take(torch.tensor([1])).max().item() == pytest.approx(round(top / 65535 * 255) / 255)
