"""Importance, step 1 and a whole run on a CUDA device against a bare training loop: python -m benchmarks.gpu

ResNet-50, ViT-B/16 and ViT-L/16 at 224 px. The bare loop and step 1 move every weight by SGD with momentum, in the same
precision, batch size and memory layout; the bare loop finds its normalized batches on the device. The whole run is
`debias` at its default settings, twice with each of two seeds. Without such a device it is skipped.
"""

import argparse
import copy
import time
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.common import footer, table
from benchmarks.scale import noise, untrained
from bmft import fairness
from bmft.compute import autocast_for, laid_out_for_speed
from bmft.data import GroupedData
from bmft.masks import weight_importances
from bmft.methods import Outcome, debias

MODELS = ("resnet50", "vit_b_16", "vit_l_16")
HEADER = ["model", "what", "figure", "against", "ratio", "aim"]


@dataclass(frozen=True)
class Bench:
    """One network on one device, and how much of it is run."""

    name: str
    model: nn.Module
    data: GroupedData
    epochs: int
    batch_size: int
    device: torch.device

    def now(self) -> float:
        """The time, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak(self) -> float:
        """MiB that lay on the device at once since the last call; 0 where there is no such count."""
        if self.device.type != "cuda":
            return 0.0
        found = torch.cuda.max_memory_allocated(self.device) / 2**20
        torch.cuda.reset_peak_memory_stats(self.device)
        return found

    def bare(self) -> float:
        """Seconds of an epoch forward, backward and step over batches that lie on the device."""
        network = laid_out_for_speed(copy.deepcopy(self.model).to(self.device))
        autocast = autocast_for(self.device, "auto", network)
        batches = [batch.to(self.device) for batch in self.data.batches(self.batch_size)]
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, fused=True)

        def epoch() -> None:
            for batch in batches:
                optimizer.zero_grad()
                with autocast():
                    logits = network(batch.inputs)
                loss = nn.functional.binary_cross_entropy_with_logits(logits[:, 0].float(), batch.targets.float())
                loss.backward()
                optimizer.step()

        epoch()
        start = self.now()
        for _ in range(self.epochs):
            epoch()
        return (self.now() - start) / self.epochs

    def step(self) -> tuple[float, float]:
        """Seconds of an epoch of step 1 after its first, and until that one was over; the select set is tiny."""
        config = {"preset": "path", "epochs": (self.epochs + 1, 0), "patience": 0, "lr": (1e-6, 1e-2), "depth": 1.0}
        config |= {"score": "ones", "path": [1.0], "bias_weight": [1.0, 1.0], "optimizer": "sgd", "views": ["none"]}
        moments = [self.now()]
        debias(
            self.model,
            self.data,
            self.data.subset(torch.arange(8)),
            config={**config, "batch_size": self.batch_size},
            keep="last",
            device=str(self.device),
            intervals=False,
            allow_shared_rows=True,
            progress=lambda progress: moments.append(self.now()) if progress.phase == "step 1" else None,
        )
        return (moments[-1] - moments[1]) / self.epochs, moments[1] - moments[0]

    def importance(self) -> float:
        """Seconds of the exact importance of every weight for the gap, the device being warm."""
        network = laid_out_for_speed(copy.deepcopy(self.model).to(self.device))
        rows = self.data.on(self.device, 2**34)
        autocast = autocast_for(self.device, "auto", network)

        def once() -> None:
            weight_importances(
                network, [fairness.equalized_odds_gap], rows, batch_size=self.batch_size, autocast=autocast
            )

        once()
        start = self.now()
        once()
        return self.now() - start

    def whole(self, seed: int) -> tuple[Outcome, float]:
        """A run at the default settings whose end is kept, and its seconds."""
        fit, select = self.data.split(0.5, 0.5, seed=0)
        start = self.now()
        found = debias(
            self.model,
            fit,
            select,
            seed=seed,
            config={"batch_size": self.batch_size},
            keep="last",
            device=str(self.device),
            intervals=False,
        )
        return found, self.now() - start

    def rows(self) -> list[list[str]]:
        """The table's rows of this network."""
        self.peak()
        bare = self.bare()
        bare_peak = self.peak()
        importance, (step, first) = self.importance(), self.step()
        self.peak()
        runs = [self.whole(seed) for seed in (0, 0, 1, 1)]
        peak = self.peak()
        outcomes, seconds = [found for found, _ in runs], min(spent for _, spent in runs)
        epochs = max(entry.epoch for entry in outcomes[0].report.history if entry.step == 1)
        alone = bare * epochs / 2  # it learns from half of the images
        same = all(identical(outcomes[place], outcomes[place + 1]) for place in (0, 2))
        inside = all(moved_inside(self.model, found) for found in outcomes)
        size, memory = len(self.data), f"{peak / bare_peak:.2f}" if bare_peak else "-"
        images, passes, aim = f"bare loop {size / bare:.0f}", f"two bare epochs {2 * bare:.2f}", "at most 1.15"
        rows = [
            ["step 1, images per second", f"{size / step:.0f}", images, f"{bare / step:.2f}", "at least 0.85"],
            ["importance, s", f"{importance:.2f}", passes, f"{importance / (2 * bare):.2f}", aim],
            ["until the first epoch is over, s", f"{first:.2f}", f"a bare epoch {bare:.2f}", f"{first / bare:.2f}", ""],
            [
                "whole run, s",
                f"{seconds:.1f}",
                f"its epochs in the bare loop {alone:.1f}",
                f"{seconds / alone:.2f}",
                "",
            ],
            ["peak memory of the whole run, MiB", f"{peak:.0f}", f"bare loop {bare_peak:.0f}", memory, "about 1"],
            ["outside the mask every bit as before", yes(inside), "four runs", "", "yes"],
            ["the same seed twice, the same bytes", yes(same), "two seeds", "", "yes"],
        ]
        return [[self.name, *row] for row in rows]


def identical(first: Outcome, second: Outcome) -> bool:
    """Whether both came to the same weights, to the last bit."""
    other = second.model.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.model.state_dict().items())


def moved_inside(model: nn.Module, outcome: Outcome) -> bool:
    """Whether no weight outside the mask differs from the original's by a bit, and some inside does."""
    after, moved = dict(outcome.model.named_parameters()), False
    for name, weight in model.named_parameters():
        changed = after[name].detach().cpu() != weight.detach().cpu()
        if bool((changed & (outcome.mask.tensors[name].cpu() == 0)).any()):
            return False
        moved |= bool(changed.any())
    return moved


def yes(holds: bool) -> str:
    """In a word."""
    return "yes" if holds else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--device", default="cuda", help="cpu only shows that it runs")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device here")
        return
    device = torch.device(options.device)
    data, rows = noise(options.images, options.side), []
    for name in options.models:
        model = untrained(name, data)
        rows += Bench(name, model, data, options.epochs, options.batch_size, device).rows()
        print(f"{name} is done", flush=True)
    print(table(HEADER, rows))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    images = f"{options.images} of {options.side}x{options.side}"
    print(f"\n{footer(on=where, images=images, batch_size=options.batch_size, seeds='0 and 1')}")


if __name__ == "__main__":
    main()
