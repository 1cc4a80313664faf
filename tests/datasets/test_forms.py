"""Forms that many sets come in: folders of classes, MedMNIST, Hugging Face, DICOM, WebDataset."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from torchvision.datasets import ImageFolder

from bmft.data import load_manifest
from bmft.datasets import FORMS, prepare, write_manifest
from bmft.errors import ConfigError, DataError
from bmft.tables import read_table


def png(value, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def classes(root, *splits):
    """Two images of each of two classes, in each split."""
    number = 0
    for split in splits or ("",):
        for name in ("benign", "malignant"):
            for _ in range(2):
                write(root / split / name / f"case{number}.png", png(20 * number))
                number += 1
    return root


def prepared(form, root, tmp_path, **options):
    """The manifest that a form becomes, as a table."""
    out = write_manifest(form, root, tmp_path / "out" / "m.csv", **options)
    return read_table(out.with_suffix(".csv"))


@pytest.fixture(autouse=True)
def out(tmp_path):
    (tmp_path / "out").mkdir()


def test_a_folder_of_classes_is_read_as_torchvision_reads_it(tmp_path):
    root = classes(tmp_path / "images")
    write(root / "benign" / "deep" / "case9.jpg", png(1, "JPEG"))
    write(root / "benign" / "notes.txt", "x")
    table = prepared("folder", root, tmp_path)
    theirs = ImageFolder(str(root))
    expected = [(str(Path(path).relative_to(root)), theirs.classes[label]) for path, label in theirs.samples]
    assert sorted(zip(table["path"], table["label"], strict=True)) == sorted(expected)
    assert set(table["split"]) == {""}


def test_folders_named_as_splits_are_the_splits(tmp_path):
    table = prepared("folder", classes(tmp_path / "images", "train", "val", "test"), tmp_path)
    assert table["split"].value_counts().to_dict() == {"train": 4, "val": 4, "test": 4}
    assert set(table["label"]) == {"benign", "malignant"}


@pytest.mark.parametrize(
    ("column", "name"), [("image_id", "case{}"), ("file", "case{}.png"), ("where", "{label}/case{}.png")]
)
def test_demographics_are_joined_by_whatever_names_the_images(column, name, tmp_path, caplog):
    root = classes(tmp_path / "images")
    labels = ["benign"] * 2 + ["malignant"] * 2
    names = [name.format(i, label=labels[i]) for i in (3, 2, 0)]
    people = pd.DataFrame({"site": ["x"] * 4, column: [*names, "case77"], "sex": ["f", "m", "f", "m"]})
    people.to_csv(tmp_path / "people.csv", index=False)
    table = prepared("folder", root, tmp_path, demographics=tmp_path / "people.csv").set_index("path")
    assert table["sex"].to_dict() == {
        "benign/case0.png": "f",
        "benign/case1.png": "",
        "malignant/case2.png": "m",
        "malignant/case3.png": "f",
    }
    assert "3 of 4 images, 3 of 4 rows" in caplog.text
    assert repr(column) in caplog.text


def test_a_manifest_from_a_folder_and_its_people_loads(tmp_path):
    root = classes(tmp_path / "images")
    people = pd.DataFrame({"id": [f"case{i}" for i in range(4)], "sex": ["f", "m", "f", "m"]})
    people.to_excel(tmp_path / "people.xlsx", index=False)
    out = write_manifest("folder", root, tmp_path / "out" / "m.csv", demographics=tmp_path / "people.xlsx")
    data = load_manifest(out, target="label", sensitive="sex", images=root, positive="malignant")
    assert data.targets.tolist() == [0, 0, 1, 1]
    assert data.groups[:, 0].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("people", "by", "error", "message"),
    [
        ({"id": ["x", "y"], "sex": ["f", "m"]}, None, DataError, "no column names the images, such as"),
        ({"id": ["case0", "case0"], "sex": ["f", "m"]}, None, DataError, "'case0' in two rows"),
        ({"id": ["case0", "case1"], "sex": ["f", "m"]}, "ID", ConfigError, "Did you mean 'id'"),
    ],
)
def test_demographics_that_do_not_fit_say_why(people, by, error, message, tmp_path):
    pd.DataFrame(people).to_csv(tmp_path / "people.csv", index=False)
    with pytest.raises(error, match=message):
        prepared("folder", classes(tmp_path / "images"), tmp_path, demographics=tmp_path / "people.csv", by=by)


def test_a_file_name_that_two_classes_have_joins_nobody(tmp_path):
    root = tmp_path / "images"
    for label in ("a", "b"):
        write(root / label / "1.png", png(1))
        write(root / label / f"{label}2.png", png(2))
    pd.DataFrame({"id": ["1.png", "a2.png"], "sex": ["f", "m"]}).to_csv(tmp_path / "people.csv", index=False)
    table = prepared("folder", root, tmp_path, demographics=tmp_path / "people.csv").set_index("path")
    assert table["sex"].to_dict() == {"a/1.png": "", "a/a2.png": "m", "b/1.png": "", "b/b2.png": ""}


def test_a_column_that_both_have_is_the_manifest_s(tmp_path):
    people = pd.DataFrame({"id": [f"case{i}" for i in range(4)], "label": ["?"] * 4})
    people.to_csv(tmp_path / "people.csv", index=False)
    table = prepared("folder", classes(tmp_path / "images"), tmp_path, demographics=tmp_path / "people.csv")
    assert set(table["label"]) == {"benign", "malignant"}
    assert set(table["demographics_label"]) == {"?"}


def medmnist(path, labels=1, shape=(28, 28, 3)):
    rng = np.random.default_rng(0)
    sizes = {"train": 5, "val": 3, "test": 4}
    arrays = {f"{part}_images": rng.integers(0, 256, (n, *shape), dtype=np.uint8) for part, n in sizes.items()}
    arrays |= {f"{part}_labels": rng.integers(0, 2, (n, labels), dtype=np.uint8) for part, n in sizes.items()}
    np.savez_compressed(path, **arrays)
    return arrays


def test_a_medmnist_file_keeps_its_pixels_labels_and_splits(tmp_path):
    arrays = medmnist(tmp_path / "dermamnist.npz")
    people = pd.DataFrame({"name": [f"{part}{i}" for part in ("train", "val", "test") for i in range(5)]})
    people.assign(sex=["f", "m", "f", "m", "f"] * 3).to_csv(tmp_path / "people.csv", index=False)
    path = write_manifest(
        "medmnist", tmp_path / "dermamnist.npz", tmp_path / "out" / "m.csv", demographics=tmp_path / "people.csv"
    )
    data = load_manifest(path, target="label", sensitive="sex", split_column="split", split="val", normalize="none")
    assert data.targets.tolist() == arrays["val_labels"][:, 0].tolist()
    pixels = (data.inputs(slice(0, 3)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pixels, arrays["val_images"])


def test_a_medmnist_file_of_several_labels_has_a_column_for_each(tmp_path):
    arrays = medmnist(tmp_path / "chestmnist.npz", labels=14, shape=(28, 28))
    table = prepared("medmnist", tmp_path / "chestmnist.npz", tmp_path)
    assert table["label13"].tolist()[:5] == [str(value) for value in arrays["train_labels"][:, 13]]


def test_a_medmnist_file_of_volumes_is_refused(tmp_path):
    medmnist(tmp_path / "organmnist3d.npz", shape=(28, 28, 28))
    with pytest.raises(DataError, match="three dimensions are not for this tool"):
        prepared("medmnist", tmp_path / "organmnist3d.npz", tmp_path)


def dicom(path, sex="F", age="045Y", **more):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = SecondaryCaptureImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.Modality, file.Manufacturer = generate_uid(), "DX", "ACME"
    file.Rows = file.Columns = 8
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation = 7, 0
    file.PixelData = bytes(range(64))
    file.PatientID, file.StudyDate = path.stem, "20200615"
    file.PatientSex, file.PatientAge = sex, age
    for name, value in more.items():
        setattr(file, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, file, enforce_file_format=True)
    return file


@pytest.mark.parametrize(
    ("sex", "age", "born", "expected"),
    [
        ("F", "045Y", "", ("female", "45")),
        ("M", "006M", "", ("male", "0.5")),
        ("O", "", "19800616", ("other", "39")),
        ("", "", "19800615", ("", "40")),
        ("F", "", "20210101", ("female", "")),
    ],
)
def test_headers_say_who_a_dicom_image_is_of(sex, age, born, expected, tmp_path):
    dicom(tmp_path / "scans" / "deep" / "p1.dcm", sex, age, PatientBirthDate=born)
    row = prepared("dicom", tmp_path / "scans", tmp_path).iloc[0]
    assert (row["sex"], row["age"]) == expected
    assert (row["patient_id"], row["study_date"], row["manufacturer"]) == ("p1", "20200615", "ACME")


def test_dicom_pixels_stay_where_they_are_and_labels_are_joined_by_patient(tmp_path, caplog):
    for number in range(4):
        dicom(tmp_path / "scans" / f"p{number // 2}" / f"{number}.dcm", "FMFM"[number], PatientID=f"p{number // 2}")
    write(tmp_path / "scans" / "readme.txt", "no DICOM")
    dicom(tmp_path / "scans" / "film.dcm", NumberOfFrames=3)
    labels = pd.DataFrame({"patient": ["p0", "p1"], "label": [0, 1]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    out = write_manifest("dicom", tmp_path / "scans", tmp_path / "out" / "m.csv", demographics=tmp_path / "labels.csv")
    assert "1 files that are no DICOM, 1 without one frame" in caplog.text
    assert not (tmp_path / "out" / "m_images").exists()
    data = load_manifest(out, target="label", sensitive="sex", cluster="patient_id", images=tmp_path / "scans")
    assert data.targets.tolist() == [0, 0, 1, 1]
    assert data.inputs(slice(0, 1)).shape == (1, 3, 8, 8)


FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["benign", "malignant"], "_type": "ClassLabel"},
    "findings": {"feature": {"names": ["edema", "mass"], "_type": "ClassLabel"}, "_type": "List"},
    "age": {"dtype": "float64", "_type": "Value"},
    "boxes": {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"},
}


def hub_table(start=0, n=4):
    columns = {
        "image": [{"bytes": png(10 * (start + i)), "path": None} for i in range(n)],
        "label": [i % 2 for i in range(n)],
        "findings": [[0], [0, 1], [], [1]][:n],
        "age": [40.0, None, 55.5, 60.0][:n],
        "boxes": [[1]] * n,
    }
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "label": pa.int64(),
            "findings": pa.list_(pa.int64()),
            "age": pa.float64(),
            "boxes": pa.list_(pa.int64()),
        }
    )
    note = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.table(columns, schema=schema.with_metadata(note))


def check_hub(table, folder, splits):
    assert table["label"].tolist()[:4] == ["benign", "malignant"] * 2
    assert table["edema"].tolist()[:4] == ["1", "1", "0", "0"]
    assert table["mass"].tolist()[:4] == ["0", "1", "0", "1"]
    assert table["age"].tolist()[:4] == ["40.0", "", "55.5", "60.0"]
    assert "boxes" not in table
    assert table["split"].value_counts().to_dict() == splits
    assert (folder / table["path"].iloc[3]).read_bytes() == png(30)


def test_image_parquet_becomes_files_byte_for_byte(tmp_path, caplog):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(hub_table(), tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    pq.write_table(hub_table(4), tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    table = prepared("huggingface", tmp_path / "hub", tmp_path)
    check_hub(table, tmp_path / "out", {"test": 4, "train": 4})
    assert "'boxes' holds lists and is left out" in caplog.text
    assert table["path"].is_unique


def test_what_save_to_disk_wrote_is_read_without_the_library(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "hub" / split
        folder.mkdir(parents=True)
        with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
            table = hub_table(0 if split == "train" else 4)
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (tmp_path / "hub" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    check_hub(prepared("huggingface", tmp_path / "hub", tmp_path), tmp_path / "out", {"train": 4, "test": 4})


def test_the_library_s_own_folder_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the Hugging Face datasets library")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]), sex=datasets.Value("string")
    )
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 1, 0], "sex": ["f", "m"] * 2}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=whole, validation=whole.select([0, 3])).save_to_disk(str(tmp_path / "hub"))
    table = prepared("huggingface", tmp_path / "hub", tmp_path)
    assert table["label"].tolist() == ["no", "yes", "yes", "no", "no", "no"]
    assert table["split"].tolist() == ["train"] * 4 + ["validation"] * 2
    assert (tmp_path / "out" / table["path"].iloc[5]).read_bytes() == png(3)


def test_a_dataset_without_images_says_what_it_has(tmp_path):
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "hub" / "train-00000-of-00001.parquet")
    with pytest.raises(
        DataError, match=r"no column of images; expected one, with bytes and path\. Its columns are text"
    ):
        prepared("huggingface", tmp_path / "hub", tmp_path)


def test_a_path_out_of_the_dataset_is_refused(tmp_path):
    write(tmp_path / "secret.png", png(1))
    (tmp_path / "hub").mkdir()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    outside = pa.array([{"bytes": None, "path": "../secret.png"}], kind)
    pq.write_table(pa.table({"image": outside}), tmp_path / "hub" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="a file under it"):
        prepared("huggingface", tmp_path / "hub", tmp_path)


def shard(path, first=0, more=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i in range(first, first + 2):
            person = {"sex": "fm"[i % 2], "age": 40 + i, "boxes": [1]}
            parts = {"png": png(10 * i), "cls": str(i % 2).encode(), "json": json.dumps(person).encode()}
            for name, content in [*((f"{i:04d}.{end}", part) for end, part in parts.items()), *more]:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("given", ["folder", "braces"])
def test_shards_become_files_and_columns(given, tmp_path):
    shard(tmp_path / "shards" / "train-000000.tar")
    shard(tmp_path / "shards" / "train-000001.tar", 2)
    root = tmp_path / "shards" / ("train-{000000..000001}.tar" if given == "braces" else "")
    table = prepared("webdataset", root, tmp_path)
    assert table["key"].tolist() == ["0000", "0001", "0002", "0003"]
    assert table["label"].tolist() == ["0", "1", "0", "1"]
    assert table["sex"].tolist() == ["f", "m", "f", "m"]
    assert table["age"].tolist() == ["40", "41", "42", "43"]
    assert set(table["split"]) == {"train"}
    assert (tmp_path / "out" / table["path"].iloc[3]).read_bytes() == png(30)


# webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_shards_hold_what_the_library_reads_from_them(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset")
    path = shard(tmp_path / "train-0.tar")
    table = prepared("webdataset", path, tmp_path)
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert table["key"].tolist() == [one["__key__"] for one in theirs]
    assert table["label"].tolist() == [one["cls"].decode() for one in theirs]


def test_a_member_s_name_leads_nowhere(tmp_path):
    shard(tmp_path / "train-0.tar", more=[("../../evil.png", png(9))])
    prepared("webdataset", tmp_path / "train-0.tar", tmp_path)
    assert not list(tmp_path.parent.glob("evil*"))
    assert all(file.is_relative_to(tmp_path / "out" / "m_images") for file in (tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("form", "content"),
    [("medmnist", b"PK no npz"), ("webdataset", b"no tar"), ("medmnist", None), ("webdataset", None), ("folder", None)],
)
def test_what_is_no_such_form_is_one_clear_line(form, content, tmp_path):
    path = tmp_path / "file.bin" if content is None else write(tmp_path / "file.bin", content)
    with pytest.raises(DataError, match=r"file\.bin"):
        prepared(form, path, tmp_path)


@pytest.mark.parametrize("form", ["folder", "dicom", "huggingface", "webdataset"])
def test_an_empty_folder_is_one_clear_line(form, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        prepared(form, tmp_path / "empty", tmp_path)


def test_a_form_is_no_data_set_and_a_data_set_has_its_own_people(tmp_path):
    with pytest.raises(ConfigError, match="write_manifest"):
        prepare("folder", tmp_path)
    with pytest.raises(ConfigError, match=f"is for {', '.join(FORMS)}"):
        write_manifest("ham10000", tmp_path, tmp_path / "m.csv", demographics=tmp_path / "people.csv")
