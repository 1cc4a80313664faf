"""Which weights to move: masks compared over the whole path of the default recipe: python -m benchmarks.mask_study

Every mask gets the same step 1 of `bmft`'s default preset (rising strengths, Adam, the ranking inside groups held, the
head as it is). Rows that chose nothing give, at the end of each strength, the gap (mean of the differences in true and
false positive rate, with as many rows called positive as by the original) and the ROC AUC inside the groups. Finished
runs are kept under benchmarks/cache and not run again.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.common import SHARED, cached, footer, table
from benchmarks.vit_search import trained, vit
from bmft import WeightMask, fairness, load_checkpoint, load_manifest, weight_importance
from bmft.compute import autocast_for, laid_out_for_speed
from bmft.data import GroupedData, from_arrays
from bmft.datasets import make_demo, train_demo_model
from bmft.errors import ConfigError
from bmft.methods import extractor_loss, graded, known_views, settings_for
from bmft.models import Activations, blocks, components, copied, find_head, forward_logits, tail_above, upper
from bmft.training import tune

REFERENCE = "importance, weight"  # at 5 %
LOSSES = (0.0, 0.005, 0.01, 0.015, 0.02)  # of the AUC inside groups, at which curves are compared
AXES = ("gap", "within", "worst")


@dataclass
class Case:
    """One network and its rows: to fit, and those that choose nothing and are measured on."""

    model: nn.Module
    fit: GroupedData
    rows: GroupedData
    kept: Activations = field(default_factory=Activations)

    def __post_init__(self) -> None:
        self.model = laid_out_for_speed(copied(self.model).eval())
        settings = settings_for("bmft")
        self.settings = replace(settings, views=known_views(self.model, self.fit, settings.views))
        self.head = find_head(self.model, self.fit.inputs(slice(0, 2)))
        self.body = upper(self.model, self.head, self.settings.depth)
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.autocast = autocast_for(torch.device("cpu"), self.settings.precision, self.model)
        self.tail = tail_above(self.model, self.body, self.fit.inputs(slice(0, 4)), autocast=self.autocast)
        viewed = self.fit.with_views(self.settings.views) if self.settings.views else self.fit
        self.seen = [self._entering(viewed, autocast=self.autocast), self._entering(self.rows)]

    def _entering(self, data: GroupedData, **options: Any) -> GroupedData:
        return data if self.tail is None else self.kept.of(self.tail, data, **options) or data

    @cached_property
    def importance(self) -> Mapping[str, Tensor]:
        """Of every weight that may move for the gap, by the whole fit set's gradient."""
        given = weight_importance(
            self.model, fairness.equalized_odds_gap, self.fit, only=self.body, autocast=self.autocast
        )
        return {name: given.get(name, torch.zeros(p.shape)) for name, p in self.model.named_parameters()}

    def mask(self, name: str, fraction: float, seed: int) -> WeightMask:
        """The mask of that name.

        Raises:
            ConfigError: nothing is as small as that.
        """
        generator = torch.Generator().manual_seed(10_000 + seed)
        scores = {n: torch.rand(p.shape, generator=generator) for n, p in self.model.named_parameters()}
        if name == "all":
            return WeightMask.by_name(self.model, *self.body)
        if name == "head and norms":
            norms = [n for of in components(self.model, self.head).values() for n in of.get("norm", ())]
            return WeightMask.by_name(self.model, *self.head.parameters, *({*norms} & {*self.body}))
        if name == "random, as many per layer":
            like = self.mask("importance, weight", fraction, seed)
            return WeightMask({n: _random_like(mask, scores[n]) for n, mask in like.tensors.items()})
        kind, granularity = name.split(", ")
        owner = {n: block for block, names in blocks(self.model, self.head).items() for n in names}
        return WeightMask.top_fraction(
            self.importance if kind == "importance" else scores,
            fraction,
            within=self.body,
            granularity=granularity,  # type: ignore[arg-type]
            unit_of=owner.__getitem__,
        )

    def curve(self, mask: WeightMask, seed: int, until: float) -> list[list[float]]:
        """``[gap, AUC within, worst AUC]`` of the untouched model, and at the end of each strength up to `until`."""
        self.model.load_state_dict(self.start)
        step, untouched = graded(self.settings, len(self.fit)), self._logits()
        found = [figures(untouched, untouched, self.rows)]

        def look(epoch: int, loss: float) -> bool:
            strength = step.strengths[epoch - 1]
            last = strength not in step.strengths[epoch:]
            if last:
                found.append(figures(self._logits(), untouched, self.rows))
            return last and strength >= until

        tune(
            self.model,
            self.seen[0],
            extractor_loss(self.settings),
            mask,
            step,
            generator=torch.Generator().manual_seed(seed),
            autocast=self.autocast,
            after_epoch=look,
            tail=self.tail,
        )
        return found

    @torch.no_grad()
    def _logits(self) -> np.ndarray:
        return torch.cat([forward_logits(self.tail or self.model, b.inputs) for b in self.seen[1].batches(256)]).numpy()


