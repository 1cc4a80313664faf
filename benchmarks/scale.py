"""Time per image and memory as sets and models grow: python -m benchmarks.scale

Each row is a process of its own. In the first table the manifest names the same 256 small files over and over, so that
a million rows fit on a disk, and the network is tiny, so that what is not the network would show. In the second
`debias` runs on few images with torchvision's models at random weights, an epoch of each step.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn

from benchmarks.common import HERE, footer, spread_answers, table
from bmft import fairness
from bmft.data import GroupedData, from_arrays, load_manifest
from bmft.inference import audit, predict
from bmft.masks import WeightMask, weight_importances
from bmft.methods import debias
from bmft.models import find_head, penultimate_features
from bmft.training import Loss, Step, tune

FILES, PIXELS = 256, 32
PARTS = ("load", "audit", "importance", "step 1", "step 2")
MODELS = ("resnet18", "resnet50", "vit_b_16", "vit_l_16")
SIDE, FEW = 224, 16


def write_set(folder: Path, rows: int) -> Path:
    """A manifest of `rows` rows over few files, with a label and a group in the pixels."""
    rng = np.random.default_rng(0)
    for i in range(FILES):
        shade = 100 + 40 * (i % 2) + 15 * (i // 2 % 2)
        image = rng.normal(shade, 40, (PIXELS, PIXELS, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{i}.png")
    with (folder / "manifest.csv").open("w") as file:
        file.write("path,label,group\n")
        file.writelines(f"{i % FILES}.png,{i % 2},{i // 2 % 2}\n" for i in range(rows))
    return folder / "manifest.csv"


def network() -> nn.Sequential:
    """Two convolutions and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 1),
    )


def measure(manifest: Path, streamed: bool, load_only: bool) -> dict[str, float]:
    """Seconds of every part of a run, and by how many MiB the peak of this process's memory grew."""
    options: dict[str, Any] = {"target": "label", "sensitive": "group", "normalize": "none"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, float] = {}

    def timed(part: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        seconds[part] = time.perf_counter() - start
        return result

    data = timed("load", lambda: load_manifest(manifest, cache_bytes=0 if streamed else 4 << 30, **options))
    if not load_only:
        _train(data, timed)
    return {**seconds, "MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def _train(data: GroupedData, timed: Callable[[str, Callable[[], Any]], Any]) -> None:
    model = network()
    timed("audit", lambda: audit(predict(model, data), intervals=False))
    objectives = [fairness.equalized_odds_gap, fairness.cross_entropy]
    bias, _ = timed("importance", lambda: weight_importances(model, objectives, data))
    body = [name for name, _ in model.named_parameters() if not name.startswith("6.")]
    mask = WeightMask.top_fraction(bias, 0.05, within=body)
    loss, generator = Loss(fairness.equalized_odds_gap, 1.0, 1.0), torch.Generator().manual_seed(0)
    timed("step 1", lambda: tune(model, data, loss, mask, Step(1, 1e-4, balance="cell"), generator=generator))

    def head_step() -> None:
        head = find_head(model, data.inputs(slice(0, 2)))
        module, features = model.get_submodule(head.name), penultimate_features(model, head, data)
        assert features is not None
        everything = WeightMask.by_name(module)
        tune(module, features, loss, everything, Step(1, 1e-2, balance="cell"), generator=generator)

    timed("step 2", head_step)


def noise(images: int, side: int) -> GroupedData:
    """Noise with a label and a group in its brightness, as uint8."""
    generator, rows = torch.Generator().manual_seed(0), torch.arange(images)
    shades = 100 + 40 * (rows % 2) + 15 * (rows // 2 % 2)
    pixels = torch.randn(images, side, side, 3, generator=generator) * 40 + shades[:, None, None, None]
    return from_arrays(pixels.clamp(0, 255).to(torch.uint8), rows % 2, rows // 2 % 2, normalize="imagenet")


def untrained(name: str, data: GroupedData) -> nn.Module:
    """One of torchvision's models at random weights, which says the same of everyone: its answers are spread apart."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=1).eval()
    layer = model.get_submodule(find_head(model, data.inputs(slice(0, 2))).name)
    with torch.no_grad():
        nn.init.normal_(layer.weight)  # torchvision's ViTs come with a head of zeros
        logits = torch.cat([model(batch.inputs) for batch in data.subset(torch.arange(16)).batches(8)])
    spread_answers(layer, logits, data.targets)
    return model


def measure_model(name: str) -> dict[str, float]:
    """Seconds of a short `debias` and of a bare pass forward and backward, and MiB of the weights and at both peaks."""
    data = noise(FEW, SIDE)
    model = untrained(name, data)
    start = time.perf_counter()
    for batch in data.batches(8):
        model(batch.inputs).sum().backward()
    bare = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    config = {"preset": "path", "epochs": 1, "path": [1.0], "bias_weight": [1.0, 1.0]}
    config |= {"batch_size": 8, "precision": "float32"}
    debias(model, data, data, config=config, device="cpu", intervals=False, allow_shared_rows=True)
    return {
        "seconds": time.perf_counter() - start,
        "bare": bare,
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20,
        "before": before / 1024,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def show_models(names: list[str]) -> None:
    rows = []
    for name in names:
        found = _run(["--measure-model", name])
        rows.append(
            [
                name,
                f"{found['weights']:.0f}",
                f"{found['bare'] / FEW:.2f}",
                f"{found['seconds'] / FEW:.2f}",
                f"{found['seconds'] / found['bare']:.1f}",
                f"{found['before']:.0f}",
                f"{found['peak']:.0f}",
            ]
        )
    header = [
        "model",
        "weights, MiB",
        "a pass forward and backward, s per image",
        "debias, s per image",
        "debias / pass",
        "peak of a plain pass, MiB",
        "peak of all, MiB",
    ]
    print(table(header, rows))
    print(f"\n{footer(seed=0, images=f'{FEW} of {SIDE}x{SIDE}', batch_size=8, precision='float32')}")


def _run(arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", *arguments]
    done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def in_own_process(rows: int, streamed: bool, load_only: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        manifest = write_set(Path(name), rows)
        return _run(["--measure", str(manifest), *["--streamed"] * streamed, *["--load-only"] * load_only])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000], help="manifests that are only loaded")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--streamed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load-only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--measure-model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_model:
        print(json.dumps(measure_model(options.measure_model)))
        return
    if options.measure:
        print(json.dumps(measure(options.measure, options.streamed, options.load_only)))
        return
    sizes = [(rows, False) for rows in options.images] + [(rows, True) for rows in options.rows]
    printed = []
    for rows, load_only in sizes:
        for streamed in (False, True):
            found = in_own_process(rows, streamed, load_only)
            each = [f"{1e6 * found[part] / rows:.0f}" if part in found else "–" for part in PARTS]
            printed.append([f"{rows:,}", "streamed" if streamed else "in memory", *each, f"{found['MiB']:.0f}"])
    if printed:
        show_sets(printed)
    show_models(options.models)


def show_sets(printed: list[list[str]]) -> None:
    print(table(["images", "pixels", *(f"{part}, µs per image" for part in PARTS), "memory, MiB"], printed))
    print(f"\n{footer(seed=0, images=f'{PIXELS}x{PIXELS} PNG', network='2 convolutions')}\n")


if __name__ == "__main__":
    main()
