"""A search against the published loop, on the same space: python -m benchmarks.search_speed

The published loop decodes the images in every trial, runs the whole network forward and backward in every epoch and
reports once, at the end. `bmft search` stops a trial that lags, and a run at its end that falls behind the winner.
Both start from the same biased network (a ResNet-18, a small timm ViT) trained on the generated archive,
fine-tune what a trial selects with AdamW at the trial's rate, and maximise the worst group's ROC AUC on select. Both
end with the winner's weights: the published loop trains it once more and has those of the last epoch. Value: that AUC
of what is kept, on test, which chose nothing, and on select, which chose it. The seconds are the processor's, which
other processes change little.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import torchvision
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.common import cached, footer, table
from benchmarks.vit_search import trained, vit
from bmft import load_manifest, search
from bmft.data import GroupedData
from bmft.datasets import write_demo
from bmft.fairtune import search_space
from bmft.methods import settings_for

RATE = 1e-3
SPLITS = ("test", "select")
NETWORKS = {
    "resnet18": lambda side: torchvision.models.resnet18(num_classes=1),
    "timm ViT, 4 blocks of 64": lambda side: vit(side=side),
}


def sets(manifest: Path, *splits: str) -> list[GroupedData]:
    return [
        load_manifest(manifest, target="label", sensitive="skin", split_column="split", split=split) for split in splits
    ]


def ours(model: nn.Module, manifest: Path, trials: int, epochs: int, seed: int) -> nn.Module:
    fit, select = sets(manifest, "fit", "select")
    config = {"epochs": [epochs, 0], "lr": [RATE, RATE], "optimizer": "adamw"}
    found = search(
        model,
        fit,
        select,
        method="selective",
        goal="worst_group_auc",
        trials=trials,
        config=config,
        seed=seed,
        device="cpu",
        max_auc_drop=1.0,
        max_group_auc_drop=1.0,
    )
    return found.outcome.model


def published(model: nn.Module, manifest: Path, trials: int, epochs: int, seed: int) -> nn.Module:
    base = settings_for("selective", {"lr": [RATE, RATE]})
    (fit,) = sets(manifest, "fit")
    space = search_space(model, fit.inputs(slice(0, 2)), base)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for _, point in space.fixed_points(base)[:trials]:
        study.enqueue_trial(point)

    def tried(trial: optuna.trial.BaseTrial) -> nn.Module:
        chosen = {name: trial.suggest_categorical(name, [True, False]) for name in space.switches}
        rate = trial.suggest_float(*space.rate, log=True)
        names = {p for switch, on in chosen.items() if on for p in space.switches[switch]} | set(space.head)
        (fit,) = sets(manifest, "fit")
        return fine_tuned(model, fit, names, rate, epochs, seed)

    study.optimize(lambda trial: worst_group_auc(tried(trial), *sets(manifest, "select")), n_trials=trials)
    return tried(optuna.trial.FixedTrial(study.best_params))


def fine_tuned(model: nn.Module, fit: GroupedData, names: set[str], rate: float, epochs: int, seed: int) -> nn.Module:
    network, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(fit), generator=generator).split(64):
            logits = network(fit.inputs(rows))[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, fit.targets[rows].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


def worst_group_auc(model: nn.Module, data: GroupedData) -> float:
    with torch.no_grad():
        scores = torch.cat([model(batch.inputs)[:, 0] for batch in data.batches(64)]).numpy()
    groups, targets = data.groups[:, 0].numpy(), data.targets.numpy()
    known = np.unique(groups[groups >= 0])
    return min(float(roc_auc_score(targets[groups == g], scores[groups == g])) for g in known)


def measure(network: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_demo(folder, args.images, seed, image_size=args.side)
        (archive,) = sets(manifest, "train")
        model = trained(archive, epochs=args.training, seed=seed, model=NETWORKS[network](args.side))
        found = {}
        for name, run in (("ours", ours), ("published", published)):
            start = time.process_time()
            kept = run(model, manifest, args.trials, args.epochs, seed)
            found[name] = {"seconds": time.process_time() - start}
            for split, rows in zip(SPLITS, sets(manifest, *SPLITS), strict=True):
                found[name][split] = worst_group_auc(kept, rows)
    return found


def shown(figures: Sequence[float]) -> list[str]:
    """Two figures of seconds, their ratio and the values in words."""
    first, second, ratio, *values = figures
    return [f"{first:.0f}", f"{second:.0f}", f"{ratio:.1f}", *(f"{value:.3f}" for value in values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1500, help="of which 12 %% fit and as many select")
    parser.add_argument("--training", type=int, default=12, help="epochs of the network that is searched")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20, help="of a trial")
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    rows = []
    for network in args.networks:
        runs = []
        for seed in range(args.seeds):
            key = {**vars(args), "network": network, "seed": seed, "networks": None, "seeds": None}
            one = cached("search_speed", key, lambda: measure(network, seed, args))
            theirs, mine = one["published"], one["ours"]
            values = [side[split] for split in SPLITS for side in (theirs, mine)]
            runs.append([theirs["seconds"], mine["seconds"], theirs["seconds"] / mine["seconds"], *values])
            rows.append([network, seed, *shown(runs[-1])])
        if len(runs) > 1:
            rows.append([network, "mean", *shown(np.mean(runs, axis=0))])
    header = ["network", "seed", "published, processor seconds", "ours", "ratio"]
    header += [f"{who} on {split}" for split in SPLITS for who in ("published", "ours")]
    facts = footer(trials=args.trials, epochs=args.epochs, images=args.images, side=args.side)
    print(f"{table(header, rows)}\n\n{facts}")


if __name__ == "__main__":
    main()
