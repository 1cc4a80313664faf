"""Manifests, arrays and foreign loaders as `GroupedData`; its splits and batches."""

import copy
import logging
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from bmft.data import (
    GroupBatch,
    GroupedData,
    as_grouped,
    from_arrays,
    load_manifest,
    map_tensors,
    skipped_images,
    split_names,
    stratified_batches,
)
from bmft.errors import ConfigError, DataError, GroupError
from bmft.inference import audit
from bmft.tables import Attribute
from tests.tables.test_manifest import COLUMNS, ROWS


@pytest.fixture
def manifest(tmp_path):
    """Six images, each of one shade, with a table beside them; `manifest(...)` rewrites the table."""
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")

    def write(rows=ROWS, columns=COLUMNS, name="m.csv"):
        pd.DataFrame(rows, columns=list(columns)).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    write()
    return write


def load(path, **options):
    return load_manifest(path, **{"target": "label", "sensitive": "sex", "normalize": "none", **options})


def write_text(folder, *lines, name="m.csv", encoding="utf-8"):
    (folder / name).write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return folder / name


def shades(data):
    return [round(value * 255 / 40) for value in data.inputs(slice(None)).mean((1, 2, 3)).tolist()]


# ---- manifests


def test_a_manifest_becomes_images_labels_and_groups(manifest):
    data = load(manifest(), sensitive=["sex", "age:40,60"], cluster="patient")
    assert (data.task, data.classes, len(data), data.skipped) == ("binary", ("0", "1"), 6, 0)
    assert data.attributes == (Attribute("sex", ("f", "m")), Attribute("age", ("<40", "40-60", "60+")))
    assert data.targets.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.groups.tolist() == [[0, 0], [1, 1], [1, 1], [0, 2], [-1, 2], [1, -1]]
    assert data.clusters.tolist() == [0, 1, 1, 2, 3, 4]
    assert data.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.inputs(slice(0, 2)).shape == (2, 3, 8, 8)
    assert shades(data) == [0, 1, 2, 3, 4, 5]


def test_inputs_are_normalized(manifest):
    data = load(manifest(), normalize="0.5/0.25")
    assert torch.allclose(
        data.inputs(torch.tensor([0, 5])).mean((1, 2, 3)), torch.tensor([-2.0, (200 / 255 - 0.5) * 4])
    )


def test_parquet_reads_as_the_csv_does(manifest, tmp_path):
    frame = pd.read_csv(manifest())
    frame.to_parquet(tmp_path / "m.parquet")
    options = {"sensitive": ["sex", "age:60"], "cluster": "patient"}
    csv, parquet = load(tmp_path / "m.csv", **options), load(tmp_path / "m.parquet", **options)
    assert torch.equal(csv.groups, parquet.groups)
    assert csv.content_hash == parquet.content_hash


