"""Which networks gain by bfloat16 on this CPU, and what `precision = "auto"` does: python -m benchmarks.precision

A pass forward and backward of each at random weights, in both precisions in turn; the least CPU time of the rounds.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext

import timm
import torch
import torchvision
from torch import nn

from benchmarks.common import footer, table
from bmft.compute import Precision, autocast_for, laid_out_for_speed
from bmft.datasets import build_model

CPU = torch.device("cpu")
TORCHVISION = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "squeezenet1_1",
    "googlenet",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "mnasnet1_0",
    "shufflenet_v2_x1_0",
)


def vit(width: int, depth: int) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, depth=depth, embed_dim=width, num_heads=4, num_classes=1
    )


def networks() -> dict[str, Callable[[], nn.Module]]:
    more = {"googlenet": {"aux_logits": False, "init_weights": False}}
    found: dict[str, Callable[[], nn.Module]] = {"the demo's": build_model}
    for width, depth in ((64, 4), (96, 4), (128, 4), (192, 12)):
        found[f"timm ViT, {depth} blocks of {width}"] = lambda w=width, d=depth: vit(w, d)  # type: ignore[misc]
    for name in TORCHVISION:
        found[name] = lambda n=name: torchvision.models.get_model(n, num_classes=1, **more.get(n, {}))  # type: ignore[misc]
    return found


def seconds(model: nn.Module, inputs: torch.Tensor, precision: Precision) -> float:
    start = time.process_time()
    with autocast_for(CPU, precision, model)():
        logits = model(inputs)
    logits.float().square().mean().backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=64)
    args = parser.parse_args()
    rows = []
    for name, make in networks().items():
        torch.manual_seed(0)
        model = laid_out_for_speed(make().eval())
        inputs = torch.randn(args.batch, 3, args.side, args.side).to(memory_format=torch.channels_last)
        _, *rounds = [[seconds(model, inputs, p) for p in ("float32", "bf16")] for _ in range(1 + args.rounds)]
        full, half = (min(column) for column in zip(*rounds, strict=True))
        takes = "no" if autocast_for(CPU, "auto", model) is nullcontext else "yes"
        million = sum(p.numel() for p in model.parameters()) / 1e6
        rows.append([name, f"{million:.1f}", f"{full:.3f}", f"{half:.3f}", f"{full / half:.2f}", takes])
    header = ["network", "million weights", "float32, s", "bfloat16, s", "times as fast", "auto takes it"]
    print(f"{table(header, rows)}\n\n{footer(seed=0, batch=args.batch, side=args.side)}")


if __name__ == "__main__":
    main()
