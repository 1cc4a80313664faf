"""The sets of weights in a file: the model's, its running average's, a teacher's; which one is meant."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bmft._common import short, shown
from bmft.checkpoints.layout import at, held_model, tensors_of
from bmft.checkpoints.names import prefixes
from bmft.errors import CheckpointError, ConfigError

# In timm's order, whose `load_checkpoint` takes the average where there is one; then what others call theirs.
ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net", "ema", "student", "teacher")
_TIMM = ENTRIES[:4]
# Words that make a name one of a second copy, and those that may stand beside them.
_COPY = {"ema", "teacher", "student", "swa", "averaged", "average", "avg", "shadow", "polyak"}
_KIND = {"state", "dict", "model", "net", "network", "weights", "params", "module", "backbone"}
_DEPTH, _VISITS = 5, 10_000


@dataclass(frozen=True, eq=False)
class WeightSet:
    """One set of weights in a file.

    Attributes:
        keys: the entries that lead to the mapping or model it is in.
        prefix: what its names begin with there, where that tells it from the other sets.
        tensors: its tensors by their full names there.
    """

    keys: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def name(self) -> str:
        """How ``--entry`` names it; ``.`` at the top of the file."""
        return "/".join([*self.keys, *([self.prefix] if self.prefix else [])]) or "."

    @property
    def is_copy(self) -> bool:
        """Whether its name says that it is the network, or a running copy of it, and nothing older or else."""
        words = {word for key in (*self.keys, self.prefix) for word in _words(key)}
        return words <= _COPY | _KIND


def weight_sets(content: Any) -> list[WeightSet]:
    """Every set of weights by name in a file's content, in the file's order."""
    found, visits = [], iter(range(_VISITS))

    def walk(value: Any, keys: tuple[str, ...]) -> Iterator[WeightSet]:
        if isinstance(value, nn.Module):
            yield from _parts(keys, tensors_of(value))
        elif held_model(value):
            yield from walk(value.model, (*keys, "model"))
        elif isinstance(value, Mapping) and len(keys) <= _DEPTH and next(visits, None) is not None:
            tensors = tensors_of(value)
            if any("." in key for key in tensors):
                yield from _parts(keys, tensors)
            for key, inner in value.items():
                if isinstance(key, str):
                    yield from walk(inner, (*keys, key))

    found = list(walk(content, ()))
    default = _default_keys(content)
    if default is not None and not any(one.keys == default for one in found):
        found.insert(0, WeightSet(default, "", tensors_of(at(content, default))))
    return found


def choose(path: Path, content: Any, sets: list[WeightSet], entry: str | None) -> WeightSet:
    """The set that `entry` names; without one what a library opens by its defaults.

    Raises:
        ConfigError: there is no such set, or several could be meant.
        CheckpointError: there is none, or none that is opened by default.
    """
    if entry is not None:
        return _named(path, sets, entry)
    keys = _default_keys(content)
    if keys is None:
        hint = f"; or say which with --entry: {_listed(sets)}" if sets else ""
        raise CheckpointError(f"{path} holds no weights by name: {_what_is_there(content)}{hint}")
    here = [one for one in sets if one.keys == keys]
    return min(here, key=lambda one: ("teacher" in one.prefix, bool(one.prefix)))


def opened_by_default(content: Any, sets: list[WeightSet]) -> WeightSet | None:
    """The set that is taken where nobody says which."""
    keys = _default_keys(content)
    return None if keys is None else choose(Path(), content, sets, None)


def why(chosen: WeightSet) -> tuple[str, bool]:
    """Why a set is taken by default, and whether that is a guess."""
    if chosen.prefix or (chosen.keys and chosen.keys[0] in ("student", "teacher")):
        return "no library says which is meant, and this is the one that is trained", True
    if chosen.keys and chosen.keys[0] in _TIMM:
        return "what timm.load_checkpoint opens by default", False
    return "the entry that usually holds the model", False


def _default_keys(content: Any, depth: int = 0) -> tuple[str, ...] | None:
    if isinstance(content, nn.Module) and content.state_dict():
        return ()
    if held_model(content):
        return ("model",)
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return None
    for name in ENTRIES:
        if (inner := _default_keys(content.get(name), depth + 1)) is not None:
            return (name, *inner)
    tensors = tensors_of(content)
    nested = any("." in key for value in content.values() if isinstance(value, Mapping) for key in tensors_of(value))
    return () if tensors and (not nested or any("." in key for key in tensors)) else None


def _named(path: Path, sets: list[WeightSet], entry: str) -> WeightSet:
    wanted = entry.strip("/.")
    exact = [one for one in sets if entry in (one.name, one.name.rstrip("."))]
    inside = [one for one in sets if wanted and wanted in [part.strip(".") for part in one.name.split("/")]]
    # "state_dict" is the set itself before one that only lies in it.
    found = exact or [one for one in inside if one.name.split("/")[-1].strip(".") == wanted] or inside
    if len(found) == 1:
        return found[0]
    what = f"names {len(found)} sets of weights" if found else "is no set of weights"
    raise ConfigError(f"--entry {short(entry)!r} {what} in {path}: it holds {_listed(found or sets)}")


def _listed(sets: Collection[WeightSet]) -> str:
    names = [short(one.name) for one in sets]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"


def _what_is_there(content: Any) -> str:
    expected = f"expected a state_dict, bare or under {', '.join(ENTRIES)}"
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}; {expected}"
    names = {key if isinstance(key, str) else shown(key): value for key, value in content.items()}
    some = [short(key) for key, value in names.items() if isinstance(value, Mapping) and tensors_of(value)]
    there = (
        f"tensors are under {', '.join(some[:3])}"
        if some
        else f"its entries are {', '.join(short(key) for key in [*names][:5]) or 'none'}"
    )
    return f"{there}; {expected}. Save those alone: torch.save(weights, ...)"


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[._]+|(?<=[a-z])(?=[A-Z])", name) if word]


def _parts(keys: tuple[str, ...], tensors: Mapping[str, Tensor]) -> list[WeightSet]:
    """The sets in one mapping: Lightning keeps an average beside the model, under names of its own."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        parts = key.split(".")[:-1]
        place = next((i for i, part in enumerate(parts) if _COPY & set(_words(part))), None)
        prefix = "" if place is None else ".".join(parts[: place + 1]) + "."
        groups.setdefault(prefix, {})[key] = tensor
    cores = {prefix: _core(prefix, group) for prefix, group in groups.items()}
    copies = [p for p in groups if p and any(_alike(cores[p], cores[q]) for q in groups if q != p)]
    pair = [p for p in groups if {"teacher", "student"} & set(_words(p))]
    copies += [p for p in pair if len(pair) == 2 and p not in copies]
    if not copies:
        return [WeightSet(keys, "", tensors)]
    rest = {key: tensor for p, group in groups.items() if p not in copies for key, tensor in group.items()}
    main = [WeightSet(keys, "", rest)] if any(_alike(_core("", rest), cores[p]) for p in copies) else []
    return [*main, *(WeightSet(keys, prefix, groups[prefix]) for prefix in copies)]


def _core(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names without wrappers and dots (a buffer's name has none, so some averages drop them) -> shapes."""
    names = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    wrapper = prefixes(names)[-1]
    return {
        name.removeprefix(wrapper).replace(".", ""): tuple(tensor.shape)
        for name, tensor in names.items()
        if name.startswith(wrapper) and not name.endswith("num_batches_tracked")
    }


def _alike(a: Mapping[str, tuple[int, ...]], b: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether they are one network: an average may lack the buffers, a model may have a loss's weight beside it."""
    common = sum(a[name] == b.get(name) for name in a)
    sizes = sorted((len(a), len(b)))
    return common > 0 and common >= 0.8 * sizes[0] and common >= 0.3 * sizes[1]
