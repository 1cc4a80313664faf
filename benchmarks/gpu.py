"""Step 1 on a CUDA device against a bare training loop, in images per second: python -m benchmarks.gpu

ResNet-50 and ViT-B/16 at 224 px. Both sides move every weight by SGD with momentum, in the same precision, batch size
and memory layout; the bare loop finds its normalized batches on the device. Without such a device it is skipped.
"""

import argparse
import copy
import time

import torch
from torch import nn

from benchmarks.common import footer, table
from benchmarks.scale import noise, untrained
from bmft.compute import autocast_for, laid_out_for_speed
from bmft.data import GroupedData
from bmft.methods import debias

MODELS = ("resnet50", "vit_b_16")


def now(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ours(model: nn.Module, data: GroupedData, epochs: int, batch_size: int, device: torch.device) -> float:
    """Images per second of step 1 after its first epoch; the select set is as small as can be."""
    moments: list[float] = []
    few = data.subset(torch.arange(8))
    config = {
        "epochs": (epochs + 1, 0),
        "patience": 0,
        "lr": (1e-6, 1e-2),
        "depth": 1.0,
        "score": "ones",
        "path": [1.0],
        "bias_weight": [1.0, 1.0],
        "batch_size": batch_size,
    }
    debias(
        model,
        data,
        few,
        config=config,
        keep="last",
        device=str(device),
        intervals=False,
        progress=lambda progress: moments.append(now(device)) if progress.phase == "step 1" else None,
    )
    return len(data) * epochs / (moments[-1] - moments[0])


def bare(model: nn.Module, data: GroupedData, epochs: int, batch_size: int, device: torch.device) -> float:
    """Images per second of forward, backward and step over batches that lie on the device."""
    network = laid_out_for_speed(copy.deepcopy(model).to(device))
    autocast = autocast_for(device, "auto", network)
    batches = [batch.to(device) for batch in data.batches(batch_size)]
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
    start = now(device)
    for _ in range(epochs):
        epoch()
    return len(data) * epochs / (now(device) - start)


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
        found = [run(model, data, options.epochs, options.batch_size, device) for run in (ours, bare)]
        rows.append([name, *(f"{value:.0f}" for value in found), f"{found[0] / found[1]:.2f}", "at least 0.85"])
    print(table(["model", "step 1, images per second", "bare loop", "ratio", "aim"], rows))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    images = f"{options.images} of {options.side}x{options.side}"
    print(f"\n{footer(on=where, images=images, batch_size=options.batch_size, seed=0)}")


if __name__ == "__main__":
    main()
