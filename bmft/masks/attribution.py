"""Captum's attributions to the weights of a model, and the graph that they are taken in."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bmft import fairness
from bmft.data import GroupBatch, GroupedData
from bmft.errors import ArchitectureError, ConfigError, GroupError, NonFiniteError
from bmft.models import forward_logits, turned

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
NOTHING_TO_COMPARE = "the objective cannot be computed: no two groups have samples to compare; check the groups"

log = logging.getLogger(__name__)


class Network(nn.Module):
    """The user's model with its logits as the output, so that weights can be passed in by name."""

    def __init__(
        self,
        model: nn.Module,
        multi_label: bool,
        autocast: Callable[[], AbstractContextManager[Any]],
        only: set[str] | None,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.multi_label, self.autocast, self.reverse = model, multi_label, autocast, reverse
        known = [name for name, _ in model.named_parameters()]
        if unknown := sorted((only or set()) - set(known)):
            raise ConfigError(f"the model has no parameter {unknown[0]!r} to score")
        self.scored = [name for name in known if only is None or name in only]

    def forward(self, inputs: Any) -> Tensor:
        """``(n, outputs)`` logits."""
        with self.autocast():
            logits = forward_logits(self.model, inputs).float()
        return turned(logits) if self.reverse else logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """``(n, K)`` in float64."""
        return fairness.probabilities(logits.double(), multi_label=self.multi_label)

    def weights(self) -> dict[str, Tensor]:
        """The weights to score, by their names in this module; they share the model's memory."""
        parameters = dict(self.named_parameters())
        return {f"model.{name}": parameters[f"model.{name}"].detach().requires_grad_() for name in self.scored}

    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device


def batches(data: GroupedData, batch_size: int, device: torch.device) -> Iterator[tuple[slice, GroupBatch]]:
    """Every batch in order, and the rows it holds."""
    start = 0
    for batch in data.batches(batch_size):
        stop = start + len(batch.targets)
        yield slice(start, stop), batch.to(device)
        start = stop


class SharedLogits:
    """The logits of one batch as a function of the weights, computed once however many objectives ask."""

    def __init__(self, network: Network, inputs: Any) -> None:
        self.network, self.inputs = network, inputs
        self.logits: Tensor | None = None

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """``(n, outputs)``, with the graph of the weights of the first call."""
        if self.logits is None:
            self.logits = torch.func.functional_call(self.network, dict(weights), (self.inputs,))
        return self.logits

    def detached(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The same without the graph."""
        return self(weights).detach()


def attribute(
    logits: SharedLogits, cotangent: Tensor, weights: Mapping[str, Tensor], score: object
) -> dict[str, Tensor]:
    """Captum's attribution to the weights of ``sum_i cotangent_i . logits_i``."""

    def forward(*tensors: Tensor) -> Tensor:
        return (logits(dict(zip(weights, tensors, strict=True))) * cotangent).sum().reshape(1)

    # Captum brings matplotlib's pyplot: only for those who attribute.
    from captum.attr import InputXGradient, Saliency

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


def logit_gradient(
    network: Network, objective: Objective, logits: Tensor, targets: Tensor, groups: Tensor
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


def integrated_gradients(
    network: Network, objective: Objective, data: GroupedData, batch_size: int, steps: int
) -> tuple[dict[str, Tensor], float, float]:
    """Absolute attributions to every weight, the objective's value, and how far their sum is off its change."""
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
            checkpoint(logits_of, batch.inputs, use_reentrant=False) for _, batch in batches(data, batch_size, device)
        ]
        probabilities = network.probabilities(torch.cat(parts))
        return objective(probabilities, fairness.one_vs_rest(targets, probabilities.shape[1]), groups).reshape(1)

    from captum.attr import IntegratedGradients

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
        raise GroupError(NOTHING_TO_COMPARE)
    scores = {
        n.removeprefix("model."): a.squeeze(0).detach().abs().float().cpu()
        for n, a in zip(weights, attributions, strict=True)
    }
    log.info("integrated gradients over %d steps: completeness delta %.3g of %.3g", steps, float(delta), value)
    return scores, value, float(delta)
