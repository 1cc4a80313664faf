"""More than a binary label and two groups, on the shared HAM10000 checkpoint: python -m benchmarks.many_groups

The 7 diagnoses and two labels (malignant, keratinocytic) get a head each, trained on the checkpoint's own features of
the train split; the binary label is audited by five age groups and by sex x age. Chosen and measured on the select
split.
"""

import argparse
import copy
from functools import cache
from typing import Any

import pandas as pd
import torch
from torch import nn

from benchmarks.common import HERE, SHARED, cached, footer, mean_and_spread, table
from bmft.checkpoints import load_checkpoint
from bmft.data import GroupedData, load_manifest
from bmft.methods import debias
from bmft.models import find_head, penultimate_features

KERATINOCYTIC = ("akiec", "bcc", "bkl")
# What is classified, by which attribute.
TASKS: dict[str, tuple[str | list[str], str]] = {
    "7 diagnoses, by age": ("dx", "age:60"),
    "2 labels, by age": (["label", "keratinocytic"], "age:60"),
    "binary, by five age groups": ("label", "age:30,45,60,75"),
    "binary, by sex x age": ("label", "sex*age:60"),
}
METHODS = ("bmft", "rwreg", "dfr")


@cache
def manifest() -> str:
    """The metadata with a second label, beside the benchmark's cache."""
    rows = pd.read_csv(SHARED / "data/ham10000-64/metadata.csv")
    rows["keratinocytic"] = rows["dx"].isin(KERATINOCYTIC).astype(int)
    path = HERE / "cache" / "many_groups.csv"
    path.parent.mkdir(exist_ok=True)
    rows.to_csv(path, index=False)
    return str(path)


def read(target: str | list[str], attribute: str, split: str, limit: int | None) -> GroupedData:
    data = load_manifest(
        manifest(),
        target=target,
        sensitive=attribute,
        images=SHARED / "data/ham10000-64",
        split_column="split",
        split=split,
        cluster="lesion_id",
        image_size=64,
        normalize="0.76,0.55,0.57/0.14,0.15,0.17",
    )
    return data if limit is None else data.subset(torch.arange(min(limit, len(data))))


def with_head(data: GroupedData, outputs: int, *, steps: int) -> nn.Module:
    """The checkpoint with another head, trained on its cached features of `data` with cells of one label alike."""
    model = copy.deepcopy(load_checkpoint(SHARED / "models/ham10000_resnet18.pt")).eval()
    cached_features = penultimate_features(model, find_head(model), data)
    if cached_features is None:
        raise RuntimeError("the shared checkpoint's head is not its last layer")
    features, labels = cached_features.inputs(slice(None)), data.targets
    torch.manual_seed(0)
    model.fc = nn.Linear(features.shape[1], outputs)
    optimizer = torch.optim.AdamW(model.fc.parameters(), lr=3e-3, weight_decay=1e-2)
    loss: nn.Module = nn.BCEWithLogitsLoss()
    if labels.dim() == 1:
        # The square root: full balancing of 7 classes drowns the common ones.
        share = torch.bincount(labels, minlength=outputs).clamp_min(1).float().rsqrt()
        loss = nn.CrossEntropyLoss(share / share.mean())
    for _ in range(steps):
        rows = torch.randint(len(labels), (256,))
        optimizer.zero_grad()
        loss(model.fc(features[rows]), labels[rows].float() if labels.dim() == 2 else labels[rows]).backward()
        optimizer.step()
    return model.eval()


def measure(task: str, method: str, seed: int, epochs: tuple[int, int], limit: int | None) -> dict[str, Any]:
    target, attribute = TASKS[task]
    fit, select = (read(target, attribute, split, limit) for split in ("fit", "select"))
    if target == "label":
        model = load_checkpoint(SHARED / "models/ham10000_resnet18.pt")
    else:
        train = read(target, attribute, "train", limit)
        model = with_head(train, len(train.classes), steps=1500 if limit is None else 50)
    outcome = debias(
        model, fit, select, method=method, config={"epochs": epochs, "path": (0.5, 1.0)}, seed=seed, device="cpu"
    )
    name = fit.attributes[0].name
    result: dict[str, Any] = {"accepted": outcome.accepted, "seconds": outcome.report.seconds["total"]}
    for side, report in (("before", outcome.before), ("after", outcome.after)):
        areas = [figures["roc_auc"] for figures in report.by_group[name].values()]
        result[side] = {
            "groups": len(areas),
            "mean gap": report.gaps[name]["average_odds_difference"],
            "larger gap": report.gaps[name]["equalized_odds_difference"],
            "AUC": report.overall["roc_auc"],
            "worst group's AUC": min(area for area in areas if area == area),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs=2, default=[5, 5])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--limit", type=int, help="rows per split, to see that it runs")
    options = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: the data are not at {SHARED} (set BMFT_SHARED)")
        return
    rows = []
    for task in options.tasks:
        for method in options.methods:
            results = [
                cached(
                    "many_groups",
                    {"task": task, "method": method, "seed": seed, "epochs": options.epochs, "limit": options.limit},
                    lambda: measure(task, method, seed, tuple(options.epochs), options.limit),
                )
                for seed in range(options.seeds)
            ]
            names = [name for name in results[0]["before"] if name != "groups"]
            if method == options.methods[0]:
                before = results[0]["before"]
                rows.append([task, before["groups"], "untouched", "", *(f"{before[name]:.3f}" for name in names)])
            accepted = f"{sum(r['accepted'] for r in results)}/{len(results)}"
            figures = [mean_and_spread(r["after"][name] for r in results) for name in names]
            rows.append(["", "", method, accepted, *figures])
    header = ["what, by whom", "groups", "method", "accepted", *names]
    print(f"{table(header, rows)}\n\n{footer(seeds=options.seeds, data='ham10000-64, select split')}")


if __name__ == "__main__":
    main()