def test_an_npz_reads_as_its_images_would(manifest, tmp_path):
    images = np.stack([np.full((8, 8, 3), 40 * i, np.uint8) for i in range(6)])
    np.savez(tmp_path / "m.npz", images=images)
    manifest([row[1:] for row in ROWS], COLUMNS[1:])
    options = {"split_column": "split", "split": "select", "sensitive": "patient"}
    beside = load(tmp_path / "m.npz", **options)
    given = load(tmp_path / "m.csv", images=tmp_path / "m.npz", **options)
    for data in (beside, given):
        assert shades(data) == [3, 4]
        assert data.rows.tolist() == [3, 4]
    assert beside.content_hash == given.content_hash


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((6, 8, 8), np.uint8)}, "array `images`"),
        ({"images": np.zeros((5, 8, 8), np.uint8)}, "5 images for 6 rows"),
        ({"images": np.zeros((6, 8, 8), np.float32)}, "expected uint8"),
        ({"images": np.array([None] * 6)}, "array `images`"),
    ],
)
def test_an_npz_that_does_not_fit_says_so(manifest, tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(manifest(), images=tmp_path / "x.npz")


def test_a_damaged_or_lonely_npz_says_so(manifest, tmp_path):
    (tmp_path / "m.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"m\.npz"):
        load(tmp_path / "m.npz")
    with pytest.raises(DataError, match=r"other\.csv beside it"):
        load(tmp_path / "other.npz")
    with pytest.raises(DataError, match="no such file"):
        load(manifest(), images=tmp_path / "nothing.npz")


def test_streaming_gives_what_the_cache_gives(manifest):
    cached, streamed = load(manifest()), load(manifest(), cache_bytes=0)
    assert torch.equal(cached.inputs(slice(None)), streamed.inputs(slice(None)))
    assert cached.content_hash == streamed.content_hash
    for a, b in zip(cached.batches(4), streamed.batches(4), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_split_is_numbered_as_the_whole_table(manifest):
    options = {"sensitive": ["age:40,60", "sex*age:60"], "split_column": "split", "cluster": "patient"}
    whole, fit = load(manifest(), **options), load(manifest(), **options, split="fit")
    assert fit.attributes == whole.attributes
    assert fit.rows.tolist() == [0, 1, 2]
    assert torch.equal(fit.groups, whole.groups[:3])
    assert torch.equal(fit.clusters, whole.clusters[:3])
    assert shades(fit) == [0, 1, 2]


def test_the_names_of_the_splits_can_be_asked_for(manifest):
    assert split_names(manifest(), "split") == ("fit", "select", "test")


# ---- bad input


def test_every_unreadable_image_is_listed_up_to_twenty(manifest, tmp_path):
    rows = [(f"no{i}.png", i % 2, "fm"[i % 2], 1, i, "fit") for i in range(23)] + ROWS
    with pytest.raises(DataError) as caught:
        load(manifest(rows))
    lines = str(caught.value).splitlines()
    assert "23 of 29 images cannot be read" in lines[0]
    assert lines[1] == f"  row 0: {tmp_path / 'no0.png'}: no such file"
    assert len(lines) == 22
    assert lines[-1] == "  ... and 3 more"


def test_unreadable_images_can_be_skipped_and_are_counted(manifest, tmp_path, caplog):
    (tmp_path / "1.png").write_bytes(b"nothing")
    for cache_bytes in (0, 1 << 20):
        with caplog.at_level(logging.WARNING):
            data = load(manifest(), on_bad_image="skip", cluster="patient", cache_bytes=cache_bytes)
        assert (len(data), data.skipped, data.rows.tolist()) == (5, 1, [0, 2, 3, 4, 5])
        assert data.targets.tolist() == [0, 0, 1, 0, 1]
        assert shades(data) == [0, 2, 3, 4, 5]
    assert "1.png: not an image" in caplog.text


def test_an_image_left_out_is_counted_in_an_audit_and_once_for_parts_of_one_load(manifest, tmp_path):
    (tmp_path / "1.png").write_bytes(b"nothing")
    data = load(manifest(), on_bad_image="skip")
    parts = data.subset(torch.arange(2)), data.subset(torch.arange(2, 5))
    assert skipped_images(*parts) == 1
    assert skipped_images(data, load(manifest(), on_bad_image="skip")) == 2
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(1))
    model(data.inputs(slice(0, 1)))
    report = audit(model, data, intervals=False)
    assert report.skipped == 1
    assert report.to_dict()["skipped"] == 1


def test_skipping_every_image_is_an_error(manifest):
    with pytest.raises(DataError, match="6 of 6 images cannot be read"):
        load(manifest([("no.png", *row[1:]) for row in ROWS]), on_bad_image="skip")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("../secret.png", "climbs out"),
        ("a/../../secret.png", "climbs out"),
        ("a\\..\\..\\secret.png", "climbs out"),
        ("/etc/passwd", "absolute, beside an images folder"),
        ("C:\\x.png", "absolute, beside an images folder"),
        (" ", "empty"),
    ],
)
def test_paths_stay_inside_the_images_folder(manifest, tmp_path, path, problem):
    rows = [(path, *ROWS[0][1:]), *ROWS[1:]]
    with pytest.raises(DataError, match=rf"1 image paths are refused.*\n  row 0: .*: {problem}"):
        load(manifest(rows), images=tmp_path)


