"""How far a training is: what the next step depends on, beside the weights it may not move."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from bmft.training.loss import PooledLoss
from bmft.training.masked_step import SelectedWeights


class EpochKeeper(Protocol):
    """Keeps a training's latest epoch elsewhere, so that it can go on from there."""

    def read(self) -> Mapping[str, Tensor] | None:
        """What was written last; None for nothing."""

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep this in the place of what was written before."""


@dataclass
class TrainingState:
    """A training under way: the optimizer and its learning rate, the average of the weights, how much is done.

    Attributes:
        setbacks: how often it went back, each time to a third of the learning rate.
    """

    chosen: SelectedWeights
    optimizer: torch.optim.Optimizer
    pooled: PooledLoss
    generator: torch.Generator
    rate: float
    average: Tensor = field(init=False)
    taken: int = 0
    epoch: int = 0
    stopped: bool = False
    setbacks: int = 0

    def __post_init__(self) -> None:
        self.average = self.chosen.vector.detach().clone()

    def step(self, decay: float, warmup: int = 0) -> None:
        """Take a step along the gradient that the chosen weights have, the first `warmup` ones at a rising rate."""
        for group in self.optimizer.param_groups if self.taken <= warmup else ():
            group["lr"] = self.rate * min(1.0, (self.taken + 1) / max(warmup, 1))
        self.chosen.step(self.optimizer)
        self.taken += 1
        # The decay grows to its value, so that the first steps are not held back by the start.
        self.average.lerp_(self.chosen.vector.detach(), 1 - min(decay, self.taken / (self.taken + 10)))

    def noted(self) -> "Noted":
        """Where it is, for `go_back`."""
        values = (self.chosen.vector.detach(), self.average, self.pooled.logits, self.generator.get_state())
        return Noted(
            tuple(value.clone() for value in values), deepcopy(self.optimizer.state_dict()), self.taken, self.epoch
        )

    def go_back(self, noted: "Noted", rate: float) -> None:
        """Be where it was, the model's weights too, and go on from there at this learning rate."""
        vector, average, logits, generator = noted.tensors
        with torch.no_grad():
            self.chosen.vector.copy_(vector)
        self.average.copy_(average)
        self.pooled.put_back(logits)
        self.generator.set_state(generator)
        self.optimizer.load_state_dict(noted.optimizer)
        self.taken, self.epoch, self.rate = noted.taken, noted.epoch, rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.chosen.write_back()

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        numbers = [self.rate, self.taken, self.epoch, self.stopped, self.setbacks]
        kept = self.optimizer.state[self.chosen.vector]
        return {
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            "vector": self.chosen.vector.detach(),
            "average": self.average,
            "logits": self.pooled.logits,
            "start": self.pooled.start,
            "generator": self.generator.get_state(),
            **{f"optimizer {name}": torch.as_tensor(value) for name, value in kept.items()},
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Be where the training was that gave these `tensors`; the model's weights, too."""
        self.rate, taken, epoch, stopped, setbacks = tensors["numbers"].tolist()
        self.taken, self.epoch, self.stopped, self.setbacks = int(taken), int(epoch), bool(stopped), int(setbacks)
        with torch.no_grad():
            self.chosen.vector.copy_(tensors["vector"])
        self.average.copy_(tensors["average"])
        self.pooled.put_back(tensors["logits"])
        self.generator.set_state(tensors["generator"])
        state = {k.split(" ", 1)[1]: t for k, t in tensors.items() if k.startswith("optimizer ")}
        # The optimizer knows what of it belongs on the device.
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": {0: state}})
        self.chosen.write_back()


@dataclass(frozen=True)
class Noted:
    """A copy of where a training was."""

    tensors: tuple[Tensor, ...]
    optimizer: dict[str, Any]
    taken: int
    epoch: int
