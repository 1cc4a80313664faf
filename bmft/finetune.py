"""Move only the weights a mask allows: the step rule, the extractor step and the head step."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bmft.activations import Activations, Tail, tail_above
from bmft.course import Course, EpochKeeper
from bmft.data import GroupBatch, GroupedData, map_tensors, stratified_batches
from bmft.devices import Room
from bmft.errors import ConfigError, MismatchError, NonFiniteError
from bmft.mask import WeightMask
from bmft.models import Head, forward_logits
from bmft.pooled import Loss, PooledLoss
from bmft.processes import Share
from bmft.stepping import SelectedWeights, masked

__all__ = [
    "OPTIMIZERS", "Activations", "EpochKeeper", "Loss", "PooledLoss", "SelectedWeights", "Step", "Tail", "best_step",
    "masked", "penultimate_features", "reset_head", "tail_above", "tune",
]  # fmt: skip
AfterEpoch = Callable[[int, float], bool]
AutocastMaker = Callable[[], AbstractContextManager[Any]]
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


@dataclass(frozen=True)
class Step:
    """How one step trains: everything but what it minimises and which weights it may move.

    Attributes:
        epochs: passes over the set.
        learning_rate: of the optimizer; 0: `trust` times the best step along the first gradient (`best_step`), so that
            it fits the scale of the weights and the steepness of the loss, whatever they are.
        trust: the share of the best step, where that is taken.
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
    trust: float = 0.1

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not self.learning_rate >= 0 or not self.weight_decay >= 0:
            raise ConfigError(
                f"epochs {self.epochs}, batch_size {self.batch_size}, learning_rate {self.learning_rate}, weight_decay "
                f"{self.weight_decay}: expected at least 0, at least 1, at least 0, at least 0"
            )
        if not 0 < self.trust < math.inf:
            raise ConfigError(f"trust is {self.trust}: expected more than 0, such as 0.1")
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

    def make_optimizer(self, parameters: Sequence[nn.Parameter], rate: float | None = None) -> torch.optim.Optimizer:
        """The optimizer of these parameters; `rate` in the place of its learning rate, where given."""
        options: dict[str, Any] = {"lr": self.learning_rate if rate is None else rate}
        if self.weight_decay:
            options["weight_decay"] = self.weight_decay
        if self.optimizer in ("sgd", "rmsprop"):
            options["momentum"] = self.momentum
        if self.optimizer in ("sgd", "adam", "adamw"):
            # One pass over the weights instead of one per operation: a tenth of the time on a long vector.
            options["fused"] = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
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
    autocast: AutocastMaker = nullcontext,
    after_epoch: AfterEpoch = lambda epoch, loss: False,
    tail: Tail | None = None,
    room: Room | None = None,
    keeper: EpochKeeper | None = None,
) -> None:
    """Change `model`: minimise `loss` on `data`, moving only the weights of `mask`.

    1. The weights of the mask are gathered into one vector, which the optimizer owns.
    2. Every batch is stratified by group and label. Its loss is checked to be finite before anything moves.
    3. After every epoch ``after_epoch(epoch, mean loss)`` is called; if it returns true, training stops.

    Given the `tail` of the model whose activations the data hold, only that runs. Where `room` is short of a batch, its
    gradient is put together from pieces, exactly: the gap stays that of all its samples. Given a `keeper`, every epoch
    is kept, and the training goes on from what it holds; where an optimizer, an objective or statistics may hold more
    than it keeps, the training starts over. Training and gradient flags of the model are as before on the way out, also
    on failure.

    Raises:
        NonFiniteError: a loss is not finite; the model keeps the weights of the last good step.
        MismatchError: the mask was made for another model.
    """
    chosen = SelectedWeights(model, mask)
    device, runs, room = chosen.vector.device, tail or model, room or Room()
    with _trainable(model, chosen.parameters), _modes(model, step.norm_stats):
        plain = isinstance(step.optimizer, str) and isinstance(loss.objective, FunctionType)
        keeper = keeper if plain and step.norm_stats == "frozen" else None
        kept = keeper.read() if keeper else None
        logits = kept["logits"].to(device) if kept else room(
            lambda size: _logits(runs, data, size, device, autocast), step.batch_size
        )  # fmt: skip
        pooled = PooledLoss(loss, data, logits, multi_label)
        rate = float(kept["numbers"][0]) if kept else step.learning_rate or step.trust * best_step(
            runs, chosen, pooled, data, step, seed=generator.initial_seed(), room=room
        )  # fmt: skip
        course = Course(chosen, step.make_optimizer([chosen.vector], rate), pooled, generator, rate)
        if kept:
            course.go_on(kept)
        while course.epoch < step.epochs and not course.stopped:
            course.epoch += 1
            batches = list(
                stratified_batches(data, step.batch_size, generator=generator, balance=step.balance)
            )
            total = 0.0
            own = (index[Share(len(index)).rows] for index in batches)
            for index, batch in zip(batches, data.iterate(own), strict=True):
                inputs = _augmented(batch.to(device).inputs, step.augment, Share(len(index)), generator)
                at = index.to(device)
                total += _take_gradient(runs, chosen, pooled, inputs, at, autocast, room, course.epoch)
                course.step(step.average)
            chosen.write_back(course.average)
            course.stopped = after_epoch(course.epoch, total / len(batches))
            chosen.write_back()
            if keeper:
                keeper.write(course.tensors())
        chosen.write_back(course.average)