def test_an_absolute_path_is_taken_without_an_images_folder(manifest, tmp_path):
    data = load(manifest([(tmp_path / row[0], *row[1:]) for row in ROWS]))
    assert shades(data) == [0, 1, 2, 3, 4, 5]


def test_a_path_may_turn_inside_the_folder(manifest, tmp_path):
    (tmp_path / "a").mkdir()
    assert shades(load(manifest([("a/../" + row[0], *row[1:]) for row in ROWS]))) == [0, 1, 2, 3, 4, 5]


def test_an_images_folder_that_is_not_there_says_so(manifest, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load(manifest(), images=tmp_path / "nowhere")


def test_names_may_hold_newlines_and_huge_fields_are_cut_in_messages(manifest):
    rows = [(*row[:2], "f\nemale" if row[2] == "f" else row[2], *row[3:]) for row in ROWS]
    assert load(manifest(rows)).attributes[0].groups == ("f\nemale", "m")
    with pytest.raises(DataError) as caught:
        load(manifest([("x" * 10_000_000, *ROWS[0][1:]), *ROWS[1:]]))
    assert len(str(caught.value)) < 1000


def test_a_missing_image_column_gets_the_nearest(manifest):
    with pytest.raises(DataError, match=r"no image path column 'file'\. There are 'path', 'label'"):
        load(manifest(), image="file")


@pytest.mark.parametrize(
    "options", [{"image_size": 0}, {"channels": 4}, {"on_bad_image": "ignore"}, {"normalize": "x"}, {"sensitive": []}]
)
def test_an_option_that_makes_no_sense_is_refused(manifest, options):
    with pytest.raises(ConfigError):
        load(manifest(), **options)


# ---- GroupedData


def grouped(n=40, attributes=2, seed=0, clusters=None):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, 2, (n, attributes), generator=generator)
    targets = torch.randint(0, 2, (n,), generator=generator)
    names = {"ab"[i]: ("x", "y") for i in range(attributes)}
    return from_arrays(torch.randn(n, 3, generator=generator), targets, ids, attributes=names, clusters=clusters)


def test_a_loader_collates_samples_into_the_same_batches():
    data = grouped()
    for ours, theirs in zip(data.batches(16), DataLoader(data, batch_size=16), strict=True):
        assert isinstance(theirs, GroupBatch)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_samples_count_from_both_ends_and_stop():
    data = grouped(5)
    assert torch.equal(data[-1].inputs, data.inputs(slice(4, 5))[0])
    assert len(list(data)) == 5
    with pytest.raises(IndexError):
        data[5]


def test_a_subset_keeps_order_and_rows_and_shares_the_inputs():
    data = grouped(10)
    part = data.subset(torch.tensor([7, 2, 2])).subset(torch.tensor([True, False, True]))
    assert part.rows.tolist() == [7, 2]
    assert torch.equal(part.inputs(slice(None)), data.inputs(torch.tensor([7, 2])))
    assert part._source is data._source


def test_a_product_of_two_attributes_can_be_made_later():
    data = grouped().with_attributes("a*b", "b")
    assert [attribute.name for attribute in data.attributes] == ["a*b", "b"]
    assert data.attributes[0].groups == ("x*x", "x*y", "y*x", "y*y")
    a, b = grouped().groups.T
    expected = torch.where((a < 0) | (b < 0), -1, 2 * a + b)
    assert torch.equal(data.groups[:, 0], expected)


def test_an_unknown_attribute_gets_the_nearest():
    with pytest.raises(GroupError, match=r"no sensitive attribute 'A' in this data\. Did you mean 'a'"):
        grouped().with_attributes("A")


