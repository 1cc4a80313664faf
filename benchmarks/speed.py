"""Ratios inside one run: importance, the masked step, the head step, the whole debiasing: python -m benchmarks.speed

Each pair is timed in turn, A B A B ..., and the median of the ratios is printed, so that a busy machine slows both.
"""

import argparse
import copy
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from benchmarks import plain
from benchmarks.common import footer, spread_answers, table
from bmft import fairness
from bmft.data import load_manifest
from bmft.masks import WeightMask, weight_importances
from bmft.methods import debias
from bmft.models import find_head, penultimate_features
from bmft.training import Loss, SelectedWeights, Step, tune

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PUBLISHED = {"preset": "paper"}
NORMALIZE = "0.5,0.5,0.5/0.25,0.25,0.25"


def make_images(folder: Path, n: int, seed: int = 0) -> Path:
    """Noise with a label and a group in it: speed does not look at what is drawn."""
    rng = np.random.default_rng(seed)
    rows = ["path,label,group"]
    for i in range(n):
        label, group = i % 2, i // 2 % 2
        pixels = rng.normal(110 + 25 * label + 12 * group, 40, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        rows.append(f"{i}.jpg,{label},{group}")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder / "manifest.csv"


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both and the median of the ratios, first to second."""
    pairs = []
    for _ in range(rounds + 1):
        pair = []
        for function in (first, second):
            start = time.perf_counter()
            function()
            pair.append(time.perf_counter() - start)
        pairs.append(pair)
    times = np.array(pairs[1:])  # the first round warms up
    return (float(np.median(times[:, 0])), float(np.median(times[:, 1])), float(np.median(times[:, 0] / times[:, 1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole-only", action="store_true", help="only the whole procedures and their memory")
    parser.add_argument("--peak-of", choices=["ours", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=1).eval()
    with tempfile.TemporaryDirectory() as name:
        manifest = make_images(Path(name), options.images)
        load = lambda: load_manifest(manifest, target="label", sensitive="group", normalize=NORMALIZE)  # noqa: E731
        files = plain.Files(
            [(manifest.parent / f"{i}.jpg", i % 2, i // 2 % 2) for i in range(options.images)], MEAN, STD
        )
        with torch.no_grad():
            spread_answers(model.fc, model(load().inputs(slice(0, 64))), load().targets)
        whole = {
            "ours": lambda: ours(model, load(), PUBLISHED),
            "ours32": lambda: ours(model, load(), {**PUBLISHED, "precision": "float32"}),
            "path": lambda: ours(model, load(), {"preset": "path", "epochs": (10, 10), "patience": 0}),
            "plain": lambda: plain.published(copy.deepcopy(model), files, "fc", epochs=(10, 10)),
        }
        if options.peak_of:
            whole[options.peak_of]()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            return
        rows = [] if options.whole_only else list(measured(model, load(), options.rounds))
        rows += compared(whole)
    peaks = {side: peak(side, options.images) for side in ("ours", "plain")}
    rows.append(
        ["peak memory, MiB (ours / plain)", peaks["ours"], peaks["plain"], peaks["ours"] / peaks["plain"], "about 1"]
    )
    printed = [[name, f"{a:.3g}", f"{b:.3g}", f"{r:.2f}", aim] for name, a, b, r, aim in rows]
    print(table(["what (A / B)", "A", "B", "A / B", "aim"], printed))
    images = f"{options.images} of 64x64"
    print(f"\n{footer(model='resnet18', images=images, precision='ours auto, else float32', seed=0)}")


def compared(whole: dict[str, Callable[[], object]]) -> Iterator[list[object]]:
    """The whole procedures, once each: they are too long to be repeated, and long enough to be even."""
    seconds = {}
    for side, run in whole.items():
        start = time.perf_counter()
        run()
        seconds[side] = time.perf_counter() - start
    named = {"ours": "ours", "ours32": "ours in float32", "path": "ours with `--preset path`"}
    for side, what in named.items():
        name = f"whole debiasing, 10 + 10 epochs (plain published / {what})"
        yield [name, seconds["plain"], seconds[side], seconds["plain"] / seconds[side], "at least 1.8"]


def measured(model, data, rounds):
    objectives = [fairness.equalized_odds_gap, fairness.cross_entropy]
    importances = lambda: weight_importances(model, objectives, data, batch_size=64)  # noqa: E731
    found = ratio(importances, lambda: passes(model, data, 2), rounds)
    yield ["both importances, exact / two forward and two backward passes", *found, "at most 1.15"]
    loss = Loss(fairness.equalized_odds_gap, 1.0, 1.0)
    scores = {name: torch.rand(p.shape) for name, p in model.named_parameters()}
    body = [name for name in scores if not name.startswith("fc")]
    few, every = WeightMask.top_fraction(scores, 0.05, within=body), WeightMask.by_name(model, *body)
    for name in ("sgd", "adamw"):
        epochs = [lambda m=m, o=name: one_epoch(model, data, loss, m, o) for m in (few, every)]
        yield [f"an epoch of step 1, {name}: 5 % selected / every weight", *ratio(*epochs, rounds), "at most 1"]
        steps = [step_alone(model, mask, name) for mask in (few, every)]
        yield [f"{name} step alone: 5 % selected / every weight", *ratio(*steps, rounds), "at most 1"]
    found = ratio(lambda: head_epochs(model, data, loss, 10), lambda: passes(model, data, 0), rounds)
    yield ["10 epochs of step 2 / one forward pass over the data", *found, "at most 1.3"]


def passes(model, data, backward: int) -> None:
    for _ in range(max(backward, 1)):
        for batch in data.batches(64):
            with torch.set_grad_enabled(backward > 0):
                logits = model(batch.inputs)
            if backward:
                model.zero_grad()
                nn_loss(logits, batch).backward()


def nn_loss(logits, batch):
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], batch.targets.float())


def one_epoch(model, data, loss, mask, optimizer) -> None:
    step = Step(1, 1e-5, optimizer=optimizer)
    tune(copy.deepcopy(model), data, loss, mask, step, generator=torch.Generator().manual_seed(0))


def step_alone(model, mask, optimizer) -> Callable[[], None]:
    copied = copy.deepcopy(model)
    nn_loss(copied(torch.randn(4, 3, 64, 64)), _Targets()).backward()
    chosen = SelectedWeights(copied, mask)
    owner = Step(1, 1e-5, optimizer=optimizer).make_optimizer([chosen.vector])

    def steps() -> None:
        for _ in range(10):
            chosen.collect_gradients()
            chosen.step(owner)

    return steps


class _Targets:
    targets = torch.tensor([0, 1, 0, 1])


def head_epochs(model, data, loss, epochs: int) -> None:
    copied = copy.deepcopy(model)
    head = find_head(copied, data.inputs(slice(0, 2)))
    module = copied.get_submodule(head.name)
    step = Step(epochs, 1e-2, balance="cell")
    tune(
        module,
        penultimate_features(copied, head, data),
        loss,
        WeightMask.by_name(module),
        step,
        generator=torch.Generator().manual_seed(0),
    )


def ours(model, data, config) -> None:
    """`debias` with every epoch run, and a select set so small that looking at it costs next to nothing."""
    debias(model, data, data.subset(torch.arange(32)), config=config, keep="last", device="cpu", allow_shared_rows=True)


def peak(side: str, images: int) -> float:
    """Of a process that does only this, MiB."""
    command = [sys.executable, "-m", "benchmarks.speed", "--peak-of", side, "--images", str(images)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]) / 1024


if __name__ == "__main__":
    main()
