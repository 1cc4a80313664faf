"""Where a model runs, in which precision, and how many samples fit there at once."""

import math
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from bmft.errors import ConfigError

Precision = Literal["auto", "float32", "bf16"]
AutocastMaker = Callable[[], AbstractContextManager[Any]]
Result = TypeVar("Result")
AT_ONCE = 64  # samples that a pass without gradients takes, where nothing says otherwise


@dataclass
class Room:
    """How many samples have found room at once: `most` halves whenever memory runs out, if it `shrinks` at all.

    Before that, if it `may_recompute`, it begins to `recompute`: the work is then to keep less and compute it again.

    >>> def work(size):
    ...     if size > 20:
    ...         raise torch.OutOfMemoryError
    ...     return size
    >>> Room(shrinks=True)(work, 64)
    16
    """

    shrinks: bool = False
    most: float = math.inf
    recompute: bool = False
    may_recompute: bool = False

    def __call__(self, work: Callable[[int], Result], wanted: int = AT_ONCE) -> Result:
        """``work(size)`` with `wanted` samples at once, or as many as there is room for; it may be called again."""
        while True:
            size = int(min(wanted, self.most))
            try:
                return work(size)
            except (RuntimeError, MemoryError) as error:
                more = self.may_recompute and not self.recompute
                if not (more or (self.shrinks and size > 1)) or not ran_out_of_memory(error):
                    raise
            # Here, not above: the error's traceback holds what did not fit.
            if more:
                self.recompute = True
            else:
                self.most = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the CPU's allocator, had no memory left."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def choose_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is the first CUDA device where there is one, else the CPU.

    Raises:
        ConfigError: there is no such device here.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices: use --device cpu"
        )
    return device


def room_for_pixels(device: torch.device) -> int:
    """Bytes of `device` that a data set's pixels may take: a quarter of what is free on a GPU, none on the CPU.

    >>> room_for_pixels(torch.device("cpu"))
    0
    """
    return int(torch.cuda.mem_get_info(device)[0]) // 4 if device.type == "cuda" else 0


def laid_out_for_speed(model: nn.Module) -> nn.Module:
    """Change `model`: the weights of 2-D convolutions lie in memory with the channels last, values as they are.

    Convolutions then run up to twice as fast in bfloat16, and no slower in float32. A model without them, or with a
    tensor for which torch has no such layout, stays as it is.
    """
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if convolves and all(tensor.dim() <= 4 for tensor in [*model.parameters(), *model.buffers()]):
        model.to(memory_format=torch.channels_last)
    return model


# Weights per layer from which a network gains by bfloat16 on a CPU (`benchmarks/precision.py`): without and with
# depthwise convolutions, which torch runs slowly in it.
_WIDE, _WIDE_DEPTHWISE = 25_000, 100_000


def autocast_for(device: torch.device, precision: Precision, model: nn.Module) -> AutocastMaker:
    """A maker of the context in which training passes of `model` run.

    ``"auto"`` is bfloat16 where the processor has instructions for it, since elsewhere it is slower than float32; on a
    CPU only for layers so wide that it saves more than the conversions cost.
    """
    fast = _has_bf16(device) and (device.type == "cuda" or _wide(model))
    if precision == "bf16" or (precision == "auto" and fast):
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext


def _wide(model: nn.Module) -> bool:
    layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in layers)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return weights >= (_WIDE_DEPTHWISE if depthwise else _WIDE) * len(layers)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or platform.system() != "Linux":
        return False
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags
