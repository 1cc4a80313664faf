"""How much each weight carries an objective: attributions over the weights of a model, by Captum."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bmft import fairness
from bmft.compute import Share
from bmft.compute import distributed as processes
from bmft.data import GroupBatch, GroupedData, as_grouped
from bmft.errors import ArchitectureError, ConfigError, GroupError, NonFiniteError
from bmft.models import check_tunable, evaluating, forward_logits, trainable

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
Score = str | Callable[[Tensor, Tensor], Tensor]
SCORES: tuple[str, ...] = ("fisher", "saliency", "input_x_gradient", "integrated_gradients", "random", "ones")

log = logging.getLogger(__name__)


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
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
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
        autocast: makes the context of the forward pass, for mixed precision.

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
    with evaluating(model), trainable(model, ()):
        network = _Network(model, multi_label, autocast, None if only is None else set(only))
        if score == "integrated_gradients":
            return tuple(_integrated(network, objective, grouped, batch_size, steps) for objective in pooled)
        if score in ("random", "ones"):
            return tuple(_ablation(network, str(score), seed + k) for k in range(len(pooled)))
        return _gradients(network, pooled, grouped, score, exact, batch_size)


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


class _Network(nn.Module):
    """The user's model with its logits as the output, so that weights can be passed in by name."""

    def __init__(
        self,
        model: nn.Module,
        multi_label: bool,
        autocast: Callable[[], AbstractContextManager[Any]],
        only: set[str] | None,
    ) -> None:
        super().__init__()
        self.model, self.multi_label, self.autocast = model, multi_label, autocast
        known = [name for name, _ in model.named_parameters()]
        if unknown := sorted((only or set()) - set(known)):
            raise ConfigError(f"the model has no parameter {unknown[0]!r} to score")
        self.scored = [name for name in known if only is None or name in only]

    def forward(self, inputs: Any) -> Tensor:
        with self.autocast():
            return forward_logits(self.model, inputs).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        return fairness.probabilities(logits.double(), multi_label=self.multi_label)

    def weights(self) -> dict[str, Tensor]:
        parameters = dict(self.named_parameters())
        return {f"model.{name}": parameters[f"model.{name}"].detach().requires_grad_() for name in self.scored}

    def device(self) -> torch.device:
        return next(self.parameters()).device


def _batches(data: GroupedData, batch_size: int, device: torch.device) -> Iterator[tuple[slice, GroupBatch]]:
    start = 0
    for batch in data.batches(batch_size):
        stop = start + len(batch.targets)
        yield slice(start, stop), batch.to(device)
        start = stop


def _own_batches(data: GroupedData, batch_size: int, device: torch.device) -> Iterator[tuple[slice, GroupBatch]]:
    """The batches of all rows that are this process's: every one of a single process."""
    together = 1 if Share(len(data)).whole else processes.count()
    indices = list(torch.split(torch.arange(len(data)), batch_size))[processes.number() % together :: together]
    for index, batch in zip(indices, data.iterate(indices), strict=True):
        yield slice(int(index[0]), int(index[-1]) + 1), batch.to(device)


def _gradients(
    network: _Network, objectives: Sequence[Objective], data: GroupedData, score: Score, exact: bool, batch_size: int
) -> tuple[Importance, ...]:
    weights = network.weights()
    device = network.device()
    totals = [{name: torch.zeros_like(w, requires_grad=False) for name, w in weights.items()} for _ in objectives]
    counts = [0] * len(objectives)
    share = Share(len(data))
    own = share.of(data)
    if exact:
        pooled = share.gather(_forward(network, own, batch_size, device))
        targets, groups = data.targets.to(device), data.groups.to(device)
        parts = [_logit_gradient(network, objective, pooled, targets, groups) for objective in objectives]
        values = [value for value, _ in parts]
        if any(value != value for value in values):
            raise GroupError(
                "the objective cannot be computed: no two groups have samples to compare; check the groups"
            )
    else:
        values = [0.0] * len(objectives)
    # The published form is of batches, so it is they that are dealt out.
    dealt = _batches(own, batch_size, device) if exact else _own_batches(data, batch_size, device)
    for rows, batch in dealt:
        logits = _SharedLogits(network, batch.inputs)
        for k, objective in enumerate(objectives):
            if exact:
                gradient = parts[k][1][share.rows][rows]
            else:
                value, gradient = _logit_gradient(
                    network, objective, logits.detached(weights), batch.targets, batch.groups
                )
                if value != value:
                    continue
                values[k] += value
            counts[k] += 1
            attribution = _attribute(logits, gradient, weights, score)
            for name, total in totals[k].items():
                total += attribution[name] if exact else _score(score, weights[name].detach(), attribution[name])
    return tuple(
        _finish(weights, *_of_all(total, value, count, share, exact), score, exact)
        for total, value, count in zip(totals, values, counts, strict=True)
    )


def _of_all(
    total: dict[str, Tensor], value: float, count: int, share: Share, exact: bool
) -> tuple[dict[str, Tensor], float, int]:
    """Sums over all processes; the value of the exact form is of all rows already."""
    totals = {name: share.total(tensor) for name, tensor in total.items()}
    if exact or share.whole:
        return totals, value, count
    device = next(iter(total.values())).device
    summed = share.total(torch.tensor([value, count], dtype=torch.float64, device=device))
    return totals, float(summed[0]), int(summed[1])


