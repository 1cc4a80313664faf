"""The synthetic set: what is drawn, who is in it, and that it makes a model biased."""

import numpy as np
import pytest
import torch

from bmft.data import load_manifest
from bmft.datasets.demo import SPLITS, TONES, build_model, demo_table, make_demo, train_demo_model, write_demo
from bmft.datasets.drawing import draw
from bmft.errors import ConfigError, DataError
from bmft.fairness import equalized_odds_gap


def test_the_same_seed_draws_the_same_set():
    first, again, other = (make_demo(100, seed, image_size=16)["fit"] for seed in (3, 3, 4))
    assert first.content_hash == again.content_hash
    assert first.content_hash != other.content_hash


def test_a_set_on_disk_is_the_set_in_memory(tmp_path):
    memory = make_demo(100, 1, image_size=24)
    path = write_demo(tmp_path / "demo", 100, 1, image_size=24)
    for name in SPLITS:
        sensitive = ["skin", "tone", "sex"]
        data = load_manifest(path, target="label", sensitive=sensitive, split_column="split", split=name)
        assert torch.equal(data.inputs(slice(None)), memory[name].inputs(slice(None)))
        assert torch.equal(data.groups, memory[name].groups)
        assert torch.equal(data.targets, memory[name].targets)


def test_files_are_called_synthetic(tmp_path):
    write_demo(tmp_path, 100, image_size=16)
    assert all(path.name.startswith("synthetic_") for path in (tmp_path / "images").iterdir())


def test_the_archive_lacks_dark_skin_and_malignancy_on_it():
    table = demo_table(20_000)
    archive, population = table[table["split"] == "train"], table[table["split"] != "train"]
    for part, share, rates in ((archive, 0.10, (0.40, 0.08)), (population, 0.40, (0.35, 0.35))):
        dark = part["skin"] == "dark"
        assert dark.mean() == pytest.approx(share, abs=0.03)
        assert part[~dark]["label"].mean() == pytest.approx(rates[0], abs=0.03)
        assert part[dark]["label"].mean() == pytest.approx(rates[1], abs=0.03)


def test_ink_goes_with_malignancy_in_the_archive_only():
    table = demo_table(20_000)
    marked = table.groupby([table["split"] == "train", "label"])["ink"].mean()
    assert marked[True, 1] > 5 * marked[True, 0]
    assert marked[False, 1] == pytest.approx(marked[False, 0], abs=0.03)


def test_a_patient_has_one_skin_and_one_split():
    table = demo_table(2000)
    for column in ("skin", "tone", "sex", "age", "split"):
        assert table.groupby("patient_id")[column].nunique().max() == 1
    assert table["patient_id"].duplicated().any()


@pytest.mark.parametrize("seed", range(5))
def test_every_cell_is_in_the_small_splits(seed):
    for name, part in demo_table(5000, seed).groupby("split"):
        if name != "train":
            assert part.groupby(["skin", "label"]).size().min() >= 50


def shades(label, tone):
    images = draw(np.full(40, label), np.full(40, tone), np.zeros(40, int), size=32).astype(float)
    return images[:, 12:20, 12:20].mean(), images[:, :3, :3].mean()


def test_lesions_are_darker_than_skin_and_skin_darkens_with_its_tone():
    skins = []
    for tone in range(len(TONES)):
        lesion, skin = shades(0, tone)
        assert lesion < 0.8 * skin
        skins.append(skin)
    assert skins == sorted(skins, reverse=True)


def test_a_mark_changes_only_the_images_that_have_one():
    label, tone = np.zeros(20, int), np.arange(20) % 6
    ink = np.arange(20) % 2
    plain, marked = draw(label, tone, np.zeros(20, int), size=32), draw(label, tone, ink, size=32)
    changed = (plain != marked).any((1, 2, 3))
    assert changed.tolist() == (ink == 1).tolist()


def test_a_lesion_does_not_depend_on_how_many_are_drawn():
    label, tone, ink = np.arange(100) % 2, np.arange(100) % 6, np.zeros(100, int)
    few = draw(label[:80], tone[:80], ink[:80], size=16)
    assert np.array_equal(draw(label, tone, ink, size=16)[:80], few)


def test_training_repeats_with_its_seed_and_leaves_the_global_generator_alone():
    archive = make_demo(200, image_size=32)["train"]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models = [train_demo_model(archive, seed, epochs=1) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    first, again, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not models[0].training


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_network_can_be_built_by_name(outputs):
    assert build_model(outputs)(torch.zeros(2, 3, 64, 64)).shape == (2, outputs)


def test_too_few_images_or_no_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="100 images or more"):
        demo_table(99)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_demo(tmp_path / "file", 100, image_size=16)


@pytest.mark.slow
def test_a_plainly_trained_model_is_accurate_and_biased():
    parts = make_demo()
    model, test = train_demo_model(parts["train"]), parts["test"]
    with torch.inference_mode():
        scores = torch.cat([model(batch.inputs).sigmoid() for batch in test.batches(256)])[:, 0]
    decisions = (scores > 0.5).float()
    gap = equalized_odds_gap(decisions, test.targets, test.groups[:, 0])
    ranks = scores.argsort().argsort().double() + 1
    positive = test.targets == 1
    auc = (ranks[positive].mean() - (positive.sum() + 1) / 2) / (~positive).sum()
    assert gap > 0.2
    assert 0.87 < auc < 0.95
