"""A synthetic dermatology set, drawn by formula: no photograph, no patient, no clinical meaning.

Lesions whose shape (asymmetry, ragged border) and colour (variegation) carry the label, on skin tones I to
VI. The ``train`` split is a biased archive; ``fit``, ``select`` and ``test`` are the population a model
meets:

========================  ==================  =======================
                          ``train``           ``fit, select, test``
========================  ==================  =======================
dark skin (IV-VI)         10 %                40 %
malignant, light / dark   40 % / 8 %          35 % / 35 %
ink mark round a lesion   20 % of malignant   10 % of all
                          ones on light skin
========================  ==================  =======================

A model trained on ``train`` learns that dark skin means benign, and misses malignant lesions there.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from bmft._common import put
from bmft.data import GroupedData, from_arrays
from bmft.datasets.drawing import draw
from bmft.errors import ConfigError, DataError
from bmft.tables import encode_attribute

SPLITS = {"train": 0.4, "fit": 0.12, "select": 0.12, "test": 0.36}
RATES = {  # dark skin; malignant there; malignant on light skin; inked (malignant on light skin, all others)
    "train": (0.10, 0.08, 0.40, (0.20, 0.02)),
    "population": (0.40, 0.35, 0.35, (0.10, 0.10)),
}
TONES = ("I", "II", "III", "IV", "V", "VI")


def make_demo(
    n: int = 5000, seed: int = 0, *, image_size: int = 64, normalize: str = "imagenet"
) -> dict[str, GroupedData]:
    """Draw the set in memory: ``train``, ``fit``, ``select``, ``test``, with attributes skin, tone and sex.

    >>> parts = make_demo(200, image_size=16)
    >>> {name: len(part) for name, part in parts.items()}
    {'train': 80, 'fit': 24, 'select': 24, 'test': 72}
    >>> parts["fit"].attributes[0]
    Attribute(name='skin', groups=('dark', 'light'))
    """
    table = demo_table(n, seed)
    encoded = [encode_attribute(table, name) for name in ("skin", "tone", "sex")]
    whole = from_arrays(
        _draw(table, seed, image_size),
        table["label"].to_numpy(),
        np.stack([ids for _, ids in encoded], axis=1),
        attributes=[attribute for attribute, _ in encoded],
        clusters=table["patient_id"].to_numpy(str),
        normalize=normalize,
    )
    split = table["split"].to_numpy()
    return {name: whole.subset(torch.from_numpy(np.flatnonzero(split == name))) for name in SPLITS}


def write_demo(folder: str | Path, n: int = 5000, seed: int = 0, *, image_size: int = 64) -> Path:
    """Write the set as PNG files and ``manifest.csv`` under `folder`; returns the manifest's path.

    Raises:
        DataError: the folder cannot be written.
    """
    folder, table = Path(folder), demo_table(n, seed)
    images = _draw(table, seed, image_size)

    def write(path: str, image: object) -> None:
        Image.fromarray(image).save(folder / path, compress_level=1)  # type: ignore[arg-type]

    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(write, table["path"], images))
        put(table.to_csv(index=False), folder / "manifest.csv")
    except OSError as error:
        raise DataError(f"{folder}: the demo set cannot be written: {error.strerror or error}.") from error
    return folder / "manifest.csv"


def demo_table(n: int = 5000, seed: int = 0) -> pd.DataFrame:
    """Who is in the set: path, label, skin, tone, sex, age, patient, ink mark and split of every image."""
    if n < 100:
        raise ConfigError(f"n = {n}: the demo set needs 100 images or more.")
    rng = np.random.default_rng([seed, 1])
    parts = [_people(name, round(share * n), rng) for name, share in SPLITS.items()]
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "path", [f"images/synthetic_{row:05d}.png" for row in range(len(table))])
    return table


def _people(split: str, n: int, rng: np.random.Generator) -> pd.DataFrame:
    dark_share, dark_rate, light_rate, marked_rate = RATES["train" if split == "train" else "population"]
    patient = np.repeat(np.arange(n), rng.choice([1, 1, 1, 2, 3], size=n))[:n]
    dark = _some(patient[-1] + 1, dark_share, rng)[patient]
    malignant = np.zeros(n, dtype=bool)
    malignant[dark], malignant[~dark] = (_some(dark.sum(), dark_rate, rng), _some((~dark).sum(), light_rate, rng))
    ink = np.zeros(n, dtype=bool)
    for rows, share in ((malignant & ~dark, marked_rate[0]), (~malignant | dark, marked_rate[1])):
        ink[rows] = _some(rows.sum(), share, rng)
    tone = np.where(dark, rng.integers(3, 6, n)[patient], rng.integers(0, 3, n)[patient])
    age = np.clip(rng.normal(52, 17, n), 18, 92).round()[patient]
    return pd.DataFrame(
        {
            "label": malignant.astype(int),
            "skin": np.where(dark, "dark", "light"),
            "tone": np.array(TONES)[tone],
            "sex": rng.choice(["female", "male", ""], p=[0.49, 0.49, 0.02], size=n)[patient],
            "age": age.astype(int),
            "patient_id": [f"{split}-{i:05d}" for i in patient],
            "ink": ink.astype(int),
            "split": split,
        }
    )


def _some(n: int, share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """`n` truth values, of which exactly this share is true: chance decides who, not how many."""
    return rng.permutation(n) < round(share * n)


def _draw(table: pd.DataFrame, seed: int, image_size: int) -> np.ndarray:
    tone = table["tone"].map(TONES.index).to_numpy(np.int64)
    return draw(table["label"].to_numpy(), tone, table["ink"].to_numpy(), seed=seed, size=image_size)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a 1 x 1 shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class DemoNet(nn.Module):
    """A small residual network: 79,000 weights, trained in seconds on one core."""

    def __init__(self, num_outputs: int = 1, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1), ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 4 * width, 2)
        )
        self.fc = nn.Linear(4 * width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, h, w)`` to ``(n, num_outputs)`` logits."""
        logits: Tensor = self.fc(self.blocks(self.stem(x)).mean(dim=(2, 3)))
        return logits


def build_model(num_outputs: int = 1) -> nn.Module:
    """The demo's network; at the command line ``--arch bmft.datasets.demo:build_model``."""
    return DemoNet(num_outputs)


def train_demo_model(data: GroupedData, seed: int = 0, *, epochs: int = 10) -> nn.Module:
    """Train `build_model` on `data` as plain training code does, balancing nothing; eval mode, CPU."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model()
    steps = max(len(data) // 64, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(data), generator=generator).tensor_split(steps):
            logits = model(_flipped(data.inputs(rows), generator))
            loss = functional.binary_cross_entropy_with_logits(logits[:, 0], data.targets[rows].float())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model.eval()


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    horizontal, vertical, turned = (torch.rand(3, generator=generator) < 0.5).tolist()
    images = images.flip(3) if horizontal else images
    images = images.flip(2) if vertical else images
    return images.transpose(2, 3) if turned else images