def _finish(
    weights: Mapping[str, Tensor], total: dict[str, Tensor], value: float, count: int, score: Score, exact: bool
) -> Importance:
    if count == 0:
        raise GroupError("the objective cannot be computed in any batch: no two groups have samples to compare")
    scores = {}
    for name, tensor in total.items():
        scores[name.removeprefix("model.")] = (
            _score(score, weights[name].detach(), tensor) if exact else tensor / count
        ).cpu()
    if bad := [name for name, tensor in scores.items() if not bool(torch.isfinite(tensor).all())]:
        raise NonFiniteError(f"the gradient of {bad[0]!r} is not finite: check the weights and the inputs for NaN")
    return Importance(scores, value if exact else value / count)


def _score(score: Score, weight: Tensor, attribution: Tensor) -> Tensor:
    if callable(score):
        # A copy: the weights are the model's own memory, which somebody's in-place operation would change.
        return score(weight.clone(), attribution)
    return attribution.square() if score == "fisher" else attribution.abs()


class _SharedLogits:
    """The logits of one batch as a function of the weights, computed once however many objectives ask."""

    def __init__(self, network: _Network, inputs: Any) -> None:
        self.network, self.inputs = network, inputs
        self.logits: Tensor | None = None

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        if self.logits is None:
            self.logits = torch.func.functional_call(self.network, dict(weights), (self.inputs,))
        return self.logits

    def detached(self, weights: Mapping[str, Tensor]) -> Tensor:
        return self(weights).detach()


def _attribute(
    logits: _SharedLogits, cotangent: Tensor, weights: Mapping[str, Tensor], score: Score
) -> dict[str, Tensor]:
    """Captum's attribution to the weights of ``sum_i cotangent_i . logits_i``."""

    def forward(*tensors: Tensor) -> Tensor:
        return (logits(dict(zip(weights, tensors, strict=True))) * cotangent).sum().reshape(1)

    method = InputXGradient(forward) if score == "input_x_gradient" else Saliency(forward)
    method.gradient_func = _gradient_keeping_the_graph
    inputs = tuple(weights.values())
    options = {} if score == "input_x_gradient" else {"abs": False}
    return {k: t.detach() for k, t in zip(weights, method.attribute(inputs, **options), strict=True)}


def _gradient_keeping_the_graph(
    forward_fn: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    target_ind: Any = None,
    additional_forward_args: Any = None,
) -> tuple[Tensor, ...]:
    """Captum's gradient function, for a graph that several objectives share and weights the forward may not use."""
    with torch.enable_grad():
        output = forward_fn(*inputs)
    if not output.requires_grad:
        raise ArchitectureError(
            "the model's logits have no gradient: its forward pass runs under torch.no_grad or inference_mode, or "
            "detaches them. Take that out: bmft does not compute gradients where it needs none."
        )
    gradients = torch.autograd.grad(output.sum(), inputs, retain_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(w) if g is None else g for g, w in zip(gradients, inputs, strict=True))


def _forward(network: _Network, data: GroupedData, batch_size: int, device: torch.device) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(batch.inputs) for _, batch in _batches(data, batch_size, device)])


def _logit_gradient(
    network: _Network, objective: Objective, logits: Tensor, targets: Tensor, groups: Tensor
) -> tuple[float, Tensor]:
    """The objective's value and its gradient with respect to every logit, in float64."""
    with torch.enable_grad():
        leaf = logits.detach().double().requires_grad_()
        probabilities = network.probabilities(leaf)
        value = objective(probabilities, fairness.one_vs_rest(targets, probabilities.shape[1]), groups)
    if value.isnan():
        return float("nan"), torch.zeros_like(logits)
    if not value.isfinite():
        raise NonFiniteError(f"the objective is {value.item()}: check the weights and the inputs")
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    if gradient is None:
        raise ConfigError("the objective does not depend on the probabilities: it cannot rank weights")
    return float(value.detach()), gradient.to(logits.dtype)


def _integrated(network: _Network, objective: Objective, data: GroupedData, batch_size: int, steps: int) -> Importance:
    weights = network.weights()
    device = network.device()
    targets, groups = data.targets.to(device), data.groups.to(device)

    def whole_set(*stacked: Tensor) -> Tensor:
        current = {name: tensor.squeeze(0) for name, tensor in zip(weights, stacked, strict=True)}

        def logits_of(inputs: Any) -> Tensor:
            logits: Tensor = torch.func.functional_call(network, current, (inputs,))
            return logits

        # Recomputing each batch in the backward pass bounds the memory to one batch's graph.
        parts = [
            checkpoint(logits_of, batch.inputs, use_reentrant=False) for _, batch in _batches(data, batch_size, device)
        ]
        probabilities = network.probabilities(torch.cat(parts))
        return objective(probabilities, fairness.one_vs_rest(targets, probabilities.shape[1]), groups).reshape(1)

    method = IntegratedGradients(whole_set)
    method.gradient_func = _gradient_keeping_the_graph
    attributions, delta = method.attribute(
        tuple(weight.detach().unsqueeze(0) for weight in weights.values()),
        n_steps=steps,
        internal_batch_size=1,
        return_convergence_delta=True,
    )
    with torch.no_grad():
        value = float(whole_set(*(weight.unsqueeze(0) for weight in weights.values())))
    if value != value:
        raise GroupError("the objective cannot be computed: no two groups have samples to compare; check the groups")
    scores = {
        n.removeprefix("model."): a.squeeze(0).detach().abs().float().cpu()
        for n, a in zip(weights, attributions, strict=True)
    }
    log.info("integrated gradients over %d steps: completeness delta %.3g of %.3g", steps, float(delta), value)
    return Importance(scores, value, float(delta))


def _ablation(network: _Network, score: str, seed: int) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name.removeprefix("model."): p.shape for name, p in network.weights().items()}
    make = (lambda shape: torch.rand(shape, generator=generator)) if score == "random" else torch.ones
    return Importance({name: make(shape) for name, shape in shapes.items()}, float("nan"))
