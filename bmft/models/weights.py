"""A copy of a model to compute with, what moved in it, and its weights put back in the model's own precision."""

import copy
import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bmft.errors import ArchitectureError, ConfigError


def copied(model: nn.Module) -> nn.Module:
    """A copy of the model, weights and all.

    Modules that keep a computed tensor as an attribute (``torch.nn.utils.weight_norm``) are copied, too, which
    ``copy.deepcopy`` alone refuses.

    >>> net = nn.Linear(2, 1)
    >>> net.seen = net(torch.zeros(1, 2))
    >>> copied(net).seen.requires_grad
    False
    """
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


def working_copy(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy on `device`, in eval mode and single precision, in which small steps are not rounded away.

    Raises:
        ArchitectureError: a weight has no values, or is complex.

    >>> working_copy(nn.Linear(2, 1).half(), torch.device("cpu")).weight.dtype
    torch.float32
    """
    check_tunable(model)
    return copied(model).to(device).float().eval()


def check_tunable(model: nn.Module) -> None:
    """Raise unless every weight has real values.

    Raises:
        ArchitectureError: see `check_values`; or a parameter is complex.
    """
    check_values(model)
    if odd := [name for name, parameter in model.named_parameters() if parameter.is_complex()]:
        raise ArchitectureError(
            f"{len(odd)} parameters of the model are complex (first: {odd[0]!r}), and bmft moves real ones: keep "
            "each as two real tensors (torch.view_as_real) and join them in the forward pass"
        )


def check_module(model: object) -> None:
    """Raise unless it is a module.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"a {type(model).__name__} was given as the model: expected a torch.nn.Module; of a file "
            "bmft.load_checkpoint(path) makes one"
        )


def check_values(model: nn.Module) -> None:
    """Raise unless every weight has values.

    Raises:
        ConfigError: it is no module.
        ArchitectureError: it is a ScriptModule, or a weight or buffer is on the meta device or not yet initialized.
    """
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ArchitectureError(
            "the model is a ScriptModule (torch.jit), whose layers cannot be taken apart: build the nn.Module that it "
            "was made from, and load its weights with load_state_dict(scripted.state_dict())"
        )
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    if odd := [name for name, tensor in tensors.items() if tensor.is_meta or is_lazy(tensor)]:
        raise ArchitectureError(
            f"{len(odd)} weights of the model have no values (first: {odd[0]!r}, on the meta device or of a lazy "
            "layer): build it on the CPU, run it once if it has lazy layers, and load its weights"
        )


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict without what a module keeps there beside tensors (its extra state).

    >>> list(tensors_of(nn.Linear(2, 1)))
    ['weight', 'bias']
    """
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def differing(old: Tensor, new: Tensor) -> Tensor:
    """Where two tensors of one shape and dtype differ in a bit, as ``(k,)`` positions in the order of their axes.

    Equal bits, unlike equal numbers, tell -0.0 from 0.0, and not NaN from NaN.

    >>> differing(torch.tensor([0.0, 1.0, torch.nan]), torch.tensor([-0.0, 1.0, torch.nan]))
    tensor([0])
    """
    size = new.element_size()
    words = _WORDS.get(size, torch.int64)  # two of them for a complex128
    shape = (new.numel(), max(1, size // 8))
    a, b = (tensor.detach().reshape(-1).contiguous().view(words).view(shape) for tensor in (old, new))
    return (a != b).any(1).nonzero()[:, 0]


def changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors of `after` that differ in a bit: whole, or as positions and values where few do.

    What was in another precision or on another device is compared as it would be in `after`'s.

    >>> changes({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    {'whole w': tensor([1., 1.])}
    >>> changes({"w": torch.zeros(4)}, {"w": torch.tensor([0.0, 2.0, 0.0, 0.0])})
    {'positions w': tensor([1]), 'values w': tensor([2.])}
    """
    found: dict[str, Tensor] = {}
    for name, new in after.items():
        positions = differing(before[name].detach().to(new), new)
        # A position takes eight bytes, a value four.
        if len(positions) * 3 > math.prod(new.shape):
            found[f"whole {name}"] = new.detach().clone()
        elif len(positions):
            found[f"positions {name}"] = positions
            found[f"values {name}"] = new.detach().flatten()[positions]
    return found


def put_back(state: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Change `state`: put back the values that `changes` found."""
    for key, tensor in found.items():
        kind, name = key.split(" ", 1)
        if kind == "whole":
            state[name].copy_(tensor)
        elif kind == "values":
            # A copy: what `flatten` gives may or may not share memory with the tensor, depending on its layout.
            flat = state[name].clone().flatten()
            flat[found[f"positions {name}"].to(flat.device)] = tensor.to(flat.device)
            state[name].copy_(flat.reshape(state[name].shape))


def in_own_precision(new: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights `new`, each in the precision of `own`; where nothing changed it is `own`'s value to the last bit.

    >>> own = {"w": torch.tensor([0.1, 0.2], dtype=torch.float64)}
    >>> in_own_precision({"w": torch.tensor([0.1, 0.5])}, own)["w"] - own["w"]
    tensor([0.0000, 0.3000], dtype=torch.float64)
    """
    # A module's extra state is no tensor and passes as it is.
    return {name: _put_back(value, own[name]) for name, value in new.items()}


def _put_back(new: Tensor, own: Tensor) -> Tensor:
    if not isinstance(new, Tensor) or new.dtype == own.dtype:
        return new
    new = new.to(own.device)
    return torch.where(own.to(new.dtype) == new, own, new.to(own.dtype))


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all names, dtypes, shapes and bytes of a state dict, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{plain.dtype}\0{tuple(plain.shape)}\0".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()