def test_the_content_hash_does_not_depend_on_the_order_of_the_rows():
    data = grouped()
    shuffled = data.subset(torch.randperm(len(data)))
    assert shuffled.content_hash == data.content_hash
    assert data.subset(torch.arange(39)).content_hash != data.content_hash


def test_the_content_hash_sees_inputs_targets_and_groups():
    inputs, targets, groups = torch.zeros(3, 2), torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1])
    hashes = {from_arrays(inputs, targets, groups).content_hash}
    hashes.add(from_arrays(inputs + 1, targets, groups).content_hash)
    hashes.add(from_arrays(inputs, 1 - targets, groups).content_hash)
    hashes.add(from_arrays(inputs, targets, 1 - groups).content_hash)
    assert len(hashes) == 4


def test_data_can_be_copied_and_pickled(manifest):
    data = load(manifest(), cache_bytes=0)
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert twin.content_hash == data.content_hash
        assert torch.equal(twin.inputs(slice(None)), data.inputs(slice(None)))


def test_data_whose_pixels_are_elsewhere_are_the_same_data(manifest):
    data, cpu = load(manifest()).subset(torch.tensor([4, 1, 3])), torch.device("cpu")
    known, size = data.content_hash, len(pickle.dumps(data))
    there = data.on(cpu, room=3 * 8 * 8 * 3)
    assert there is not data
    assert there is data.on(cpu, room=3 * 8 * 8 * 3), "moved once"
    assert there.content_hash == known
    assert torch.equal(there.take(torch.tensor([2, 0])).inputs, data.take(torch.tensor([2, 0])).inputs)
    assert len(pickle.dumps(data)) == size, "what is elsewhere does not travel with the data"


def test_data_that_have_no_room_elsewhere_stay(manifest):
    data, cpu = load(manifest()), torch.device("cpu")
    assert data.on(cpu, room=6 * 8 * 8 * 3 - 1) is data
    streamed = load(manifest(), cache_bytes=0)
    assert streamed.on(cpu, room=1 << 20) is streamed


def test_a_batch_moves_with_all_its_tensors():
    batch = GroupBatch({"ids": torch.zeros(2), "more": (torch.ones(2),)}, torch.zeros(2), torch.zeros(2, 1)).to("meta")
    assert {batch.inputs["ids"].device.type, batch.inputs["more"][0].device.type, batch.groups.device.type} == {"meta"}


# ---- arrays and foreign data


def test_any_modality_goes_in_and_comes_out():
    ids, mask = torch.randint(0, 9, (6, 4)), torch.rand(6, 4, dtype=torch.float64)
    for inputs in ({"ids": ids, "mask": mask.numpy()}, (ids, mask)):
        data = from_arrays(inputs, [0, 1] * 3, np.array([0, 0, 0, 1, 1, 1]))
        got = data.inputs(torch.tensor([1, 5]))
        first, second = got.values() if isinstance(got, dict) else got
        assert torch.equal(first, ids[[1, 5]])
        assert torch.equal(second, mask[[1, 5]].float())
        assert len(data.content_hash) == 64


