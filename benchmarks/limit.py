"""How close `debias` is to its own compute, and how soon it has a given gap: python -m benchmarks.limit

The first table times the whole call against a bare loop of the forward and backward passes it cannot do without, over
batches that lie in memory as the passes want them. The second takes one thing after another away from `debias` and
times it again. The third times `debias` and the plain published procedure until the select set's gap is half the
untouched model's, at an AUC and a balanced accuracy that fell by no more than .01.
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torchvision
from torch import nn

from benchmarks import plain
from benchmarks.common import THREADS, footer, spread_answers, table
from benchmarks.speed import make_images, nn_loss, ratio
from bmft.compute import AT_ONCE, autocast_for
from bmft.data import GroupedData, load_manifest
from bmft.datasets import demo_table, make_demo, train_demo_model, write_demo
from bmft.inference import audit, predict
from bmft.methods import Outcome, debias, settings_for
from bmft.models import Activations

EPOCHS = (10, 5)
IMAGES = 5000  # of the generated set, drawn for all its splits
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZE = "0.5,0.5,0.5/0.25,0.25,0.25"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--plain-epochs", type=int, default=50, help="of each step, after which plain has not got there"
    )
    parser.add_argument("--only", choices=["whole", "parts", "soon"])
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    images = f"{options.images} of 64x64"
    if options.only in (None, "whole"):
        row = whole(options.images, options.rounds)
        header = ["debias, s", "its passes alone, s", "ratio", "aim"]
        print(table(header, [[*(f"{v:.3g}" for v in row), "at most 1.15"]]))
        print(f"\n{footer(model='resnet18', images=images, precision='auto', seed=0)}\n")
    if options.only in (None, "parts"):
        print(table(["debias", "seconds", "times the first"], parts(options.images, options.rounds, options.parts)))
        print(f"\n{footer(model='resnet18', images=images, epochs=EPOCHS, seed=0)}\n")
    if options.only in (None, "soon"):
        rows = [row for seed in range(options.seeds) for row in soon(seed, options.plain_epochs)]
        print(table(["seed", "procedure", "reached", "seconds", "times ours"], rows))
        print(f"\n{footer(data='generated, select split', precision='float32')}")


def untrained(images: int) -> tuple[nn.Module, GroupedData, GroupedData]:
    """A ResNet-18 at random weights, a fit set of so many images and a select set of a quarter."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=1).eval()
    with tempfile.TemporaryDirectory() as name:
        manifest = make_images(Path(name), images + images // 4)
        data = load_manifest(manifest, target="label", sensitive="group", normalize=NORMALIZE)
    with torch.no_grad():
        spread_answers(model.fc, model(data.inputs(slice(0, 64))), data.targets)
    return model, data.subset(torch.arange(images)), data.subset(torch.arange(images, len(data)))


def whole(images: int, rounds: int) -> tuple[float, float, float]:
    """Seconds of `debias` at its default settings to the end of the path, of its passes alone, and the ratio."""
    model, fit, select = untrained(images)
    anything = {"max_auc_drop": 1.0, "max_group_auc_drop": 1.0, "max_calibration_rise": 1.0}
    found: list[Outcome] = []

    def run() -> None:
        found.append(debias(model, fit, select, device="cpu", **anything))

    return ratio(run, bare(model, fit, select, found), rounds)


@dataclass(frozen=True)
class Part:
    """What is taken away: settings, keywords, or what stands in the place of one of bmft's functions."""

    config: dict[str, Any] = field(default_factory=dict)
    keywords: dict[str, Any] = field(default_factory=dict)
    without: Callable[[], AbstractContextManager[Any]] = nullcontext
    threads: int = THREADS


PARTS = {
    "as it is": Part(),
    "in float32": Part({"precision": "float32"}),
    "channels not last": Part(
        without=lambda: patch.object(sys.modules["bmft.methods.debiasing"], "laid_out_for_speed", lambda model: model)
    ),
    "what stays below is computed again": Part(keywords={"activations": Activations(limit=0, on_disk=0)}),
    "weights of every block move": Part({"depth": 1.0}),
    "step 2 runs the whole network": Part(
        without=lambda: patch("bmft.methods.run.penultimate_features", return_value=None)
    ),
    "all weights of the upper blocks move": Part({"fraction": 1.0}),
    "one thread": Part(threads=1),
}


def parts(images: int, rounds: int, chosen: list[str]) -> list[list[str]]:
    """Median seconds without each of the parts, and of the ratios to a run with all of them just before."""
    model, fit, select = untrained(images)
    common = {"preset": "path", "epochs": EPOCHS, "patience": 0}

    def seconds(part: Part) -> float:
        torch.set_num_threads(part.threads)
        start = time.perf_counter()
        with part.without():
            debias(model, fit, select, config={**common, **part.config}, device="cpu", intervals=False, **part.keywords)
        torch.set_num_threads(THREADS)
        return time.perf_counter() - start

    rows = []
    for name in chosen:
        pairs = np.array([[seconds(PARTS["as it is"]), seconds(PARTS[name])] for _ in range(rounds)])
        rows.append([name, f"{np.median(pairs[:, 1]):.1f}", f"{np.median(pairs[:, 1] / pairs[:, 0]):.2f}"])
    return rows


def bare(model: nn.Module, fit: GroupedData, select: GroupedData, found: list[Outcome]) -> Callable[[], None]:
    """The passes of the run that is `found` last: what lies below three quarters of the blocks runs once.

    The importance needs the gradient of all weights above, an epoch that of the layers that move. What trains is in the
    precision that `debias` takes, what judges in float32.
    """
    network = copy.deepcopy(model).to(memory_format=torch.channels_last)
    autocast = autocast_for(torch.device("cpu"), "auto", network)
    below = nn.Sequential(*(getattr(network, n) for n in ("conv1", "bn1", "relu", "maxpool", "layer1")))
    above = nn.Sequential(
        *(getattr(network, n) for n in ("layer2", "layer3", "layer4", "avgpool")), nn.Flatten(), network.fc
    )
    settings = settings_for("bmft")
    batches = list(fit.batches(settings.batch_size))
    images, judged = (
        [batch.inputs.contiguous(memory_format=torch.channels_last) for batch in found]
        for found in (batches, list(select.batches(AT_ONCE)))
    )

    @torch.no_grad()
    def forward(part: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [part(x) for x in inputs]

    def both(inputs: list[torch.Tensor]) -> None:
        for x, batch in zip(inputs, batches, strict=True):
            network.zero_grad()
            with autocast():
                logits = above(x)
            nn_loss(logits.float(), batch).backward()

    def passes() -> None:
        for _ in ("before", "after"):
            forward(network, judged)
        with autocast():
            entering = forward(below, images)
            forward(above, entering)  # the rates that the importance's gradient starts from
        entering_select = forward(below, judged)
        network.requires_grad_(True)
        both(entering)
        for name, moves in found[-1].mask.tensors.items():
            network.get_parameter(name).requires_grad_(bool(moves.any()))
        candidates = [entry for entry in found[-1].report.history if entry.step == 1]
        for _ in range(max(entry.epoch for entry in candidates)):
            both(entering)
        for _ in candidates:
            forward(above, entering_select)
            with autocast():
                forward(above, entering)

    return passes


def soon(seed: int, plain_epochs: int) -> list[list[Any]]:
    """Rows of the second table for one seed."""
    parts = make_demo(IMAGES, seed)
    model = train_demo_model(parts["train"], seed)
    fit, select = parts["fit"], parts["select"]
    start = audit(predict(model, select, device="cpu"), intervals=False)

    def there(report: Any) -> bool:
        return (
            _gap(report) <= _gap(start) / 2
            and report.overall["roc_auc"] >= start.overall["roc_auc"] - 0.01
            and report.overall["balanced_accuracy"] >= start.overall["balanced_accuracy"] - 0.01
        )

    seconds = ours(model, fit, select, seed, there)
    rows = [[seed, "bmft, default", "yes" if seconds else "no", f"{seconds or 0:.1f}", "1"]]
    with tempfile.TemporaryDirectory() as folder:
        write_demo(folder, IMAGES, seed)
        files = _files(Path(folder), seed)
        for times in (1, 10, 100):
            took, reached = published(model, files, select, there, (1e-4 * times, 1e-3 * times), plain_epochs)
            name = f"plain published, learning rates times {times}"
            rows.append(
                [seed, name, "yes" if reached else "no", f"{took:.1f}", f"{took / seconds:.1f}" if seconds else ""]
            )
    return rows


def _gap(report: Any) -> float:
    return float(report.gaps["skin"]["average_odds_difference"])


def ours(model: nn.Module, fit: GroupedData, select: GroupedData, seed: int, there: Callable[[Any], bool]) -> float:
    """Seconds until what `debias` would keep is there; its own looks at the select set count. 0: it never was."""
    start = time.perf_counter()
    arrived = 0.0

    def look(progress: Any) -> None:
        nonlocal arrived
        if not arrived and progress.kept is not None and there(progress.kept):
            arrived = time.perf_counter() - start

    debias(
        model,
        fit,
        select,
        sensitive="skin",
        seed=seed,
        config={"precision": "float32"},
        device="cpu",
        intervals=False,
        progress=look,
    )
    return arrived


def published(
    model: nn.Module,
    files: plain.Files,
    select: GroupedData,
    there: Callable[[Any], bool],
    rates: tuple[float, float],
    epochs: int,
) -> tuple[float, bool]:
    """Seconds of the plain procedure until it is there or ends, looks at the select set left out, and whether it is."""
    tuned = copy.deepcopy(model)
    start, looking, reached = time.perf_counter(), 0.0, False

    def look() -> bool:
        nonlocal looking, reached
        before = time.perf_counter()
        reached = there(audit(predict(tuned, select, device="cpu"), intervals=False))
        looking += time.perf_counter() - before
        return reached

    plain.published(tuned, files, "fc", epochs=(epochs, epochs), rates=rates, after_epoch=look)
    return time.perf_counter() - start - looking, reached


def _files(folder: Path, seed: int) -> plain.Files:
    rows = demo_table(IMAGES, seed)
    rows = rows[rows["split"] == "fit"]
    paths = [folder / path for path in rows["path"]]
    return plain.Files(
        list(zip(paths, rows["label"], rows["skin"] == "light", strict=True)), IMAGENET_MEAN, IMAGENET_STD
    )


if __name__ == "__main__":
    main()
