"""Which weights to move: masks compared over whole trade-off curves: python -m benchmarks.mask_study [--sets ...]

Every mask gets the same step 1 (same batches, same rule for the learning rate) on the fit set. The extractor is then
put at points of the way from the original, with the original's head, and select gives AUC and gap of each point. A
curve's figure is the smallest gap on it at an AUC loss of at most d, averaged over d = 0, .005, .01, .015 and .02, as
a share of the untouched model's gap: one number that does not reward a mask for merely going further.
"""

import argparse
import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.common import SHARED, cached, footer, table
from bmft import WeightMask, audit, fairness, load_checkpoint, load_manifest, predict, relative, weight_importances
from bmft.compute import autocast_for, laid_out_for_speed
from bmft.data import GroupedData, from_arrays
from bmft.datasets import make_demo, train_demo_model
from bmft.models import find_head
from bmft.training import Loss, Step, tune

DROPS = (0.0, 0.005, 0.01, 0.015, 0.02)
POINTS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
Scores = Mapping[str, Tensor]


def bias(gradients: "Gradients") -> Scores:
    return {n: g.square() for n, g in gradients.bias.items()}


def published(gradients: "Gradients") -> Scores:
    return relative(bias(gradients), to=gradients.task_fisher())


def floored(gradients: "Gradients") -> Scores:
    return relative(bias(gradients), to=gradients.task_fisher(), scale="global", floor=0.01)


def damped(gradients: "Gradients") -> Scores:
    """Bias importance over the task's, damped by its mean."""
    task = gradients.task_fisher()
    mean = torch.cat([t.flatten() for t in task.values()]).mean()
    return {n: b / (task[n] + mean) for n, b in bias(gradients).items()}


def projected(gradients: "Gradients") -> Scores:
    """The gap's gradient without its part along the task's."""
    along = sum((gradients.bias[n] * t).sum() for n, t in gradients.task.items())
    size = sum(t.square().sum() for t in gradients.task.values())
    return {n: (g - along / size * gradients.task[n]).square() for n, g in gradients.bias.items()}


def agreeing(gradients: "Gradients") -> Scores:
    """Only weights whose step helps the gap and the task alike, by the product of both gradients."""
    return {n: (g * gradients.task[n]).clamp_min(0) for n, g in gradients.bias.items()}


def input_x_gradient(gradients: "Gradients") -> Scores:
    weights = dict(gradients.model.named_parameters())
    return {n: (weights[n].detach() * g).abs() for n, g in gradients.bias.items()}


def damped_per_sample(gradients: "Gradients") -> Scores:
    """The same with the mean of each sample's own squared gradient for the task."""
    task = gradients.scores(fairness.cross_entropy, "fisher", exact=False, batch_size=1)
    mean = torch.cat([t.flatten() for t in task.values()]).mean()
    return {n: b / (task[n] + mean) for n, b in bias(gradients).items()}


def integrated(gradients: "Gradients") -> Scores:
    """Each weight's share of the gap on the way from zero weights."""
    return gradients.scores(fairness.equalized_odds_gap, "integrated_gradients")


def random(gradients: "Gradients") -> Scores:
    generator = torch.Generator().manual_seed(gradients.seed)
    return {n: torch.rand(g.shape, generator=generator) for n, g in gradients.bias.items()}


class Gradients:
    """The whole fit set's gradients of the gap and of the task, by Captum."""

    def __init__(self, model: nn.Module, fit: GroupedData, seed: int, exact: bool = True) -> None:
        self.model, self.fit, self.seed = model, fit, seed
        objectives = [fairness.equalized_odds_gap, fairness.cross_entropy]
        signed = lambda weight, gradient: gradient  # noqa: E731
        self.bias, self.task = weight_importances(
            model, objectives, fit, score=signed, exact=exact, autocast=autocast_for(torch.device("cpu"), "auto", model)
        )

    def task_fisher(self) -> Scores:
        return {n: g.square() for n, g in self.task.items()}

    def scores(self, objective: fairness.Objective, score: str, **options: Any) -> Scores:
        (found,) = weight_importances(self.model, [objective], self.fit, score=score, **options)
        return found


