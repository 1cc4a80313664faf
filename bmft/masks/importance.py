"""How much each weight carries an objective: over the whole set, per batch as published, or by chance."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bmft import fairness
from bmft.compute import Share, distributed as processes
from bmft.data import GroupBatch, GroupedData, as_grouped
from bmft.errors import ConfigError, GroupError, NonFiniteError
from bmft.masks.attribution import (
    NOTHING_TO_COMPARE,
    Network,
    Objective,
    SharedLogits,
    attribute,
    batches,
    integrated_gradients,
    logit_gradient,
)
from bmft.models import check_tunable, evaluating, kept_mark, positive_first, recomputing, settle, trainable, turned

Score = str | Callable[[Tensor, Tensor], Tensor]
SCORES: tuple[str, ...] = ("fisher", "saliency", "input_x_gradient", "integrated_gradients", "random", "ones")


@dataclass(frozen=True)
class Importance(Mapping[str, Tensor]):
    """One score per weight: parameter name -> float32 tensor of the parameter's shape, larger is more important.

    Attributes:
        scores: the tensors.
        value: the objective's value on the data.
        completeness_delta: for integrated gradients, the sum of all attributions minus the objective's change along
            the path; near 0 when `steps` suffice. None for every other score.
    """

    scores: Mapping[str, Tensor] = field(repr=False)
    value: float
    completeness_delta: float | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)


def weight_importance(model: nn.Module, objective: Objective, data: Any, **options: Any) -> Importance:
    """Score every weight of `model` by how much `objective` depends on it.

    `weight_importances` with one objective; see there for the options, the formulas and the errors.

    >>> from bmft import fairness
    >>> from bmft.data import from_arrays
    >>> data = from_arrays(torch.randn(40, 3), torch.arange(40) % 2, torch.arange(40) // 20)
    >>> scores = weight_importance(nn.Linear(3, 1), fairness.equalized_odds_gap, data)
    >>> scores["weight"].shape
    torch.Size([1, 3])
    """
    return weight_importances(model, [objective], data, **options)[0]


def weight_importances(
    model: nn.Module,
    objectives: Sequence[Objective],
    data: Any,
    *,
    score: Score = "fisher",
    exact: bool = True,
    batch_size: int = 128,
    combine: Literal["mean", "worst"] = "mean",
    multi_label: bool = False,
    batch_fn: Callable[[Any], tuple[Any, Tensor, Tensor]] | None = None,
    steps: int = 32,
    seed: int = 0,
    only: Iterable[str] | None = None,
    logits: Tensor | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    recompute: bool = False,
) -> tuple[Importance, ...]:
    r"""Score every weight under several objectives, which share one forward pass per batch.

    For an objective :math:`L` of all probabilities and a weight :math:`w` the scores are

    - ``"fisher"``: :math:`(\partial L / \partial w)^2` (the published default),
    - ``"saliency"``: :math:`|\partial L / \partial w|`,
    - ``"input_x_gradient"``: :math:`|w \, \partial L / \partial w|`,
    - ``"integrated_gradients"``: the absolute share of :math:`w` in the change of :math:`L` on the straight path from
      zero weights (Sundararajan, Taly and Yan 2017),
    - ``"random"`` and ``"ones"``: ablations,
    - a callable ``(weight, gradient) -> score``.

    The gradient is exact for the whole set: :math:`\partial L / \partial w = \sum_i (\partial L / \partial z_i)
    (\partial z_i / \partial w)` over the logits :math:`z_i` of every sample, so a pass without gradients gives all
    first factors and a second pass sums the products over any batches. It does not depend on batch size or order. With
    ``exact=False`` the objective is taken per batch and the scores are averaged over batches, as published (Xue et
    al. 2024): that form does depend on both; batches in which it cannot be computed are left out.

    The model is used in evaluation mode and left as it was.

    Args:
        objectives: callables ``(probabilities (n, K), targets (n, K), groups (n,)) -> scalar``, as in
            `bmft.fairness`. With several attributes each is taken per attribute and then `combine`\ d.
        data: a `GroupedData`, or anything that yields ``(inputs, targets, groups)`` batches, possibly by `batch_fn`.
        steps: points of the path of integrated gradients.
        seed: of the random score.
        only: names of the parameters to score; all of them by default. Nothing is computed below the lowest of them.
        logits: the model's of every sample ``(n, outputs)``, where they are known and need not be computed.
        autocast: makes the context of the forward pass, for mixed precision.
        recompute: keep only what enters each block, and run it again in the backward pass: less memory, more time.

    Raises:
        ConfigError: the score is unknown.
        ArchitectureError: a weight is complex or has no values, or the logits have no gradient.
        GroupError: an objective compares groups and the data have nothing to compare.
        NonFiniteError: an objective or a gradient is not finite.
    """
    if not callable(score) and score not in SCORES:
        raise ConfigError(f"score is {score!r}: expected one of {', '.join(SCORES)}, or a callable")
    check_tunable(model)
    grouped = as_grouped(data, batch_fn=batch_fn)
    pooled = tuple(fairness.over_attributes(objective, combine=combine) for objective in objectives)
    # What is scored is passed in from outside; the model's own weights need no graph.
    with evaluating(model), trainable(model, ()), kept_mark(model), recomputing(model, recompute):
        settle(model, grouped, multi_label=multi_label, place=_as_weights_of(model))
        reverse = positive_first(model, grouped)
        network = Network(model, multi_label, autocast, None if only is None else set(only), reverse)
        if score == "integrated_gradients":
            found = (integrated_gradients(network, objective, grouped, batch_size, steps) for objective in pooled)
            return tuple(Importance(*parts) for parts in found)
        if score in ("random", "ones"):
            return tuple(_ablation(network, str(score), seed + k) for k in range(len(pooled)))
        if not exact:
            return _of_batches(network, pooled, grouped, score, batch_size)
        return _of_the_whole_set(network, pooled, grouped, score, batch_size, logits)


def _as_weights_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What puts an input where the model's weights are."""
    device = next(model.parameters()).device
    return lambda tensor: tensor.to(device)


def relative(
    bias: Mapping[str, Tensor],
    *,
    to: Mapping[str, Tensor],
    scale: Literal["tensor", "global"] = "tensor",
    floor: float = 1e-10,
) -> dict[str, Tensor]:
    r"""Importance for the bias relative to importance for the task.

    :math:`R = \mathrm{minmax}(I_B) / (\mathrm{minmax}(I_P) + \mathrm{floor})` (Xue et al. 2024), with the minimum and
    maximum of each tensor (as published) or of all together. A tensor whose bias scores are all equal carries nothing
    that could rank its weights and scores 0; one whose task scores are all equal counts them as 0.

    Args:
        floor: added to the task's share. The published 1e-10 makes weights that matter to nothing rank highest; a
            floor of 1e-3 or more damps them.

    Raises:
        ConfigError: the two score different weights, or `scale` or `floor` is not possible.

    >>> relative({"w": torch.tensor([0.0, 1.0, 2.0])}, to={"w": torch.tensor([0.0, 2.0, 1.0])}, floor=1.0)
    {'w': tensor([0.0000, 0.2500, 0.6667])}
    """
    if set(bias) != set(to):
        odd = sorted(set(bias) ^ set(to))
        raise ConfigError(
            f"bias and task importance score different weights (first: {odd[0]!r}): use one model for both"
        )
    if scale not in ("tensor", "global") or not floor > 0:
        raise ConfigError(f"scale is {scale!r} and floor {floor}: expected 'tensor' or 'global', and a positive floor")
    bias_range, task_range = (_range(scores) if scale == "global" else None for scores in (bias, to))
    return {k: _minmax(bias[k], bias_range) / (_minmax(to[k], task_range) + floor) for k in bias}


def _range(scores: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.stack([t.min() for t in scores.values()]).min(), torch.stack([t.max() for t in scores.values()]).max()


def _minmax(scores: Tensor, limits: tuple[Tensor, Tensor] | None) -> Tensor:
    low, high = limits if limits is not None else (scores.min(), scores.max())
    if high <= low:
        return torch.zeros_like(scores)
    return (scores - low) / (high - low)


def _of_the_whole_set(
    network: Network,
    objectives: Sequence[Objective],
    data: GroupedData,
    score: Score,
    batch_size: int,
    logits: Tensor | None,
) -> tuple[Importance, ...]:
    """A pass without gradients fixes what each logit counts for; a second one carries that on to the weights."""
    weights, device, share = network.weights(), network.device(), Share(len(data))
    own = share.of(data)
    if logits is None:
        with torch.no_grad():
            pooled = share.gather(torch.cat([network(batch.inputs) for _, batch in batches(own, batch_size, device)]))
    else:
        pooled = turned(logits) if network.reverse else logits
    targets, groups = data.targets.to(device), data.groups.to(device)
    parts = [logit_gradient(network, objective, pooled, targets, groups) for objective in objectives]
    if any(math.isnan(value) for value, _ in parts):
        raise GroupError(NOTHING_TO_COMPARE)
    totals = _zeros(weights, objectives)
    for rows, batch in batches(own, batch_size, device):
        shared = SharedLogits(network, batch.inputs)
        for (_, gradient), total in zip(parts, totals, strict=True):
            for name, attribution in attribute(shared, gradient[share.rows][rows], weights, score).items():
                total[name] += attribution
    # One after the other, each in the place of its total.
    found = [
        {n: _score(score, weights[n].detach(), share.total(total.pop(n))) for n in list(total)} for total in totals
    ]
    return tuple(_importance(scores, value) for scores, (value, _) in zip(found, parts, strict=True))


def _of_batches(
    network: Network, objectives: Sequence[Objective], data: GroupedData, score: Score, batch_size: int
) -> tuple[Importance, ...]:
    """The mean over batches of each batch's scores, as published; batches without two groups are left out."""
    weights, device, share = network.weights(), network.device(), Share(len(data))
    totals = _zeros(weights, objectives)
    # Of each objective: the sum of its values, and of how many batches.
    sums = torch.zeros(len(objectives), 2, dtype=torch.float64, device=device)
    for batch in _dealt(data, batch_size, device):
        logits = SharedLogits(network, batch.inputs)
        for k, objective in enumerate(objectives):
            value, gradient = logit_gradient(network, objective, logits.detached(weights), batch.targets, batch.groups)
            if math.isnan(value):
                continue
            sums[k, 0] += value
            sums[k, 1] += 1
            for name, attribution in attribute(logits, gradient, weights, score).items():
                totals[k][name] += _score(score, weights[name].detach(), attribution)
    sums = share.total(sums)
    if not bool(sums[:, 1].all()):
        raise GroupError("the objective cannot be computed in any batch: no two groups have samples to compare")
    return tuple(
        _importance(
            {name: share.total(tensor) / int(count) for name, tensor in total.items()}, float(value) / int(count)
        )
        for total, (value, count) in zip(totals, sums.tolist(), strict=True)
    )


def _dealt(data: GroupedData, batch_size: int, device: torch.device) -> Iterator[GroupBatch]:
    """The batches of all rows that are this process's, every one of a single process: batches, not rows, are shared."""
    together = 1 if Share(len(data)).whole else processes.count()
    indices = list(torch.split(torch.arange(len(data)), batch_size))[processes.number() % together :: together]
    return (batch.to(device) for batch in data.iterate(indices))


def _zeros(weights: Mapping[str, Tensor], objectives: Sequence[Objective]) -> list[dict[str, Tensor]]:
    return [{name: torch.zeros_like(w, requires_grad=False) for name, w in weights.items()} for _ in objectives]


def _importance(scores: Mapping[str, Tensor], value: float) -> Importance:
    found = {name.removeprefix("model."): tensor.cpu() for name, tensor in scores.items()}
    if bad := [name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())]:
        raise NonFiniteError(f"the gradient of {bad[0]!r} is not finite: check the weights and the inputs for NaN")
    return Importance(found, value)


def _score(score: Score, weight: Tensor, attribution: Tensor) -> Tensor:
    if callable(score):
        # A copy: the weights are the model's own memory, which somebody's in-place operation would change.
        return score(weight.clone(), attribution)
    return attribution.square() if score == "fisher" else attribution.abs()


def _ablation(network: Network, score: str, seed: int) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name.removeprefix("model."): p.shape for name, p in network.weights().items()}
    make = (lambda shape: torch.rand(shape, generator=generator)) if score == "random" else torch.ones
    return Importance({name: make(shape) for name, shape in shapes.items()}, float("nan"))