@pytest.mark.parametrize(
    ("targets", "options", "task", "classes"),
    [
        ([0, 1, 1], {}, "binary", ("0", "1")),
        ([[0.0], [1.0], [1.0]], {}, "binary", ("0", "1")),
        ([0, 2, 1], {}, "multiclass", ("0", "1", "2")),
        ([0, 1, 1], {"classes": "abc"}, "multiclass", ("a", "b", "c")),
        ([[0, 1], [1, 1], [0, 0]], {"classes": ["p", "q"], "task": "multilabel"}, "multilabel", ("p", "q")),
    ],
)
def test_the_task_follows_from_the_targets(targets, options, task, classes):
    data = from_arrays(torch.zeros(3, 1), targets, [0, 1, 1], **options)
    assert (data.task, data.classes, data.targets.dtype) == (task, classes, torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.zeros(3, 1), [0, 1], [0, 1, 1]), {}, DataError, r"\[2, 3, 3\] rows"),
        ((torch.zeros(0, 1), [], []), {}, DataError, "0, 0"),
        ((torch.zeros(3, 1), [0, 0.5, 1], [0, 1, 1]), {}, DataError, "targets .* whole numbers"),
        ((torch.zeros(3, 1), [0, 1, 1], [0, np.nan, 1]), {}, DataError, "not fractions or NaN"),
        ((torch.zeros(3, 1), ["a", "b", "c"], [0, 1, 1]), {}, DataError, "whole numbers"),
        ((torch.zeros(3, 1), [0, -2, 1], [0, 1, 1]), {}, DataError, "from -2 to 1"),
        ((torch.zeros(3, 1), [1, -1, 1], [0, 1, 1]), {}, DataError, "-1 and 1: give 0 for the negative class"),
        ((torch.zeros(3, 1), [[0, 1], [1, -1], [0, 1]], [0, 1, 1]), {}, DataError, "-1 and 1"),
        ((torch.zeros(3, 1), [-1, -1, -1], [0, 1, 1]), {}, DataError, "none of the 3 targets is known"),
        ((torch.zeros(3, 1), [[0, 2], [1, 1], [0, 0]], [0, 1, 1]), {}, DataError, "0/1 for 2 labels"),
        ((torch.zeros(3, 1), [0, 1, 1], [0, 1, 1]), {"task": "multiclass"}, DataError, "does not fit"),
        ((torch.zeros(3, 1), [0, 1, 2], [0, 1, 1]), {"classes": "ab"}, DataError, "class numbers from 0 to 1"),
        ((torch.zeros(3, 1), [0, 1, 1], [0, 1, 2]), {"attributes": {"sex": "fm"}}, GroupError, "from 0 to 2"),
        ((torch.zeros(3, 1), [0, 1, 1], [0, 1, -2]), {}, GroupError, "-2"),
        ((torch.zeros(3, 1), [0, 1, 1], [0, 1, 1]), {"attributes": ["sex", "age"]}, GroupError, "2 attributes"),
        (([[0.0]] * 3, [0, 1, 1], [0, 1, 1]), {}, DataError, "hold a float"),
    ],
)
def test_arrays_that_do_not_fit_say_so(arguments, options, error, message):
    with pytest.raises(error, match=message):
        from_arrays(*arguments, **options)


def test_images_in_memory_are_normalized_on_request():
    images = np.full((4, 5, 6, 3), 255, np.uint8)
    data = from_arrays(images, [0, 1, 0, 1], [0, 0, 1, 1], normalize="0.5/0.5")
    assert data.inputs(slice(0, 2)).shape == (2, 3, 5, 6)
    assert data.inputs(slice(None)).unique().tolist() == [1]


def test_grouped_data_passes_through():
    data = grouped()
    assert as_grouped(data) is data
    assert [a.name for a in as_grouped(data, sensitive="b").attributes] == ["b"]


def test_a_loader_a_dataset_and_a_list_of_batches_read_the_same():
    data = grouped(attributes=1)
    tensors = (data.inputs(slice(None)), data.targets, data.groups)
    sources = [
        DataLoader(TensorDataset(*tensors), batch_size=7),
        TensorDataset(*tensors),
        [tuple(t[:9] for t in tensors), tuple(t[9:] for t in tensors)],
        iter([list(tensors)]),
        [(tensors[0].numpy(), tensors[1].numpy(), tensors[2][:, 0].numpy())],
    ]
    for source in sources:
        read = as_grouped(source, sensitive="sex")
        assert torch.equal(read.inputs(slice(None)), tensors[0])
        assert torch.equal(read.groups, data.groups)
        assert read.attributes == (Attribute("sex", ("0", "1")),)


def test_a_loader_of_grouped_data_keeps_the_names():
    data = grouped()
    read = as_grouped(DataLoader(data, batch_size=8, shuffle=True), sensitive="b")
    assert read.attributes == data.attributes[1:]
    assert as_grouped(DataLoader(data, batch_size=8)).content_hash == data.content_hash


