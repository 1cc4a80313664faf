"""A small timm ViT trained on the generated archive, then a search over its blocks: python -m benchmarks.vit_search

One switch per block for norms, attention and MLP (the published auto_peft1) and, with ``--detail layer``, for every
norm by itself (auto_peft2). Chosen on select, measured on test.
"""

import argparse
import time
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.common import footer, table
from bmft import audit, debias, search
from bmft.data import GroupedData
from bmft.datasets import make_demo

SIDE = 32


def vit(seed: int = 0, side: int = SIDE, **but: Any) -> nn.Module:
    """Four blocks of 64 channels on 8 x 8 patches, or what is said."""
    torch.manual_seed(seed)
    options = {"patch_size": side // 8, "depth": 4, "embed_dim": 64, "num_heads": 4} | but
    return timm.create_model("vit_tiny_patch16_224", img_size=side, num_classes=1, **options)


def trained(data: GroupedData, *, epochs: int, seed: int = 0, model: nn.Module | None = None) -> nn.Module:
    """A network, the ViT unless another is given, after plain training, which balances nothing."""
    model, generator = vit(seed) if model is None else model.train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (1 + len(data) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(data), generator=generator).tensor_split(1 + len(data) // 64):
            logits = model(data.inputs(rows))[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, data.targets[rows].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--detail", choices=["component", "layer"], default="component")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    parts = {k: v.with_attributes("skin") for k, v in make_demo(args.images, args.seed, image_size=SIDE).items()}
    start = time.perf_counter()
    model = trained(parts["train"], epochs=args.epochs, seed=args.seed)
    print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
    fit, select, test = (parts[name] for name in ("fit", "select", "test"))
    single = debias(model, fit, select, test=test, seed=args.seed, device="cpu")
    found = search(
        model,
        fit,
        select,
        test=test,
        goal="average_odds",
        trials=args.trials,
        detail=args.detail,
        seed=args.seed,
        device="cpu",
    )
    reports = {
        "untouched": audit(model, test, intervals=False, device="cpu"),
        "debias": single.after,
        f"search, {args.trials} trials": found.outcome.after,
    }
    keys = ("average_odds_difference", "equalized_odds_difference")
    rows = [
        [name, *(f"{report.gaps['skin'][key]:.3f}" for key in keys), f"{report.overall['roc_auc']:.3f}"]
        for name, report in reports.items()
    ]
    print(table(["run", "mean gap", "larger gap", "AUC"], rows))
    tuned = [f"{block} {part}" for block, parts in found.summary["mask"].items() for part, on in parts.items() if on]
    passes = f"{found.summary['image_passes']:,} image-passes"
    print(f"\ntuned by the winner: {', '.join(tuned) or 'the head alone'}; {passes}")
    print(f"\n{footer(timm=timm.__version__, seed=args.seed, data='generated, test split', detail=args.detail)}")


if __name__ == "__main__":
    main()