def _random_like(mask: Tensor, scores: Tensor) -> Tensor:
    """As many as in `mask`, of the highest scores."""
    chosen = torch.zeros(mask.numel(), dtype=torch.bool)
    chosen[scores.flatten().topk(int(mask.sum())).indices] = True
    return chosen.view(mask.shape)


def figures(logits: np.ndarray, untouched: np.ndarray, rows: GroupedData) -> list[float]:
    """The gap with as many positive as by the untouched model, and the mean and the lowest of the groups' AUCs."""
    scores, labels, groups = logits[:, 0], rows.targets.numpy(), rows.groups[:, 0].numpy()
    positive = np.zeros(len(scores), bool)
    positive[np.argsort(-scores, kind="stable")[: int((untouched[:, 0] >= 0).sum())]] = True
    sides = [groups == group for group in np.unique(groups[groups >= 0])]
    rates = [[positive[side & (labels == label)].mean() for label in (0, 1)] for side in sides]
    auc = [roc_auc_score(labels[side], scores[side]) for side in sides]
    return [float(np.ptp(rates, axis=0).mean()), float(np.mean(auc)), float(min(auc))]


def ham(attribute: str, seed: int) -> Case:
    """The same network and rows for every seed, which decides over batches and random masks."""
    return _ham(attribute)


@cache
def _ham(attribute: str) -> Case:
    load = partial(
        load_manifest,
        SHARED / "data/ham10000-64/metadata.csv",
        target="label",
        sensitive=attribute,
        split_column="split",
        cluster="lesion_id",
        image_size=64,
        normalize="0.76,0.55,0.57/0.14,0.15,0.17",
    )
    return Case(load_checkpoint(SHARED / "models/ham10000_resnet18.pt"), load(split="fit"), load(split="select"))


def generated(seed: int, train: Callable[[GroupedData, int], nn.Module] = train_demo_model) -> Case:
    """A set and a network of its own for every seed."""
    parts = {name: part.with_attributes("skin") for name, part in make_demo(4000, seed, image_size=32).items()}
    return Case(train(parts["train"], seed), parts["fit"], parts["test"])


def small_vit(seed: int) -> Case:
    """The generated set again, and a timm ViT of six blocks of 48 channels."""
    model = vit(seed, depth=6, patch_size=8, embed_dim=48, num_heads=3)
    return generated(seed, lambda data, seed: trained(data, epochs=15, seed=seed, model=model))


def digits(seed: int) -> Case:
    """Scikit-learn's digits, high or low, with a bright corner that in training mostly goes with a high one.

    The group is whether the corner is lit; in the rows to fit and to measure on it is lit for half of either label.
    """
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    found = load_digits()
    order = rng.permutation(len(found.target))
    images = (found.images[order] / 16).astype("float32")
    images += rng.normal(0, 0.4, images.shape).astype("float32")
    high = (found.target[order] >= 5).astype(int)
    part = np.repeat(["train", "fit", "rows"], [900, 400, 497])
    lit = np.where(part == "train", rng.random(len(high)) < 0.1 + 0.8 * high, rng.random(len(high)) < 0.5).astype(int)
    images[:, :2, :2] += lit[:, None, None]
    inputs = torch.from_numpy(images)[:, None]
    train, fit, rows = (
        from_arrays(inputs[of], high[of], lit[of], attributes={"lit": ("no", "yes")})
        for of in (part == name for name in ("train", "fit", "rows"))
    )
    torch.manual_seed(seed)
    sizes = ((1, 32), (32, 64), (64, 64))
    layers = [
        [nn.Conv2d(*size, 3, padding=1), nn.BatchNorm2d(size[1]), nn.ReLU(), *([nn.MaxPool2d(2)] if at == 1 else [])]
        for at, size in enumerate(sizes)
    ]
    model = nn.Sequential(*chain(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
    return Case(_trained(model, 15, 3e-3, train, seed), fit, rows)


def _trained(model: nn.Module, epochs: int, rate: float, data: GroupedData, seed: int) -> nn.Module:
    """After plain training, which balances nothing."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(data), generator=generator).tensor_split(1 + len(data) // 64):
            logits = model(data.inputs(rows))[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, data.targets[rows].float())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return model.eval()


SETS: dict[str, Callable[[int], Case]] = {
    "digits": digits,
    "generated": generated,
    "generated, ViT": small_vit,
    "ham10000 by age_ge60": partial(ham, "age_ge60"),
    "ham10000 by sex": partial(ham, "sex"),
}
WHOLE = ("all", "head and norms")  # whatever the fraction
MASKS = (
    *(f"importance, {granularity}" for granularity in ("weight", "channel", "layer", "block")),
    "random, weight",
    "random, as many per layer",
    *WHOLE,
)


def measure(case: Callable[[], Case], mask: str, fraction: float, seed: int, until: float) -> dict[str, Any]:
    """The curve, and the share moved of the weights that may move; no curve where nothing is as small as that."""
    made = case()
    try:
        chosen = made.mask(mask, fraction, seed)
    except ConfigError:
        return {"curve": None, "moved": 0.0}
    sizes = [parameter.numel() for name, parameter in made.model.named_parameters() if name in made.body]
    return {"curve": made.curve(chosen, seed, until), "moved": chosen.selected / sum(sizes)}


def summary(curve: Sequence[Sequence[float]]) -> dict[str, float]:
    """The means over the strengths, and the smallest gap at equal cost, averaged over what it may cost."""
    means = dict(zip(AXES, np.mean(curve[1:], axis=0).tolist(), strict=True))
    path = np.concatenate([np.linspace(a, b, 20) for a, b in pairwise(curve)])
    at_cost = [path[path[:, 1] >= path[0, 1] - loss, 0].min() for loss in LOSSES]
    return means | {"gap at equal cost": float(np.mean(at_cost))}


def paired(first: Sequence[float], second: Sequence[float]) -> str:
    """The mean difference over seeds and half its 95 % t interval; in bold where that excludes 0."""
    differences = np.array(first) - np.array(second)
    if len(differences) < 2:
        return f"{differences.mean():+.3f}"
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    mark = "**" if abs(differences.mean()) > half else ""
    return f"{mark}{differences.mean():+.3f} ± {half:.3f}{mark}"


def tabulate(setting: str, options: argparse.Namespace) -> str:
    """One table: the untouched model, each mask's figures, and its differences to the reference over shared seeds."""
    found: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for seed in range(options.seeds):
        case = cache(partial(SETS[setting], seed))
        for mask, fraction in [(m, f) for f in options.fractions for m in options.masks]:
            at = 0.05 if mask in WHOLE else fraction
            key = {"set": setting, "mask": mask, "fraction": at, "seed": seed, "until": options.until}
            result = cached("mask_study", key, partial(measure, case, mask, at, seed, options.until))
            print(key, result, flush=True)
            found.setdefault((mask, at), {})[seed] = result
    at_5 = (options.reference, 0.05)
    reference = found.get(at_5, {})
    start = np.mean([run["curve"][0] for run in reference.values()], axis=0) if reference else [np.nan] * 3
    lines = [["untouched", "", *(f"{value:.3f}" for value in start), "", "", "", "", ""]]
    for (mask, fraction), runs in found.items():
        if any(run["curve"] is None for run in runs.values()):
            lines.append([f"{mask}, {fraction:.0%}", "nothing fits", *[""] * 8])
            continue
        own = {seed: summary(run["curve"]) for seed, run in runs.items()}
        other = {seed: summary(reference[seed]["curve"]) for seed in own if seed in reference}
        names = ("gap at equal cost", *AXES)
        differ = [paired([own[s][n] for s in other], [other[s][n] for s in other]) if other else "" for n in names]
        means = [f"{np.mean([one[name] for one in own.values()]):.3f}" for name in (*AXES, "gap at equal cost")]
        moved = f"{np.mean([run['moved'] for run in runs.values()]):.1%}"
        name = mask if mask in WHOLE else f"{mask}, {fraction:.0%}"
        lines.append([name, moved, *means, *(differ if (mask, fraction) != at_5 else [""] * 4)])
    header = [setting, "moved", *AXES, "gap at equal cost", "difference: gap at equal cost", *AXES]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--masks", nargs="*", default=list(MASKS), choices=list(MASKS))
    parser.add_argument("--reference", default=REFERENCE, choices=list(MASKS), help="that differences are to, at 5 %%")
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.05])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--until", type=float, default=7.0, help="the strength at which the path ends")
    options = parser.parse_args()
    for setting in options.sets:
        if "ham" in setting and not SHARED.is_dir():
            print(f"{setting} skipped: the data are not at {SHARED} (set BMFT_SHARED)")
            continue
        print(
            f"\n{tabulate(setting, options)}\n\n{footer(seeds=options.seeds, until=options.until, data=setting)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
