"""Move only the weights a mask allows: the step rule, the extractor step and the head step."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bmft import fairness
from bmft.activations import Activations, Tail, tail_above
from bmft.data import GroupedData, stratified_batches
from bmft.errors import ConfigError, MismatchError, NonFiniteError
from bmft.mask import WeightMask
from bmft.models import Head, forward_logits

__all__ = [
    "OPTIMIZERS", "Activations", "Loss", "PooledLoss", "SelectedWeights", "Step", "Tail", "masked",
    "penultimate_features", "reset_head", "tail_above", "tune",
]  # fmt: skip
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
AfterEpoch = Callable[[int, float], bool]
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


@contextmanager
def masked(optimizer: torch.optim.Optimizer, model: nn.Module, mask: WeightMask) -> Iterator[None]:
    r"""Inside, every step of `optimizer` changes `model` only as far as `mask` allows; for people with their own loop.

    After a step, a weight is :math:`\mathrm{lerp}(before, after, M)`: untouched to the last bit where :math:`M = 0`,
    the optimizer's own result where :math:`M = 1`. The step is masked, not the gradient, since weight decay and
    momentum move weights whose gradient is zero and Adam divides a scaled gradient by its own scale. Works with every
    torch optimizer, also under gradient scaling; the hooks are removed on the way out.

    Args:
        mask: fits the model's parameters by name and shape.

    Raises:
        MismatchError: the mask was made for another model.

    >>> net = nn.Linear(2, 1)
    >>> before = net.weight.detach().clone()
    >>> mask = WeightMask({"weight": torch.tensor([[True, False]]), "bias": torch.tensor([False])})
    >>> optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    >>> with masked(optimizer, net, mask):
    ...     net(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> (net.weight != before).tolist()
    [[True, False]]
    """
    parameters = dict(model.named_parameters())
    mask.check_fits({name: p.shape for name, p in parameters.items()})
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    amounts = {n: mask.tensors[n].to(p.device) for n, p in parameters.items() if id(p) in owned}
    kept: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, amount in amounts.items():
            parameter = parameters[name]
            kept[name] = parameter.detach().clone()
            if parameter.grad is not None:
                parameter.grad.masked_fill_(amount == 0, 0)

    def restore(*_: Any) -> None:
        with torch.no_grad():
            for name, amount in amounts.items():
                parameters[name].copy_(_blend(kept[name], parameters[name], amount))
        kept.clear()

    handles = [optimizer.register_step_pre_hook(keep), optimizer.register_step_post_hook(restore)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blend(before: Tensor, after: Tensor, amount: Tensor) -> Tensor:
    """``lerp(before, after, amount)``, and exactly `before` where `amount` is 0, whatever `after` is there."""
    if amount.dtype == torch.bool:
        return torch.where(amount, after, before)
    # 0 * NaN is NaN: without the outer choice a non-finite step would reach frozen weights.
    return torch.where(amount > 0, torch.lerp(before, after, amount.to(before.dtype)), before)


class SelectedWeights:
    """The weights a mask selects, gathered into one 1-D parameter that an optimizer can own.

    An optimizer of this vector computes and keeps state for the selected weights only, and the step is the same to the
    last bit as `masked` gives for optimizers that treat every element alike (SGD, Adam, AdamW, RMSprop, Adagrad).
    The model itself is changed by `write_back` only.

    >>> net = nn.Linear(2, 1)
    >>> chosen = SelectedWeights(net, WeightMask.by_name(net, "weight"))
    >>> chosen.vector.shape
    torch.Size([2])
    """

    def __init__(self, model: nn.Module, mask: WeightMask) -> None:
        parameters = dict(model.named_parameters())
        mask.check_fits({name: p.shape for name, p in parameters.items()})
        self._parts: list[tuple[nn.Parameter, Tensor | None]] = []
        amounts: list[Tensor] = []
        for name, parameter in parameters.items():
            amount = _in_memory_order(mask.tensors[name].to(parameter.device), parameter)
            chosen = amount != 0
            if not bool(chosen.any()):
                continue
            index = None if bool(chosen.all()) else chosen.nonzero().squeeze(1)
            self._parts.append((parameter, index))
            amounts.append(amount if index is None else amount[index])
        if not self._parts:
            raise ConfigError("the mask is empty: no weight would move")
        self._amount = None if mask.hard else torch.cat([a.float() for a in amounts])
        self._lengths = [a.numel() for a in amounts]
        self.vector = nn.Parameter(torch.cat([self._pick(p.detach(), p, index) for p, index in self._parts]))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The model's parameters that hold a selected weight."""
        return [parameter for parameter, _ in self._parts]

    @staticmethod
    def _pick(tensor: Tensor, like: Tensor, index: Tensor | None) -> Tensor:
        flat = _in_memory_order(tensor, like)
        return flat if index is None else flat.index_select(0, index)

    def collect_gradients(self) -> None:
        """Set the vector's gradient from the gradients of the model's parameters; without one it is 0."""
        self.vector.grad = torch.cat(
            [
                self._pick(torch.zeros_like(p) if p.grad is None else p.grad, p, index)
                for p, index in self._parts
            ]
        )

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take one step of `optimizer`, scaled by a soft mask, and write the result into the model."""
        before = None if self._amount is None else self.vector.detach().clone()
        optimizer.step()
        if before is not None and self._amount is not None:
            with torch.no_grad():
                self.vector.copy_(_blend(before, self.vector, self._amount))
        self.write_back()

    @torch.no_grad()
    def write_back(self, values: Tensor | None = None) -> None:
        """Copy the vector, or `values` in its place, into the model's parameters."""
        source = self.vector if values is None else values
        for (parameter, index), part in zip(self._parts, torch.split(source, self._lengths), strict=True):
            flat = _in_memory_order(parameter.detach(), parameter)
            if index is None:
                flat.copy_(part)
            else:
                # No row twice, so a scatter is exact; it takes a fifth of the time of `flat[index] = part`.
                flat.scatter_(0, index, part)


def _in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` as 1-D in the order in which `like` lies in memory: a view when they have the same layout."""
    order = sorted(range(like.dim()), key=like.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


@dataclass(frozen=True)
class Loss:
    r"""What a step minimises: ``task_weight`` x task + ``bias_weight`` x bias.

    The task term is the weighted cross-entropy of the batch. The bias term is `objective`\ 's value: of the whole set
    (``whole_set=True``: the latest known logits of every sample; those of the batch carry the gradient, each scaled to
    stand for its share of its group x label cell), or of the batch alone, as published.

    Attributes:
        balance: whose samples weigh the same in the task term: those of every ``"cell"`` (group x label), of every
            ``"label"``, or all (``"none"``).
        combine: how the objective's values for several attributes become one.
    """

    objective: Objective
    bias_weight: float = 1.0
    task_weight: float = 0.0
    balance: Literal["none", "label", "cell"] = "label"
    whole_set: bool = True
    combine: Literal["mean", "worst"] = "mean"


class PooledLoss:
    """A `Loss` of one set: knows the targets, groups, weight and latest logits of every sample."""

    def __init__(self, loss: Loss, data: GroupedData, logits: Tensor, multi_label: bool) -> None:
        device = logits.device
        self.objective = fairness.over_attributes(loss.objective, combine=loss.combine)
        self.loss, self.multi_label, self.logits = loss, multi_label, logits.detach().float()
        self.groups = data.groups.to(device)
        columns = fairness.probabilities(self.logits[:1], multi_label=multi_label).shape[1]
        self.labels = data.targets.to(device)
        self.targets = fairness.one_vs_rest(self.labels, columns)
        self.sample_weights = _sample_weights(data, loss.balance).to(device)
        self.cells = _cells(data, "cell").to(device)
        self.cell_sizes = torch.bincount(self.cells).to(self.logits.dtype)

    def __call__(self, logits: Tensor, index: Tensor) -> Tensor:
        """The loss of the samples `index`, whose logits these are."""
        logits = logits.float()
        total = torch.zeros((), device=logits.device)
        if self.loss.task_weight:
            total = total + self.loss.task_weight * self._task(logits, index)
        if self.loss.bias_weight:
            total = total + self.loss.bias_weight * self._bias(logits, index)
        return total

    def _task(self, logits: Tensor, index: Tensor) -> Tensor:
        weights = self.sample_weights[index]
        losses = _cross_entropy(logits, self.labels[index], self.targets[index], self.multi_label)
        return (weights * losses).mean()

    def _bias(self, logits: Tensor, index: Tensor) -> Tensor:
        if not self.loss.whole_set:
            value = self._objective(logits, self.targets[index], self.groups[index])
            # A batch without two groups to compare has no bias term.
            return torch.zeros_like(value) if value.isnan() else value
        self.logits[index] = logits.detach()
        # A sample stands for its cell's share of the set, whatever share of the batch the cell was given.
        cell = self.cells[index]
        stands_for = self.cell_sizes[cell] / torch.bincount(cell, minlength=len(self.cell_sizes))[cell]
        pooled = self.logits.index_add(0, index, stands_for[:, None] * (logits - logits.detach()))
        return self._objective(pooled, self.targets, self.groups)

    def _objective(self, logits: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
        probabilities = fairness.probabilities(logits, multi_label=self.multi_label)
        return self.objective(probabilities, targets.to(probabilities.dtype), groups)


def _cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Per-sample cross-entropy ``(n,)``: binary on one logit, softmax over classes, the mean over labels."""
    if multi_label or logits.shape[1] == 1:
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), reduction="none"
        )
        return losses.mean(1)
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _sample_weights(data: GroupedData, balance: str) -> Tensor:
    """One weight per sample with mean 1, so that each label, or each group x label cell, adds up to the same."""
    if balance == "none":
        return torch.ones(len(data))
    cell = _cells(data, balance)
    counts = torch.bincount(cell)
    return len(data) / (len(counts) * counts[cell].float())


def _cells(data: GroupedData, by: str) -> Tensor:
    """The number of each sample's label, or of its group x label cell."""
    labels = data.targets if data.targets.dim() == 2 else data.targets[:, None]
    keys = labels if by == "label" else torch.cat([labels, data.groups], 1)
    cells: Tensor = torch.unique(keys, dim=0, return_inverse=True)[1]
    return cells


@dataclass(frozen=True)
class Step:
    """How one step trains: everything but what it minimises and which weights it may move.

    Attributes:
        epochs: passes over the set.
        learning_rate: of the optimizer.
        optimizer: a name in `OPTIMIZERS`, or a callable ``(parameters, lr=...) -> Optimizer``.
        momentum: of SGD and RMSprop; the others ignore it.
        weight_decay: of the optimizer; weights outside the mask do not decay.
        batch_size: samples per step.
        balance: of the batches, see `bmft.data.stratified_batches`.
        augment: any of ``"hflip"``, ``"vflip"``, ``"transpose"``, each done to half of the batches' images.
        average: in [0, 1); the weights kept are an exponential moving average over steps with this decay, which
            evens out the noise of small groups. 0 keeps the last step's weights.
        norm_stats: ``"frozen"`` keeps the running statistics of normalization layers, ``"update"`` lets them move.
            Dropout stays off in both.
    """

    epochs: int
    learning_rate: float
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 64
    balance: Literal["none", "group", "group_in_label", "cell"] = "none"
    augment: Sequence[str] = ()
    average: float = 0.0
    norm_stats: Literal["frozen", "update"] = "frozen"

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ConfigError(
                f"epochs {self.epochs}, batch_size {self.batch_size}, learning_rate {self.learning_rate}, weight_decay "
                f"{self.weight_decay}: expected at least 0, at least 1, more than 0, at least 0"
            )
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"optimizer is {self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}, or a callable"
            )
        if not 0 <= self.average < 1:
            raise ConfigError(f"average is {self.average}: expected at least 0 and less than 1")
        if unknown := set(self.augment) - set(_FLIPS):
            raise ConfigError(f"augment has {sorted(unknown)[0]!r}: expected any of {', '.join(_FLIPS)}")
        if self.norm_stats not in ("frozen", "update"):
            raise ConfigError(f"norm_stats is {self.norm_stats!r}: expected 'frozen' or 'update'")

    def make_optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        options: dict[str, Any] = {"lr": self.learning_rate}
        if self.weight_decay:
            options["weight_decay"] = self.weight_decay
        if self.optimizer in ("sgd", "rmsprop"):
            options["momentum"] = self.momentum
        make = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        return make(parameters, **options)


_FLIPS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "hflip": lambda images: images.flip(-1),
    "vflip": lambda images: images.flip(-2),
    "transpose": lambda images: images.transpose(-1, -2),
}


def tune(
    model: nn.Module,
    data: GroupedData,
    loss: Loss,
    mask: WeightMask,
    step: Step,
    *,
    generator: torch.Generator,
    multi_label: bool = False,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    after_epoch: AfterEpoch = lambda epoch, loss: False,
    tail: Tail | None = None,
) -> None:
    """Change `model`: minimise `loss` on `data`, moving only the weights of `mask`.

    1. The weights of the mask are gathered into one vector, which the optimizer owns.
    2. Every batch is stratified by group and label. Its loss is checked to be finite before anything moves.
    3. After every epoch ``after_epoch(epoch, mean loss)`` is called; if it returns true, training stops.

    Given the `tail` of the model whose activations the data hold, only that runs. Training and gradient flags of the
    model are as before on the way out, also on failure.

    Raises:
        NonFiniteError: a loss is not finite; the model keeps the weights of the last good step.
        MismatchError: the mask was made for another model.
    """
    chosen = SelectedWeights(model, mask)
    device, runs = chosen.vector.device, tail or model
    with _trainable(model, chosen.parameters), _modes(model, step.norm_stats):
        pooled = PooledLoss(loss, data, _logits(runs, data, step.batch_size, device, autocast), multi_label)
        optimizer = step.make_optimizer([chosen.vector])
        average, taken = chosen.vector.detach().clone(), 0
        for epoch in range(1, step.epochs + 1):
            batches = list(
                stratified_batches(data, step.batch_size, generator=generator, balance=step.balance)
            )
            total = 0.0
            for index, batch in zip(batches, data.iterate(batches), strict=True):
                inputs = _augmented(batch.to(device).inputs, step.augment, generator)
                with autocast():
                    logits = forward_logits(runs, inputs)
                value = pooled(logits, index.to(device))
                total += _finite(value, epoch)
                model.zero_grad()
                torch.autograd.backward(value)
                chosen.collect_gradients()
                chosen.step(optimizer)
                taken += 1
                # The decay grows to its value, so that the first steps are not held back by the start.
                average.lerp_(chosen.vector.detach(), 1 - min(step.average, taken / (taken + 10)))
            chosen.write_back(average)
            if after_epoch(epoch, total / len(batches)):
                break
            chosen.write_back()
        chosen.write_back(average)


def _finite(loss: Tensor, epoch: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the loss is {value} in epoch {epoch}: lower the learning rate, or check the inputs and weights for NaN"
        )
    return value


def _augmented(inputs: Any, augment: Sequence[str], generator: torch.Generator) -> Any:
    if not augment:
        return inputs
    if (
        not isinstance(inputs, Tensor)
        or inputs.dim() != 4
        or ("transpose" in augment and inputs.shape[-1] != inputs.shape[-2])
    ):
        raise ConfigError("augment needs square images of shape (n, c, h, w): turn it off for other inputs")
    for name in augment:
        chosen = (torch.rand(len(inputs), generator=generator) < 0.5).to(inputs.device)
        inputs = torch.where(chosen[:, None, None, None], _FLIPS[name](inputs), inputs)
    return inputs


@torch.no_grad()
def _logits(
    model: nn.Module, data: GroupedData, batch_size: int, device: torch.device, autocast: Callable[[], Any]
) -> Tensor:
    with autocast():
        parts = [forward_logits(model, batch.to(device).inputs).float() for batch in data.batches(batch_size)]
    return torch.cat(parts)


@contextmanager
def _trainable(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, only `parameters` ask for gradients, so that nothing below the first of them is computed backwards."""
    before = {p: p.requires_grad for p in model.parameters()}
    wanted = set(parameters)
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in wanted)
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


@contextmanager
def _modes(model: nn.Module, norm_stats: str) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        if norm_stats == "update":
            for module in before:
                module.training = hasattr(module, "running_mean")
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def penultimate_features(
    model: nn.Module,
    head: Head,
    data: GroupedData,
    *,
    batch_size: int = 256,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    tail: Tail | None = None,
) -> GroupedData | None:
    """The head's input for every sample, as data of the head alone; None when the head's output is not the logits.

    With a frozen extractor these never change, so the head can train on them at the cost of one forward pass. Given the
    `tail` of the model whose activations the data hold, only that runs.
    """
    module = model.get_submodule(head.name)
    device = next(model.parameters()).device
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        seen.append((arguments[0], output))

    features = []
    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad(), _modes(model, "frozen"), autocast():
            for batch in data.batches(batch_size):
                seen.clear()
                logits = forward_logits(tail or model, batch.to(device).inputs)
                if len(seen) != 1 or not _same(seen[0][1], logits):
                    return None
                features.append(seen[0][0].float().cpu())
    finally:
        handle.remove()
    return data.with_inputs(torch.cat(features))


def _same(output: Any, logits: Tensor) -> bool:
    return (
        isinstance(output, Tensor)
        and output.numel() == logits.numel()
        and torch.equal(output.reshape(logits.shape), logits)
    )


def reset_head(model: nn.Module, head: Head, where: Mapping[str, Tensor] | None = None) -> None:
    """Change `model`: set the head's weights and bias to zero, or only those that `where` marks."""
    parameters = dict(model.named_parameters())
    missing = [name for name in head.parameters if name not in parameters]
    if missing:
        raise MismatchError(f"the model has no parameter {missing[0]!r}: this head is another model's")
    if parametrize.is_parametrized(model.get_submodule(head.name)):
        # A weight-normed weight is v * g / |v|: all zeros would be 0 / 0.
        raise ConfigError(f"the head {head.name!r} is parametrized and cannot be set to zero: use reset = 'keep'")
    with torch.no_grad():
        for name in head.parameters:
            parameter = parameters[name]
            parameter.masked_fill_(
                torch.ones_like(parameter, dtype=torch.bool)
                if where is None
                else where[name].to(parameter.device),
                0,
            )
