"""The names of a model's classes, and of its outputs, in the order of its outputs, where the checkpoint says them."""

import json
import re
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from bmft._common import listed, short
from bmft.checkpoints.checkpoint import Checkpoint
from bmft.checkpoints.folders import WEIGHTS
from bmft.checkpoints.layout import held_model
from bmft.errors import CheckpointError
from bmft.models import Kind, OutputNames, kind_of_problem
from bmft.tables import ClassNames

_KEYS = (
    "class_to_idx",
    "idx_to_class",
    "class_names",
    "classes",
    "id2label",
    "label2id",
    "label_names",
    "idx2label",
    "label_to_idx",
    "idx_to_label",
    "class2idx",
    "idx2class",
)
_OUTPUTS = ("pathologies", "findings", "targets", *_KEYS)
# One class a picture, as folders of pictures have them.
_CLASSES = ("class_to_idx", "idx_to_class", "class2idx", "idx2class")
_DEPTH, _VISITS = 4, 2_000
_NAMELESS = re.compile(r"label[_ ]?\d+", re.IGNORECASE)  # what Hugging Face writes where nobody named the classes


def class_names(checkpoint: Checkpoint) -> ClassNames | None:
    """What the file says about its classes: under ``class_to_idx``, ``classes``, ``id2label`` and the like.

    A dict of either direction, with numbers or their text, or a list; at the top, among the hyper-parameters or
    further inside; in a safetensors file JSON in its metadata, or the ``config.json`` beside a file that is called as
    Hugging Face's libraries call it. Lists as long as the model has outputs go first. None where there is no such
    thing.

    Raises:
        CheckpointError: two places order the same names differently.
    """
    found = [ClassNames(names, _source(keys)) for keys, names in _named(checkpoint, _KEYS, _in_order)]
    sizes = {len(tensor) for tensor in checkpoint.state.values() if tensor.dim()}
    fitting = [one for one in found if len(one.names) in sizes or (len(one.names) == 2 and 1 in sizes)]
    found = fitting or found
    for one in found[1:]:
        if one.names != found[0].names and sorted(one.names) == sorted(found[0].names):
            lines = listed([f"{each.source}: {short(', '.join(each.names))}" for each in (found[0], one)])
            raise CheckpointError(
                f"{checkpoint.path} orders its classes in two ways; say which is meant (--classes A,B,...):\n{lines}"
            )
    return found[0] if found else None


def output_names(checkpoint: Checkpoint) -> OutputNames:
    """What the file says its model's outputs are called: under ``pathologies``, or where `class_names` looks.

    Names of which some are empty or twice there are names, too. Where two places order the same names differently, or
    there are none, no output has one.
    """
    found = [(keys[-1], keys, names) for keys, names in _named(checkpoint, _OUTPUTS, _as_they_are)]
    if not found:
        return OutputNames()
    key, keys, names = min(found, key=lambda one: (_OUTPUTS.index(one[0]) > 2, len(one[1])))
    for _, others, other in found:
        if other != names and sorted(other) == sorted(names):
            return OutputNames((), f"{_source(keys)} and {_source(others)} have the same names in different orders")
    problem = next((value for _, value in _named(checkpoint, ("problem_type",), lambda value: value)), None)
    kind: Kind | None = "label" if key == "pathologies" else "class" if key in _CLASSES else kind_of_problem(problem)
    return OutputNames(names, _source(keys), kind)


def _source(keys: tuple[str, ...]) -> str:
    return f"the checkpoint's {short('/'.join(keys), 60)}"


Found = TypeVar("Found")


def _named(
    checkpoint: Checkpoint, wanted: tuple[str, ...], read: Callable[[Any], Found | None]
) -> Iterator[tuple[tuple[str, ...], Found]]:
    """Where one of the `wanted` keys is, and what is read there, unless that is None."""
    places: deque[tuple[tuple[str, ...], Any]] = deque([((), checkpoint.file.content)])
    places.extend(((key,), _parsed(text)) for key, text in checkpoint.file.metadata.items())
    beside = Path(checkpoint.path).with_name("config.json")
    if Path(checkpoint.path).name in WEIGHTS and beside.is_file():
        places.append((("config.json",), _parsed(beside.read_text(encoding="utf-8", errors="replace"))))
    for _ in range(_VISITS):
        if not places:
            return
        keys, value = places.popleft()
        found = read(value) if keys and keys[-1] in wanted else None
        if found is not None:
            yield keys, found
        elif len(keys) <= _DEPTH:
            places.extend(((*keys, key), inner) for key, inner in _inside(value, wanted))


def _inside(value: Any, wanted: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        entries: Mapping[Any, Any] = {key: vars(value).get(key) for key in (*wanted, "config", "hparams")}
        if "classes" in wanted:
            # Ultralytics and torchxrayvision
            entries = {**entries, "classes": vars(value).get("names"), "class_names": vars(value).get("targets")}
    elif held_model(value):
        # fastai
        entries = {"classes": list(getattr(getattr(value, "dls", None), "vocab", ()))}
    elif isinstance(value, Namespace):
        entries = vars(value)
    elif isinstance(value, Mapping):
        entries = value
    else:
        # a Hugging Face configuration
        entries = {key: vars(value).get(key) for key in wanted} if hasattr(value, "id2label") else {}
    for key, inner in entries.items():
        if isinstance(key, str) and (
            key in wanted or isinstance(inner, Mapping | Namespace | nn.Module) or key == "config"
        ):
            yield key, inner


def _in_order(value: Any) -> tuple[str, ...] | None:
    names: list[Any] = list(value) if isinstance(value, list | tuple | np.ndarray) else _by_number(value)
    texts = tuple(str(name).strip() for name in names if isinstance(name, str | int) and not isinstance(name, bool))
    usable = len(texts) == len(names) > 1 and len(set(texts)) == len(texts) and all(texts)
    return texts if usable and not all(_NAMELESS.fullmatch(text) for text in texts) else None


def _as_they_are(value: Any) -> tuple[str, ...] | None:
    """The names of all outputs; "" for one that has none."""
    names: list[Any] = list(value) if isinstance(value, list | tuple | np.ndarray) else _by_number(value)
    if len(names) < 2 or not all(name is None or isinstance(name, str) for name in names):
        return None
    texts = tuple("" if name is None or _NAMELESS.fullmatch(name.strip()) else name.strip() for name in names)
    return texts if any(texts) else None


def _by_number(value: Any) -> list[Any]:
    if not isinstance(value, Mapping):
        return []
    for pairs in (list(value.items()), [(name, number) for number, name in value.items()]):
        numbered = {int(number): name for name, number in pairs if _is_number(number)}
        if len(numbered) == len(value) and set(numbered) == set(range(len(value))):
            return [numbered[number] for number in range(len(value))]
    return []


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit() and len(value) < 10
    return isinstance(value, int) and not isinstance(value, bool)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