MASKS: dict[str, tuple[Callable[[Gradients], Scores], dict[str, Any]]] = {
    "bias, exact": (bias, {}),
    "random": (random, {}),
    "bias per batch (published)": (bias, {"exact": False}),
    "ratio per tensor (published)": (published, {}),
    "ratio, global, floor .01": (floored, {}),
    "bias over damped task": (damped, {}),
    "bias without the task's direction": (projected, {}),
    "signed agreement with the task": (agreeing, {}),
    "bias over damped per-sample task": (damped_per_sample, {}),
    "input x gradient": (input_x_gradient, {}),
    "integrated gradients": (integrated, {}),
    "bias, refreshed every epoch": (bias, {"refreshed": True}),
    "bias, layers": (bias, {"granularity": "layer"}),
    "bias, channels": (bias, {"granularity": "channel"}),
    "random, channels": (random, {"granularity": "channel"}),
}


def ham(attribute: str, seed: int) -> tuple[nn.Module, GroupedData, GroupedData]:
    fit, select = (
        load_manifest(
            SHARED / "data/ham10000-64/metadata.csv",
            target="label",
            sensitive=attribute,
            split_column="split",
            split=split,
            cluster="lesion_id",
            image_size=64,
            normalize="0.76,0.55,0.57/0.14,0.15,0.17",
        )
        for split in ("fit", "select")
    )
    return load_checkpoint(SHARED / "models/ham10000_resnet18.pt"), fit, select


def generated(seed: int) -> tuple[nn.Module, GroupedData, GroupedData]:
    parts = make_demo(4000, seed)
    fit, select = (parts[name].with_attributes("skin") for name in ("fit", "select"))
    return train_demo_model(parts["train"], seed), fit, select


def digits(seed: int) -> tuple[nn.Module, GroupedData, GroupedData]:
    """Scikit-learn's digits, high or low, with a bright corner that in training mostly goes with a high one.

    The group is whether the corner is lit; in fit and select it is lit for half of either label.
    """
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    found = load_digits()
    order = rng.permutation(len(found.target))
    images = (found.images[order] / 16).astype("float32")
    images += rng.normal(0, 0.4, images.shape).astype("float32")
    high = (found.target[order] >= 5).astype(int)
    part = np.repeat(["train", "fit", "select"], [900, 400, 497])
    lit = np.where(part == "train", rng.random(len(high)) < 0.1 + 0.8 * high, rng.random(len(high)) < 0.5).astype(int)
    images[:, :2, :2] += lit[:, None, None]
    inputs = torch.from_numpy(images)[:, None]
    data = {
        name: from_arrays(inputs[rows], high[rows], lit[rows], attributes={"lit": ("no", "yes")})
        for name in ("train", "fit", "select")
        for rows in [part == name]
    }
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 1),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    train, generator = data["train"], torch.Generator().manual_seed(seed)
    for _ in range(15):
        for rows in torch.randperm(len(train), generator=generator).split(64):
            logits = model(train.inputs(rows))[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, train.targets[rows].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), data["fit"], data["select"]


SETS: dict[str, Callable[[int], tuple[nn.Module, GroupedData, GroupedData]]] = {
    "digits": digits,
    "generated": generated,
    "ham10000 by age_ge60": lambda seed: ham("age_ge60", seed),
    "ham10000 by sex": lambda seed: ham("sex", seed),
}


def measure(setting: str, mask: str, fraction: float, seed: int, epochs: int, optimizer: str) -> dict[str, Any]:
    model, fit, select = SETS[setting](seed)
    return trade_off(model, fit, select, mask, fraction, seed, epochs, optimizer)


