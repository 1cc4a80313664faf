"""Where in a file's content the weights are, and how new ones take their place."""

import copy
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmft._common import shown
from bmft.errors import CheckpointError, MismatchError, NonFiniteError

_ARCH_KEYS = ("arch", "architecture", "model_name", "model")
_MADE_WITH = ("hyper_parameters", "hparams", "model_args", "model_kwargs", "model_config")
_SETTINGS_KEYS = ("hyper_parameters", "hparams", "config", "args")


def at(content: Any, keys: Iterable[str]) -> Any:
    """What lies under `keys`, one after the other."""
    for key in keys:
        content = content[key] if isinstance(content, Mapping) else getattr(content, key)
    return content


def held_model(content: Any) -> bool:
    """Whether it is an object, such as fastai's Learner, whose ``model`` is the network."""
    return not isinstance(content, Mapping | nn.Module) and isinstance(getattr(content, "model", None), nn.Module)


def tensors_of(found: Any) -> dict[str, Tensor]:
    """The tensors of a state dict or a model, by name."""
    state = found.state_dict() if isinstance(found, nn.Module) else found
    return {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}


def check_tensors(path: Path, found: Any) -> None:
    """Refuse what no dense weight is; all such are named together.

    Raises:
        CheckpointError: there are some.
    """
    tensors = tensors_of(found)
    odd = [f"{key!r} is {why}" for key, tensor in tensors.items() if (why := _odd(tensor))]
    if isinstance(found, Mapping):
        odd += [
            f"{key!r} is a {type(value).__name__}, not a tensor"
            for key, value in found.items()
            if isinstance(key, str) and "." in key and key not in tensors and not key.endswith("_extra_state")
        ]
    if odd:
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise CheckpointError(f"{path} holds weights that cannot be tuned: {', '.join(odd[:5])}{more}")


def _odd(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "on the meta device (it has a shape and no values)"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return f"{tensor.layout}, not dense".removeprefix("torch.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"expanded to {tuple(tensor.shape)} from fewer values"
    return ""


def _key(key: object) -> str:
    return key if isinstance(key, str) else shown(key)


def plain_values(content: Any) -> dict[str, Any]:
    """The texts and numbers among the entries; not integers so large that Python writes them in no text."""
    return {
        _key(key): value
        for key, value in _as_mapping(content).items()
        if isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**64)
    }


def named_arch(content: Any) -> str | None:
    """The architecture that the entries, or the settings among them, name.

    >>> named_arch({"epoch": 3, "hyper_parameters": {"lr": 0.1, "arch": "resnet18"}})
    'resnet18'
    """
    entries = _as_mapping(content)
    settings = [_as_mapping(entries.get(key)) for key in _SETTINGS_KEYS]
    names = (place.get(key) for place in (entries, *settings) for key in _ARCH_KEYS)
    name = next((name for name in names if isinstance(name, str) and name), None)
    options = _timm_options(entries)
    if name is None or options is None or any(mark in name for mark in ",:("):
        return name
    # The weights tell the size of the head.
    said = (f"{key}={value!r}" for key, value in options.items() if key != "num_classes")
    return ",".join([f"timm:{name}", *said])


def made_with(content: Any) -> dict[str, Any]:
    """What the entries say that the network was made with, such as Lightning's ``hyper_parameters``.

    >>> made_with({"hyper_parameters": {"width": 8}, "epoch": 3})
    {'width': 8}
    """
    entries = _as_mapping(content)
    found: dict[str, Any] = {}
    for key in _MADE_WITH:
        found |= {name: value for name, value in _as_mapping(entries.get(key)).items() if isinstance(name, str)}
    # Lightning keeps the parameters under the name of the one argument that held them all.
    held = entries.get("hparams_name")
    return {held: found} if isinstance(held, str) and held not in ("kwargs", "") and found else found


def _timm_options(entries: Mapping[Any, Any]) -> dict[str, Any] | None:
    """How timm's train.py, or a folder of its hub, says that the network was made; None where it is not timm's."""
    arguments = _as_mapping(entries.get("args"))
    if "gp" in arguments:
        said = {
            "in_chans": arguments.get("in_chans"),
            "global_pool": arguments["gp"],
            "bn_eps": arguments.get("bn_eps"),
        }
        options = {key: value for key, value in said.items() if value is not None}
        return options | dict(_as_mapping(arguments.get("model_kwargs")))
    return dict(_as_mapping(entries.get("model_args"))) if "pretrained_cfg" in entries else None


def settings_of(content: Any) -> list[tuple[Mapping[Any, Any], str]]:
    """The entries, and the settings among them, each with where it is."""
    entries = _as_mapping(content)
    inner = [(_as_mapping(entries.get(key)), f"the checkpoint's {key}") for key in _SETTINGS_KEYS]
    return [(place, where) for place, where in (*inner, (entries, "the checkpoint")) if place]


def _as_mapping(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else {}


def refilled(content: Any, keys: tuple[str, ...], stored: Mapping[str, Tensor]) -> Any:
    """`content` with new values for some tensors of what lies under `keys`; `content` itself is not changed.

    The new tensors lie in memory as the old ones do: tied, strided, or views of one another.

    Raises:
        MismatchError: tensors that are one in the content get different values.
    """
    found = at(content, keys)
    if isinstance(found, nn.Module):
        filled: Any = copy.deepcopy(found)
        fresh = tensors_of(filled)
    else:
        filled = copy.copy(found)
        fresh = copy.deepcopy({key: found[key] for key in stored})
        filled.update(fresh)
    with torch.no_grad():
        for key, tensor in stored.items():
            fresh[key].copy_(tensor)
    for key, tensor in stored.items():
        if not bool(same_bits(fresh[key].detach(), tensor).all()):
            raise MismatchError(
                f"{key!r} shares its values with another weight in the checkpoint, but was given others"
            )
    return _replaced(content, keys, filled)


def _replaced(content: Any, keys: tuple[str, ...], value: Any) -> Any:
    if not keys:
        return value
    outer = copy.copy(content)
    inner = _replaced(at(content, keys[:1]), keys[1:], value)
    if isinstance(content, Mapping):
        outer[keys[0]] = inner
    else:
        setattr(outer, keys[0], inner)
    return outer


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors of one shape and dtype agree to the last bit, NaN and signed zeros included."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if not a.is_floating_point():
        return a == b
    return a.view(integers[a.element_size()]) == b.view(integers[b.element_size()])


def in_precision(name: str, new: Tensor, old: Tensor) -> Tensor:
    """`new` as the file keeps it; where it says the same as `old`, with the bits of `old`.

    Raises:
        NonFiniteError: a value is too large for the file's numbers.
    """
    if new.dtype == old.dtype:
        return new
    # A float64 weight does not survive a model in float32: where nothing changed it is the file's.
    cast = torch.where(same_bits(old.to(new.dtype), new), old, new.to(old.dtype))
    if new.is_floating_point() and bool((torch.isfinite(new) & ~torch.isfinite(cast)).any()):
        raise NonFiniteError(
            f"new values of {name!r} are too large for {old.dtype}, in which the checkpoint keeps them"
        )
    return cast
