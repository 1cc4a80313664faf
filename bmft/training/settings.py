"""How one step trains: optimizer, rate, batches; all but what it minimises and what it may move."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bmft.errors import ConfigError
from bmft.settings import FACTS

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
        lr: of the optimizer; 0: `trust` times the best step along the first gradient (`best_step`), so that
            it fits the scale of the weights and the steepness of the loss, whatever they are.
        trust: the share of the best step, where that is taken.
        rate_factor: between the rates that are tried for the best step, more than 1.
        rate_between: whether the best step may lie between two that are tried, where they are nearly as good.
        optimizer: a name in `OPTIMIZERS`, or a callable ``(parameters, lr=...) -> Optimizer``.
        momentum: of SGD and RMSprop; the others ignore it.
        weight_decay: of the optimizer; weights outside the mask do not decay.
        batch_size: samples per step.
        balance: of the batches, see `bmft.data.stratified_batches`.
        augment: any of ``"hflip"``, ``"vflip"``, ``"transpose"``, each done to half of the batches' images.
        average: in [0, 1); the weights kept are an exponential moving average over steps with this decay, which
            evens out the noise of small groups. 0 keeps the last step's weights.
        warmup: steps over which the learning rate rises to its value.
        share: of the set's batches that an epoch takes; 1/4 where the set holds four views of every image.
        copies: of every image that the set holds, one whole set after the other.
        strengths: the gap's weight in each epoch; the loss's own where there are none.
        norm_stats: ``"frozen"`` keeps the running statistics of normalization layers, ``"update"`` lets them move.
            Dropout stays off in both.
    """

    epochs: int
    lr: float
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 64
    balance: Literal["none", "group", "group_in_label", "cell"] = "none"
    augment: Sequence[str] = ()
    average: float = 0.0
    norm_stats: Literal["frozen", "update"] = "frozen"
    trust: float = 0.1
    rate_factor: float = 3.0
    rate_between: bool = False
    warmup: int = 0
    share: float = 1.0
    copies: int = 1
    strengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, fact in FACTS.items():
            if hasattr(self, name):
                fact.check(name, getattr(self, name))
        if self.warmup < 0 or not 0 < self.share <= 1:
            raise ConfigError(f"warmup {self.warmup}, share {self.share}: expected at least 0, and a share in (0, 1]")
        if not self.rate_factor > 1:
            raise ConfigError(f"rate_factor {self.rate_factor}: expected more than 1")
        if self.strengths and len(self.strengths) != self.epochs:
            raise ConfigError(f"{len(self.strengths)} strengths for {self.epochs} epochs: expected one for each")

    def make_optimizer(self, parameters: Sequence[nn.Parameter], rate: float | None = None) -> torch.optim.Optimizer:
        """The optimizer of these parameters; `rate` in the place of its learning rate, where given."""
        options: dict[str, Any] = {"lr": self.lr if rate is None else rate}
        if self.weight_decay:
            options["weight_decay"] = self.weight_decay
        if self.optimizer in ("sgd", "rmsprop"):
            options["momentum"] = self.momentum
        if self.optimizer in ("sgd", "adam", "adamw"):
            # One pass over the weights instead of one per operation: a tenth of the time on a long vector.
            options["fused"] = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
        make = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        return make(parameters, **options)
