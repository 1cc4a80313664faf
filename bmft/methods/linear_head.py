"""The head as one linear layer, for methods that write its weights."""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bmft.errors import ConfigError
from bmft.methods.run import Run

Floats = NDArray[np.float64]


def linear_head(run: Run, model: nn.Module | None = None) -> nn.Linear:
    """The head of the run's model, or of another one like it, which must be linear.

    Raises:
        ConfigError: it is not.
    """
    layer = (run.model if model is None else model).get_submodule(run.head.name)
    if not isinstance(layer, nn.Linear):
        raise ConfigError(
            f"this method writes the weights of a linear head, and {run.head.name!r} is a {type(layer).__name__}: "
            "take another --method"
        )
    return layer
