"""Importances and step 1 of a network whose activations do not fit: python -m benchmarks.checkpointing

timm's ViT at random weights on images of noise, one batch, in a process of its own whose peak of memory is read. With
checkpointing (`Settings.checkpointing`) a pass keeps what enters each block and runs the block again.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import timm
import torch

from benchmarks.common import HERE, footer, table
from bmft import fairness
from bmft.compute import Room, autocast_for, choose_device
from bmft.data import from_arrays
from bmft.masks import WeightMask, weight_importances
from bmft.models import find_head, upper
from bmft.training import Loss, Step, tune


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, images: int, precision: str, checkpointing: bool, share: float) -> dict[str, float]:
    """Seconds and MiB at most after each part."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1).eval()
    found = {"weights": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20, "start": peak()}
    rows, side = torch.arange(images), model.default_cfg["input_size"][-1]
    pixels = torch.randn(images, 3, side, side) + (rows % 2 + 0.5 * (rows // 2 % 2))[:, None, None, None]
    data = from_arrays(pixels, rows % 2, rows // 2 % 2)
    autocast = autocast_for(choose_device("cpu"), precision, model)  # type: ignore[arg-type]
    body = upper(model, find_head(model, data.inputs(slice(0, 2))), share)
    start = time.perf_counter()
    options = {"only": body, "batch_size": images, "autocast": autocast, "recompute": checkpointing}
    (scores,) = weight_importances(model, [fairness.equalized_odds_gap], data, **options)
    nothing = {name: torch.zeros(()).expand(parameter.shape) for name, parameter in model.named_parameters()}
    mask = WeightMask.top_fraction(nothing | dict(scores), 0.05, within=body, granularity="layer")
    del scores
    found |= {"importance, s": time.perf_counter() - start, "importance": peak()}
    print(found, file=sys.stderr, flush=True)
    start, generator = time.perf_counter(), torch.Generator().manual_seed(0)
    loss, step = Loss(fairness.equalized_odds_gap, 1.0, 1.0), Step(1, 1e-4, batch_size=images, balance="cell")
    tune(model, data, loss, mask, step, generator=generator, autocast=autocast, room=Room(recompute=checkpointing))
    return found | {"step 1, s": time.perf_counter() - start, "step 1": peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--images", type=int, default=16, help="the batch, and all there are")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--share", type=float, default=0.75, help="of the blocks in which weights may move")
    parser.add_argument("--only", choices=["on", "off"], help="with checkpointing, or without")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.model, args.images, args.precision, args.only == "on", args.share)))
        return
    printed = []
    for only in [args.only] if args.only else ["off", "on"]:
        told = [f"--{name}={getattr(args, name)}" for name in ("model", "images", "precision", "share")]
        command = [sys.executable, "-m", "benchmarks.checkpointing", *told, "--only", only, "--here"]
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        seconds = [f"{found[part] / args.images:.2f}" for part in ("importance, s", "step 1, s")]
        printed.append(
            [only, *(f"{found[part]:.0f}" for part in ("weights", "start", "importance", "step 1")), *seconds]
        )
    header = ["checkpointing", "weights, MiB", "peak at the start, MiB", "after importance", "after step 1"]
    print(table([*header, "importance, s per image", "step 1"], printed))
    print(f"\n{footer(model=args.model, images=args.images, precision=args.precision, seed=0)}")


if __name__ == "__main__":
    main()