def test_a_batch_function_makes_triples_of_anything():
    batches = [{"pixels": torch.zeros(2, 3), "labels": torch.tensor([0, 1]), "sex": torch.tensor([1, 0])}]
    with pytest.raises(DataError, match=r"dict with keys \['pixels', 'labels', 'sex'\].*batch_fn"):
        as_grouped(batches)
    data = as_grouped(batches, batch_fn=lambda b: ({"pixel_values": b["pixels"]}, b["labels"], b["sex"]))
    assert data.inputs(slice(0, 1))["pixel_values"].shape == (1, 3)


def test_a_part_can_take_the_names_of_another():
    whole = from_arrays(torch.zeros(4, 1), [0, 1, 2, 1], [0, 1, 2, 1], attributes={"skin": ("a", "b", "c")})
    part = as_grouped([(torch.zeros(2, 1), torch.tensor([0, 1]), torch.tensor([0, 1]))], like=whole)
    assert (part.classes, part.attributes, part.task) == (whole.classes, whole.attributes, "multiclass")


@pytest.mark.parametrize("data", [7, [], iter([]), [torch.zeros(3)], [(torch.zeros(2), torch.zeros(2))]])
def test_what_is_no_data_says_what_was_expected(data):
    with pytest.raises(DataError, match=r"expected|no batches"):
        as_grouped(data)


def test_inputs_that_change_shape_between_batches_are_refused():
    batches = [(torch.zeros(2, n), torch.tensor([0, 1]), torch.tensor([0, 1])) for n in (3, 4)]
    with pytest.raises(DataError, match="change shape"):
        as_grouped(batches)


def test_tensors_of_nested_inputs_are_mapped():
    mapped = map_tensors(lambda t: t + 1, {"a": torch.zeros(1), "b": [torch.ones(1)]})
    assert (mapped["a"].item(), mapped["b"][0].item()) == (1, 2)


# ---- splits