def _take_gradient(
    model: nn.Module, chosen: SelectedWeights, pooled: PooledLoss, inputs: Any, index: Tensor, autocast: AutocastMaker,
    room: Room, epoch: int,
) -> float:  # fmt: skip
    """Give the chosen weights the gradient of one batch's loss; returns the loss.

    The loss of all logits gives each logit's share of the gradient, which the passes of the pieces, and those of the
    other processes, carry on to the weights. `inputs` are this process's rows of the batch. What does not fit at once
    is run twice: without gradients for its logits, then piece by piece.
    """
    share = Share(len(index))
    length = share.rows.stop - share.rows.start

    def work(size: int) -> float:
        for parameter in chosen.parameters:
            parameter.grad = None
        pieces = _pieces(inputs, length, size)
        with torch.set_grad_enabled(len(pieces) == 1), autocast():
            logits = [forward_logits(model, piece) for piece in pieces]
        known = share.gather(torch.cat(logits)).requires_grad_()
        value = pooled(known, index)
        found = _finite(value, epoch)
        (wanted,) = torch.autograd.grad(value, known)
        for piece, first, part in zip(pieces, logits, torch.split(wanted[share.rows], size), strict=True):
            with autocast():
                again = first if first.requires_grad else forward_logits(model, piece)
            torch.autograd.backward(again, part)
        return found

    loss = room(work, length)
    chosen.collect_gradients()
    if chosen.vector.grad is not None:
        share.total(chosen.vector.grad)
    return loss


def _pieces(inputs: Any, length: int, size: int) -> list[Any]:
    def piece(rows: slice) -> Any:
        return map_tensors(lambda tensor: tensor[rows], inputs)

    return [piece(slice(start, start + size)) for start in range(0, length, size)]


_FIRST_RATE, _FACTORS = 1e-3, 16


def best_step(
    model: nn.Module, chosen: SelectedWeights, pooled: PooledLoss, data: GroupedData, step: Step, *, seed: int,
    batches: int = 4, room: Room | None = None,
) -> float:  # fmt: skip
    """The learning rate whose single step along the first gradient would lower the loss most; the weights stay.

    The step is the one that the optimizer takes first. From the rate at which the slope alone would take the loss to 0
    it goes up or down by factors of 3 for as long as the loss falls; a parabola through the slope would be quicker, but
    the gap's loss has a kink where the gap is 0. No step is longer than a tenth of the weights' norm: on weights that
    hardly matter any step may seem to help.

    Args:
        batches: of `data`, balanced as `step` says, whose mean loss this is.
        seed: of their choice.
        room: how many samples fit at once.
    """
    room = room or Room()
    generator = torch.Generator().manual_seed(seed)
    indices = stratified_batches(data, step.batch_size, generator=generator, balance=step.balance)
    rows = list(islice(indices, batches))
    device = chosen.vector.device
    taken = [(index.to(device), data.take(index[Share(len(index)).rows]).to(device)) for index in rows]
    untouched, gradient = _mean_loss_and_gradient(model, chosen, pooled, taken, room)
    direction = _first_direction(chosen, step, gradient)
    start = chosen.vector.detach().clone()
    longest = (float(start.norm()) + 1) / 10 / max(float(direction.norm()), 1e-30)

    @cache
    def loss_after(power: int) -> float:
        rate = _FIRST_RATE * 3.0**power
        if rate > longest:
            return math.inf
        chosen.write_back(start - rate * direction)
        return _mean_loss(model, pooled, taken, room)

    best = _first_power(untouched, float(direction.dot(gradient)), longest)
    way = 1 if loss_after(best) < untouched and loss_after(best + 1) < loss_after(best) else -1
    while abs(best) < _FACTORS and (loss_after(best + way) < loss_after(best) or not loss_after(best) < untouched):
        best += way
    chosen.write_back(start)
    return float(_FIRST_RATE * 3.0**best)