def trade_off(
    model: nn.Module,
    fit: GroupedData,
    select: GroupedData,
    mask: str,
    fraction: float,
    seed: int,
    epochs: int,
    optimizer: str,
) -> dict[str, Any]:
    """The points ``(AUC, mean gap)`` of the way, the untouched model first, and the share of weights moved."""
    tuned = laid_out_for_speed(copy.deepcopy(model).eval())
    head = find_head(tuned, fit.inputs(slice(0, 2)))
    body = [name for name, _ in tuned.named_parameters() if name not in head.parameters]
    parameters = dict(tuned.named_parameters())
    start = {name: parameters[name].detach().clone() for name in body}
    loss = Loss(fairness.equalized_odds_gap, 1.0, 1.0, balance="none")
    generator = torch.Generator().manual_seed(seed)
    turns = epochs if MASKS.get(mask, (None, {}))[1].get("refreshed") else 1
    moved = ~WeightMask.by_name(tuned)
    for _ in range(turns):
        chosen = select_weights(tuned, fit, body, mask, fraction, seed)
        moved = moved | chosen
        tune(
            tuned,
            fit,
            loss,
            chosen,
            Step(epochs // turns, 0.0, optimizer, balance="cell", average=0.95),
            generator=generator,
            autocast=autocast_for(torch.device("cpu"), "auto", tuned),
        )
    end = {name: parameters[name].detach().clone() for name in body}
    curve = []
    for point in (0.0, *POINTS):
        with torch.no_grad():
            for name in body:
                parameters[name].copy_(torch.lerp(start[name], end[name], point))
        report = audit(predict(tuned, select, device="cpu"), intervals=False)
        attribute = next(iter(report.gaps))
        curve.append([report.overall["roc_auc"], report.gaps[attribute]["average_odds_difference"]])
    return {"curve": curve, "moved": moved.density}


def select_weights(
    model: nn.Module, fit: GroupedData, body: list[str], mask: str, fraction: float, seed: int
) -> WeightMask:
    if mask == "full":
        return WeightMask.by_name(model, *body)
    make, options = MASKS[mask]
    scores = make(Gradients(model, fit, seed, exact=options.get("exact", True)))
    return WeightMask.top_fraction(scores, fraction, within=body, granularity=options.get("granularity", "weight"))


def figure(result: Mapping[str, Any]) -> float:
    """The mean over the allowed losses of AUC of the smallest gap, as a share of the untouched model's."""
    (auc, gap), *_ = result["curve"]
    smallest = [min(g for a, g in result["curve"] if a >= auc - drop) for drop in DROPS]
    return float(np.mean(smallest) / gap)


def paired(first: list[float], second: list[float]) -> str:
    """The mean difference over seeds and its 95 % t interval."""
    differences = np.array(first) - np.array(second)
    if len(differences) < 2:
        return f"{differences.mean():+.3f}"
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return f"{differences.mean():+.3f} [{differences.mean() - half:+.3f}, {differences.mean() + half:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--masks", nargs="*", default=["full", *MASKS], choices=["full", *MASKS])
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.05])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--optimizer", default="sgd", choices=["sgd", "adamw"])
    options = parser.parse_args()
    for setting in options.sets:
        if "ham" in setting and not SHARED.is_dir():
            print(f"{setting} skipped: the data are not at {SHARED} (set BMFT_SHARED)")
            continue
        print(f"\n{tabulate(setting, options)}\n\n{facts(setting, options)}")


def facts(setting: str, options: argparse.Namespace) -> str:
    return footer(seeds=options.seeds, data=setting, epochs=options.epochs, optimizer=options.optimizer)


def tabulate(setting: str, options: argparse.Namespace) -> str:
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for fraction in options.fractions:
            for mask in options.masks:
                key = {
                    "set": setting,
                    "mask": mask,
                    "fraction": 1.0 if mask == "full" else fraction,
                    "seed": seed,
                    "epochs": options.epochs,
                    "optimizer": options.optimizer,
                }
                result = cached(
                    "mask_study", key, lambda: measure(setting, mask, fraction, seed, options.epochs, options.optimizer)
                )
                found.setdefault((mask, fraction), []).append(result)
    rows = []
    for (mask, fraction), results in found.items():
        figures = [figure(result) for result in results]
        versus = [
            paired(figures, [figure(r) for r in found[other, fraction]]) if (other, fraction) in found else ""
            for other in ("random", "full")
        ]
        moved = f"{100 * np.mean([r['moved'] for r in results]):.1f} %"
        rows.append([mask, moved, f"{np.mean(figures):.3f}", *versus])
    rows.sort(key=lambda row: row[2])
    return table([setting, "weights moved", "gap left", "against random", "against full"], rows)


if __name__ == "__main__":
    main()
