"""What a method can be told: one frozen set of values, checked when it is made."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bmft import fairness
from bmft._text import shown, unknown_name
from bmft.auditing import GOALS
from bmft.compute import Precision
from bmft.data import Balance
from bmft.errors import ConfigError
from bmft.masks import Granularity
from bmft.training import Loss, Step

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What the two-step methods can be told; every method has its own defaults.

    A pair is (step 1, step 2): the extractor, then the head.

    Attributes:
        objective: the gap to close: a name in `bmft.fairness.OBJECTIVES` or a callable.
        combine: several attributes count by their ``"mean"`` or their ``"worst"``.
        epochs: passes over the fit set.
        lr: learning rates; 0: `trust` times the best step along the first gradient, see
            `bmft.training.line_search.best_step`.
        trust: the share of that best step.
        optimizer: see `bmft.training.settings.OPTIMIZERS`.
        momentum: of SGD and RMSprop.
        weight_decay: of both steps.
        batch_size: samples per step.
        on_out_of_memory: ``"fail"``, or ``"halve"``: go on with half as many samples at once for as long as memory runs
            out. A step is still of `batch_size` samples, and its gap of all of them.
        bias_weight: of the gap in the loss: the first is step 1's, every other is tried in step 2, in this order.
        task_weight: of the cross-entropy in the loss.
        weigh: whose samples weigh the same in the cross-entropy: ``"none"``, ``"label"`` or ``"cell"``.
        balance: of the batches: ``"none"``, ``"group"``, ``"group_in_label"`` or ``"cell"``.
        whole_set: the gap is the whole set's; otherwise each batch's own, as published.
        average: decay of the moving average of the weights over steps; 0 for none.
        augment: any of ``"hflip"``, ``"vflip"``, ``"transpose"``.
        norm_stats: normalization statistics stay ``"frozen"`` or ``"update"``.
        choose: what is best among the epochs that do no harm: ``"gap"``, the smallest of the objective, or a name in
            `bmft.auditing.GOALS`.
        patience: epochs of step 1 that are no better on select after which it stops; 0 for never. Epochs that do harm
            count neither way.
        precision: ``"auto"``, ``"float32"`` or ``"bf16"``, of the training passes, see `bmft.compute.autocast_for`;
            what is measured is float32.
        score: of the importance, see `bmft.masks.importance.SCORES`.
        rank: by ``"bias"`` importance, or by its ``"ratio"`` to that for the task.
        scale: the ratio's minimum and maximum per ``"tensor"`` or ``"global"``.
        floor: added to the task's share in the ratio.
        exact: importance by the whole set's gradient; otherwise the mean over batches, as published.
        depth: share of the extractor's blocks, counted from the head down, in which weights may move unless `tune`
            names them; what lies below is computed once. In networks of fewer than six blocks all may move.
        fraction: of the weights that may move; the rest of them stay.
        granularity: what is chosen: ``"weight"``, ``"channel"``, ``"layer"`` or ``"block"``.
        path: how far along step 1 the extractor goes for step 2, as fractions of the way from the original; every one
            is tried, in this order.
        reset: the head before step 2: ``"zero"``, ``"partial"`` or ``"keep"``.
        operating_point: ``"kept"``: every new head is tried a second time with its bias put where as many of the fit
            set are called positive as by the original; ``"free"``: only as trained.
        tune: name patterns; only matching weights may move in step 1, in whatever block.
        freeze: name patterns; matching weights do not move in step 1.
    """

    objective: str | Objective = "equalized_odds"
    combine: Literal["mean", "worst"] = "mean"
    epochs: tuple[int, int] = (10, 5)
    lr: tuple[float, float] = (0.0, 1e-2)
    trust: float = 0.1
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 64
    on_out_of_memory: Literal["fail", "halve"] = "fail"
    bias_weight: tuple[float, ...] = (2.0, 1.0, 0.4, 0.1)
    task_weight: tuple[float, float] = (1.0, 1.0)
    weigh: Literal["none", "label", "cell"] = "none"
    balance: tuple[Balance, Balance] = ("cell", "cell")
    whole_set: bool = True
    average: float = 0.95
    augment: tuple[str, ...] = ()
    norm_stats: Literal["frozen", "update"] = "frozen"
    choose: str = "gap"
    patience: int = 3
    precision: Precision = "auto"
    score: str | Callable[[Tensor, Tensor], Tensor] = "fisher"
    rank: Literal["bias", "ratio"] = "bias"
    scale: Literal["tensor", "global"] = "tensor"
    floor: float = 1e-10
    exact: bool = True
    depth: float = 0.75
    fraction: float = 0.05
    granularity: Granularity = "weight"
    path: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    reset: Literal["zero", "partial", "keep"] = "zero"
    operating_point: Literal["kept", "free"] = "kept"
    tune: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.on_out_of_memory == "halve" and self.norm_stats == "update":
            raise ConfigError("norm_stats = 'update' needs whole batches, which on_out_of_memory = 'halve' may cut")
        if isinstance(self.objective, str) and self.objective not in fairness.OBJECTIVES:
            raise ConfigError(unknown_name("objective", self.objective, fairness.OBJECTIVES))
        if self.choose != "gap" and self.choose not in GOALS:
            raise ConfigError(unknown_name("choose", self.choose, {"gap": None, **GOALS}))
        for number in (0, 1):
            self.step(number)
        if len(self.bias_weight) < 2 or any(not value >= 0 for value in self.bias_weight):
            raise ConfigError(
                f"bias_weight is {list(self.bias_weight)}: expected one for step 1 and at least one for step 2"
            )
        if not self.path or any(not 0 <= value <= 1 for value in self.path):
            raise ConfigError(f"path is {list(self.path)}: expected fractions in [0, 1]")
        for name in ("depth", "fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected more than 0 and at most 1 (0.05 for 5 %)")

    def step(self, number: int) -> Step:
        """How step 1 (`number` 0) or step 2 (1) trains."""
        return Step(
            epochs=self.epochs[number],
            learning_rate=self.lr[number],
            trust=self.trust,
            optimizer=self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            balance=self.balance[number],
            augment=self.augment if number == 0 else (),
            average=self.average,
            norm_stats=self.norm_stats if number == 0 else "frozen",
        )

    def gap(self) -> Objective:
        """The objective as a callable, for one attribute."""
        return fairness.OBJECTIVES[self.objective] if isinstance(self.objective, str) else self.objective

    @property
    def on_decisions(self) -> bool:
        """Whether the gap is measured on decisions: a named gap compares rates, a loss needs probabilities."""
        return isinstance(self.objective, str) and self.objective != "worst_group_loss"

    def extractor_loss(self) -> Loss:
        """What step 1 minimises."""
        return self._loss(self.bias_weight[0], self.task_weight[0])

    def head_losses(self) -> list[Loss]:
        """What step 2 minimises, one after the other."""
        return [self._loss(weight, self.task_weight[1]) for weight in self.bias_weight[1:]]

    def _loss(self, bias_weight: float, task_weight: float) -> Loss:
        return Loss(
            self.gap(),
            bias_weight=bias_weight,
            task_weight=task_weight,
            balance=self.weigh,
            whole_set=self.whole_set,
            combine=self.combine,
        )

    def with_values(self, values: Mapping[str, Any]) -> "Settings":
        """The same settings with these values; a single number stands for both steps.

        Raises:
            ConfigError: a name is unknown, or a value is not possible.
        """
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in values:
            if name not in known:
                raise ConfigError(unknown_name("setting", name, known))
        return replace(self, **{name: _fitting(name, value, known[name]) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the reports and `with_values` have them; a callable by its qualified name."""
        return {k: _plain(v) for k, v in asdict(self).items()}


def _plain(value: Any) -> Any:
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    return list(value) if isinstance(value, tuple) else value


_LISTS = ("tune", "freeze", "augment", "path", "bias_weight")


def _fitting(name: str, value: Any, default: Any) -> Any:
    """`value` in the shape of `default`: lists as tuples, one value for a pair of steps as both."""
    if isinstance(default, tuple):
        single = not isinstance(value, (list, tuple))
        value = (
            (value,)
            if single and name in _LISTS and name != "bias_weight"
            else (value, value)
            if single
            else tuple(value)
        )
        if name not in _LISTS and len(value) != 2:
            raise ConfigError(f"{name} is {shown(list(value))}: expected one value, or two (step 1, step 2)")
    sample = default[0] if isinstance(default, tuple) and default else default
    for part in value if isinstance(value, tuple) else (value,):
        _check_kind(name, part, sample)
    return value


def _check_kind(name: str, value: Any, sample: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    wants_number = isinstance(sample, (int, float)) and not isinstance(sample, bool)
    if isinstance(sample, bool) != isinstance(value, bool) or wants_number != is_number:
        raise ConfigError(f"{name} is {shown(value)}: expected a value like {sample!r}")
    if not is_number and not isinstance(value, (bool, str)) and not callable(value):
        raise ConfigError(f"{name} is or holds {shown(value)}: expected text")
    # No setting counts as far as this, and an integer of thousands of digits is no float.
    if is_number and not abs(value) < 2**63:
        raise ConfigError(f"{name} is {shown(value)}: expected a finite number, of at most 18 digits")
    if isinstance(sample, int) and is_number and value != int(value):
        raise ConfigError(f"{name} is {value}: expected a whole number")


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "combine": ("mean", "worst"),
    "weigh": ("none", "label", "cell"),
    "rank": ("bias", "ratio"),
    "scale": ("tensor", "global"),
    "reset": ("zero", "partial", "keep"),
    "precision": ("auto", "float32", "bf16"),
    "norm_stats": ("frozen", "update"),
    "operating_point": ("kept", "free"),
    "on_out_of_memory": ("fail", "halve"),
}


def _check_choices(settings: Settings) -> None:
    for name, choices in _CHOICES.items():
        if getattr(settings, name) not in choices:
            raise ConfigError(f"{name} is {getattr(settings, name)!r}: expected one of {', '.join(choices)}")
    for part in settings.balance:
        if part not in ("none", "group", "group_in_label", "cell"):
            raise ConfigError(f"balance is {part!r}: expected one of none, group, group_in_label, cell")
