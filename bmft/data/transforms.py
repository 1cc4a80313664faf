"""What happens to pixels between the decoded image and the network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bmft._common import short
from bmft.errors import ConfigError


class Normalization(NamedTuple):
    """``pixel * factor + shift``: scaling to [0, 1], then mean and standard deviation, in one step."""

    factor: Tensor
    shift: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Float32 ``(n, c, h, w)`` from uint8 ``(n, c, h, w)``."""
        return pixels.to(torch.float32).mul_(self.factor).add_(self.shift)

    def on(self, device: torch.device) -> Normalization:
        """The same on `device`."""
        return Normalization(self.factor.to(device), self.shift.to(device))


def parse_normalization(text: str, channels: int) -> Normalization:
    """Read ``imagenet``, ``half``, ``none`` or ``MEAN/STD`` (one number, or one per channel, each).

    Raises:
        ConfigError: anything else, a wrong count, or a standard deviation that is not positive.

    >>> parse_normalization("0.5/0.25", 1)(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten()
    tensor([-2.,  2.])
    """
    known = {"none": "0/1", "half": "0.5/0.5", "imagenet": "0.485,0.456,0.406/0.229,0.224,0.225"}
    try:
        mean, std = (
            torch.tensor([float(number) for number in part.split(",")], dtype=torch.float64)
            for part in known.get(text, text).split("/")
        )
    except ValueError:
        mean = std = torch.zeros(0, dtype=torch.float64)
    sizes_fit = len(mean) in (1, channels) and len(std) in (1, channels)
    # The largest value that comes out has to be a float32.
    if not sizes_fit or not bool((std > 0).all() and ((1 + mean.abs()) / std).float().isfinite().all()):
        raise ConfigError(
            f"normalize {short(text)!r}: expected imagenet (3 channels), half, none, or MEAN/STD with {channels} "
            "numbers each, such as 0.76,0.55,0.57/0.14,0.15,0.17."
        )
    return Normalization((1 / (255 * std))[:, None, None].float(), (-mean / std)[:, None, None].float())