@st.composite
def cell_tables(draw, clustered):
    """Targets, groups and clusters of a small set, with rare cells and unknowns."""
    n = draw(st.integers(12, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets = (rng.random(n) < draw(st.sampled_from([0.05, 0.2, 0.5]))).astype(int)
    groups = rng.choice([-1, 0, 1, 2], size=n, p=[0.1, 0.6, 0.25, 0.05])
    clusters = rng.integers(0, draw(st.integers(6, n)), n) if clustered else None
    return targets, groups, clusters


def counts(data):
    pairs = zip(data.targets.tolist(), data.groups[:, 0].tolist(), strict=True)
    result = {}
    for pair in pairs:
        result[pair] = result.get(pair, 0) + 1
    return result


def data_of(table):
    targets, groups, clusters = table
    attributes = {"g": ("a", "b", "c")}
    return from_arrays(torch.arange(len(targets))[:, None], targets, groups, attributes=attributes, clusters=clusters)


FRACTIONS = st.sampled_from([(0.5, 0.5), (0.5, 0.2, 0.3), (0.7, 0.3), (0.4, 0.4)])


@given(cell_tables(clustered=False), FRACTIONS, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_rows_are_split_within_one_row_of_every_quota(table, fractions, seed):
    data = data_of(table)
    parts = data.split(*fractions, seed=seed)
    rows = torch.cat([part.rows for part in parts])
    assert len(rows.unique()) == len(rows)
    assert len(rows) == len(data) or sum(fractions) < 1
    whole = counts(data)
    for fraction, part in zip(fractions, parts, strict=True):
        assert abs(len(part) - fraction * len(data)) < 2
        for cell, size in whole.items():
            assert abs(counts(part).get(cell, 0) - fraction * size) < 2


@given(cell_tables(clustered=True), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_clusters_stay_whole_and_parts_near_their_size(table, seed):
    data = data_of(table)
    parts = data.split(0.5, 0.5, seed=seed)
    homes = [set(part.clusters.tolist()) for part in parts]
    assert not homes[0] & homes[1]
    assert sum(map(len, parts)) == len(data)
    largest = int(data.clusters.bincount().max())
    assert abs(len(parts[0]) - len(data) / 2) <= largest + 2


def test_the_same_seed_cuts_the_same_parts_and_another_does_not():
    data = grouped(60)
    first, again, other = (data.split(0.5, 0.5, seed=seed)[0].rows for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_many_cells_of_one_row_do_not_all_go_to_the_largest_part():
    data = from_arrays(torch.zeros(30, 1), np.arange(30) % 15, np.arange(30) // 15)
    assert [len(part) for part in data.split(0.6, 0.4)] == [18, 12]


def test_a_manifest_is_split_by_a_column_named_later(manifest):
    rows = [(f"{i % 6}.png", i % 2, "fm"[i // 6 % 2], 30, f"p{i // 3}", "x") for i in range(24)]
    parts = load(manifest(rows)).split(0.5, 0.5, by="patient")
    assert [len(part.clusters.unique()) for part in parts] == [4, 4]
    with pytest.raises(DataError, match=r"no cluster column 'patients'\. Did you mean 'patient'"):
        load(manifest(rows)).split(0.5, 0.5, by="patients")
    with pytest.raises(DataError, match="no manifest columns"):
        grouped().split(0.5, 0.5, by="patient")


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (0.5, 0), (-0.5, 1)])
def test_fractions_that_make_no_sense_are_refused(fractions):
    with pytest.raises(ConfigError, match="positive numbers"):
        grouped().split(*fractions)


def test_a_part_without_rows_is_an_error():
    data = from_arrays(torch.zeros(4, 1), [0, 1, 0, 1], [0, 0, 1, 1], clusters=[0, 0, 0, 0])
    with pytest.raises(DataError, match="parts of"):
        data.split(0.5, 0.5)


# ---- batches


def batch_counts(data, rows):
    return counts(data.subset(rows))


@given(cell_tables(clustered=False), st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_every_batch_has_its_share_of_every_cell(table, batch_size, seed):
    data = data_of(table)
    batches = list(stratified_batches(data, batch_size, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(len(data)))
    number = -(-len(data) // batch_size)
    assert len(batches) == number
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    for cell, size in counts(data).items():
        per_batch = [batch_counts(data, rows).get(cell, 0) for rows in batches]
        assert min(per_batch) == size // number
        assert max(per_batch) == -(-size // number)


@given(cell_tables(clustered=False), st.integers(4, 40), st.sampled_from(["group", "group_in_label", "cell"]))
@settings(max_examples=80, deadline=None)
def test_a_balance_draws_each_cell_its_share_from_its_own_rows(table, batch_size, balance):
    data = data_of(table)
    generator = torch.Generator().manual_seed(0)
    batches = list(stratified_batches(data, batch_size, generator=generator, balance=balance))
    drawn = torch.cat(batches)
    assert len(drawn) == len(data)
    assert (data.groups[drawn, 0] >= 0).all()
    known = {cell: size for cell, size in counts(data).items() if cell[1] >= 0}
    got = counts(data.subset(drawn))
    for label, group in known:
        expected = len(data) * oracle_share(known, label, group, balance)
        assert abs(got.get((label, group), 0) - expected) < 1
        rows = torch.nonzero((data.targets == label) & (data.groups[:, 0] == group)).flatten()
        times = torch.bincount(drawn, minlength=len(data))[rows]
        assert times.max() - times.min() <= 1  # every row of the cell once before any comes again
        per_batch = [batch_counts(data, rows).get((label, group), 0) for rows in batches]
        assert max(per_batch) - min(per_batch) <= 1


def oracle_share(known, label, group, balance):
    total = sum(known.values())
    groups, here = {g for _, g in known}, known[label, group]
    in_label = [size for (y, _), size in known.items() if y == label]
    in_group = [size for (_, g), size in known.items() if g == group]
    if balance == "group":
        return here / sum(in_group) / len(groups)
    if balance == "group_in_label":
        return sum(in_label) / total / len(in_label)
    return 1 / len(known)


def test_no_batch_lacks_the_minoritys_positives():
    # 10 % minority, 15 % positive, batches of 64: 39 % of random batches have no minority positive
    rng = np.random.default_rng(0)
    groups, targets = (rng.random(6400) < 0.1).astype(int), (rng.random(6400) < 0.15).astype(int)
    data = from_arrays(torch.zeros(6400, 1), targets, groups)
    wanted = torch.from_numpy((groups == 1) & (targets == 1))
    generator = torch.Generator().manual_seed(0)
    random = torch.randperm(6400, generator=generator).split(64)
    assert np.mean([not wanted[rows].any() for rows in random]) > 0.25
    for balance in ("none", "group", "group_in_label", "cell"):
        batches = stratified_batches(data, 64, generator=generator, balance=balance)
        expected = min(int(wanted.sum()) // 100, 1)
        assert all(int(wanted[rows].sum()) >= expected for rows in batches)


def test_up_sampling_keeps_the_minoritys_positives():
    groups, targets = [0] * 90 + [1] * 10, [0, 1] * 45 + [0] * 8 + [1] * 2
    data = from_arrays(torch.zeros(100, 1), targets, groups)
    for balance, expected in (("group", 10), ("group_in_label", 24), ("cell", 25)):
        batches = stratified_batches(data, 10, generator=torch.Generator().manual_seed(0), balance=balance)
        drawn = torch.cat(list(batches))
        positives = drawn[(data.groups[drawn, 0] == 1) & (data.targets[drawn] == 1)]
        assert abs(len(positives) - expected) <= 1
        assert set(positives.tolist()) == {98, 99}


def test_batches_repeat_with_the_generator_and_change_without():
    data = grouped(50)
    first, again, other = (
        [rows.tolist() for rows in stratified_batches(data, 8, generator=torch.Generator().manual_seed(seed))]
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_the_strata_of_several_attributes_are_their_combinations():
    data = grouped(400)
    number = -(-400 // 40)
    for rows in stratified_batches(data, 40, generator=torch.Generator().manual_seed(0)):
        for a in (0, 1):
            for b in (0, 1):
                here = (data.groups == torch.tensor([a, b])).all(1)
                size = int((here & (data.targets == 1)).sum())
                got = int((here & (data.targets == 1))[rows].sum())
                assert size // number <= got <= -(-size // number)


def test_a_rare_label_is_in_every_batch():
    targets = torch.zeros(200, 3, dtype=torch.int64)
    targets[:, 0] = 1
    targets[::20, 2] = 1
    data = from_arrays(torch.zeros(200, 1), targets, [0, 1] * 100)
    batches = list(stratified_batches(data, 20, generator=torch.Generator().manual_seed(0)))
    assert [int(data.targets[rows][:, 2].sum()) for rows in batches] == [1] * 10


def test_a_balance_without_known_groups_is_an_error():
    data = from_arrays(torch.zeros(4, 1), [0, 1, 0, 1], [-1] * 4)
    with pytest.raises(GroupError, match="there are none"):
        list(stratified_batches(data, 2, generator=torch.Generator(), balance="cell"))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "balance": "groups"}])
def test_batches_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match="expected"):
        list(stratified_batches(grouped(), generator=torch.Generator(), **options))


def test_iterate_gives_the_batches_asked_for(manifest):
    data = load(manifest(), cache_bytes=0)
    batches = list(data.iterate([torch.tensor([3, 1]), torch.tensor([5])]))
    assert [batch.targets.tolist() for batch in batches] == [[1, 1], [1]]
    assert list(data.iterate([])) == []


def test_stopping_early_leaves_nothing_running(manifest):
    batches = load(manifest(), cache_bytes=0).batches(1)
    next(batches)
    batches.close()
    assert isinstance(load(manifest()), GroupedData)
