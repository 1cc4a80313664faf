"""A small world for the tests: drawn images of two groups, and a classifier that learned the wrong cue."""

import csv
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import settings
from PIL import Image
from torch import Tensor, nn

# How long an example takes is no property of it on a machine that does other things too.
settings.register_profile("bmft", deadline=None)
settings.load_profile("bmft")
# More threads than the tests need fight with whatever else runs here.
torch.set_num_threads(min(2, torch.get_num_threads()))

SPLITS = {"fit": 120, "select": 120, "test": 240}


def pytest_collection_finish() -> None:
    """What the libraries made when they were imported stays: it need not be looked through over and over."""
    gc.collect()
    gc.freeze()


def draw(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """Noise; a brighter or darker centre (overlapping) is the label, a red or green tint the group."""
    images = rng.normal(0.5, 0.12, (len(labels), size, size, 3))
    sign = 0.06 * (2 * labels - 1) + rng.normal(0, 0.05, len(labels))
    images[:, size // 4 : -size // 4, size // 4 : -size // 4] += sign[:, None, None, None]
    images[..., 0] += (0.08 * (2 * groups - 1))[:, None, None]
    return np.asarray((np.clip(images, 0, 1) * 255).astype(np.uint8))


def people(n: int, agreement: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups that agree as often as told."""
    groups = rng.integers(0, 2, n)
    return np.where(rng.random(n) < agreement, groups, 1 - groups), groups


def as_inputs(images: np.ndarray) -> Tensor:
    """Normalized as ``--normalize imagenet`` does."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)


def biased_model(seed: int = 0) -> nn.Module:
    """A ShuffleNet trained where group and label nearly always agree: it takes the tint for the label."""
    rng = np.random.default_rng(seed)
    labels, groups = people(512, 0.85, rng)
    inputs, targets = as_inputs(draw(labels, groups, rng)), torch.from_numpy(labels).float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = torchvision.models.shufflenet_v2_x0_5(num_classes=1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(6):
            for rows in torch.randperm(len(labels)).split(64):
                loss = nn.functional.binary_cross_entropy_with_logits(model(inputs[rows])[:, 0], targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def write_study(folder: Path, seed: int = 1) -> None:
    """``isic.csv`` and its images; two images per patient, a patient in one split."""
    rng = np.random.default_rng(seed)
    (folder / "img").mkdir()
    with (folder / "isic.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "malignant", "sex", "age", "patient_id", "split"])
        for split, n in SPLITS.items():
            labels, groups = people(n, 0.5, rng)
            ages = rng.integers(20, 90, n)
            for i, image in enumerate(draw(labels, groups, rng)):
                name = f"img/{split}{i:03d}.png"
                Image.fromarray(image).save(folder / name)
                sex = "" if i == 7 else ("female", "male")[groups[i]]
                rows.writerow([name, labels[i], sex, ages[i], f"{split}-{i // 2}", split])


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model.pt`` (biased), ``isic.csv`` and ``img/``; tests read it and write elsewhere."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    torch.save(biased_model().state_dict(), folder / "model.pt")
    return folder


@pytest.fixture
def data_options(study: Path) -> list[str]:
    """The command line's options for the study's data."""
    return [
        "--data",
        str(study / "isic.csv"),
        "--label",
        "malignant",
        "--sensitive",
        "sex",
        "--cluster",
        "patient_id",
        "--split-column",
        "split",
        "--image-size",
        "32",
    ]


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch is one of its rows, however few: for tests of what surrounds the steps."""
    monkeypatch.setattr("bmft.methods.losses.ENOUGH", 1)


@pytest.fixture
def plain_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart is its caption: for tests of what surrounds the charts."""
    from bmft.report.svg import inline

    monkeypatch.setattr(
        "bmft.report.figures.render", lambda _, caption, **__: inline("<svg></svg>", caption, "0 0 1 1")
    )


@pytest.fixture
def bmft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in an empty folder; gives back the exit code."""
    from bmft_cli.main import main

    monkeypatch.chdir(tmp_path)
    return lambda *args: main([str(arg) for arg in args])


@pytest.fixture
def one_thread():
    """As each of several processes has: sums of more threads may differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