def _first_power(loss: float, slope: float, longest: float) -> int:
    """The power of 3 where the line search begins: just below where a line of that slope is 0, or the longest step."""
    rate = min(loss / slope if loss > 0 and slope > 0 else _FIRST_RATE, longest)
    power = math.floor(math.log(rate / _FIRST_RATE, 3)) if rate > 0 else -_FACTORS
    return max(1 - _FACTORS, min(_FACTORS - 1, power))


def _mean_loss_and_gradient(
    model: nn.Module, chosen: SelectedWeights, pooled: PooledLoss, batches: Sequence[tuple[Tensor, GroupBatch]],
    room: Room,
) -> tuple[float, Tensor]:  # fmt: skip
    loss, gradient = 0.0, torch.zeros_like(chosen.vector)
    logits = pooled.logits.clone()
    for index, batch in batches:
        pooled.logits.copy_(logits)
        loss += _take_gradient(model, chosen, pooled, batch.inputs, index, nullcontext, room, 0) / len(batches)
        gradient += _gradient(chosen) / len(batches)
    pooled.logits.copy_(logits)
    return loss, gradient


@torch.no_grad()
def _mean_loss(
    model: nn.Module, pooled: PooledLoss, batches: Sequence[tuple[Tensor, GroupBatch]], room: Room
) -> float:
    logits, total = pooled.logits.clone(), 0.0
    for index, batch in batches:
        pooled.logits.copy_(logits)
        share, length = Share(len(index)), len(batch.targets)
        found = share.gather(room(partial(_in_pieces, model, batch.inputs, length), length))
        total += pooled(found, index).item() / len(batches)
    pooled.logits.copy_(logits)
    # An overflow is as bad a step as there is.
    return total if math.isfinite(total) else math.inf


def _in_pieces(model: nn.Module, inputs: Any, length: int, size: int) -> Tensor:
    return torch.cat([forward_logits(model, piece) for piece in _pieces(inputs, length, size)])


def _first_direction(chosen: SelectedWeights, step: Step, gradient: Tensor) -> Tensor:
    """What the optimizer's first step at learning rate 1 takes away from the weights."""
    probe = nn.Parameter(chosen.vector.detach().clone())
    probe.grad = gradient.clone()
    step.make_optimizer([probe], 1.0).step()
    return (chosen.vector.detach() - probe.detach()) * chosen.amount


def _gradient(chosen: SelectedWeights) -> Tensor:
    return torch.zeros_like(chosen.vector) if chosen.vector.grad is None else chosen.vector.grad


def _finite(loss: Tensor, epoch: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the loss is {value} in epoch {epoch}: lower the learning rate, or check the inputs and weights for NaN"
        )
    return value


def _augmented(inputs: Any, augment: Sequence[str], share: Share, generator: torch.Generator) -> Any:
    if not augment:
        return inputs
    if (
        not isinstance(inputs, Tensor)
        or inputs.dim() != 4
        or ("transpose" in augment and inputs.shape[-1] != inputs.shape[-2])
    ):
        raise ConfigError("augment needs square images of shape (n, c, h, w): turn it off for other inputs")
    for name in augment:
        # Drawn for the whole batch, so that it does not matter how many processes share it.
        chosen = (torch.rand(share.n, generator=generator) < 0.5)[share.rows].to(inputs.device)
        inputs = torch.where(chosen[:, None, None, None], _FLIPS[name](inputs), inputs)
    return inputs


@torch.no_grad()
def _logits(
    model: nn.Module, data: GroupedData, batch_size: int, device: torch.device, autocast: Callable[[], Any]
) -> Tensor:
    share = Share(len(data))
    with autocast():
        batches = share.of(data).batches(batch_size)
        parts = [forward_logits(model, batch.to(device).inputs).float() for batch in batches]
    return share.gather(torch.cat(parts))


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
    batch_size: int = 64,
    autocast: AutocastMaker = nullcontext,
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
    share = Share(len(data))
    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad(), _modes(model, "frozen"), autocast():
            for batch in share.of(data).batches(batch_size):
                seen.clear()
                logits = forward_logits(tail or model, batch.to(device).inputs)
                if len(seen) != 1 or not _same(seen[0][1], logits):
                    return None
                features.append(seen[0][0].float())
    finally:
        handle.remove()
    return data.with_inputs(share.gather(torch.cat(features)).cpu())


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
