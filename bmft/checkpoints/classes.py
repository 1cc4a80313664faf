"""The names of a model's classes in the order of its outputs, where the checkpoint says them."""

import json
import re
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from bmft._common import listed, short
from bmft.checkpoints.checkpoint import Checkpoint
from bmft.errors import CheckpointError
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
_DEPTH, _VISITS = 4, 2_000
_NAMELESS = re.compile(r"label[_ ]?\d+", re.IGNORECASE)  # what Hugging Face writes where nobody named the classes


def class_names(checkpoint: Checkpoint) -> ClassNames | None:
    """What the file says about its classes: under ``class_to_idx``, ``classes``, ``id2label`` and the like.

    A dict of either direction, with numbers or their text, or a list; at the top, among the hyper-parameters or
    further inside; in a safetensors file JSON in its metadata. None where there is no such thing.

    Raises:
        CheckpointError: two places order the same names differently.
    """
    found = list(_named(checkpoint))
    for one in found[1:]:
        if one.names != found[0].names and sorted(one.names) == sorted(found[0].names):
            lines = listed([f"{each.source}: {short(', '.join(each.names))}" for each in (found[0], one)])
            raise CheckpointError(
                f"{checkpoint.path} orders its classes in two ways; say which is meant (--classes A,B,...):\n{lines}"
            )
    return found[0] if found else None


def _named(checkpoint: Checkpoint) -> Iterator[ClassNames]:
    places: deque[tuple[tuple[str, ...], Any]] = deque([((), checkpoint.file.content)])
    places.extend(((key,), _parsed(text)) for key, text in checkpoint.file.metadata.items())
    for _ in range(_VISITS):
        if not places:
            return
        keys, value = places.popleft()
        names = _in_order(value) if keys and keys[-1] in _KEYS else None
        if names is not None:
            yield ClassNames(names, f"the checkpoint's {short('/'.join(keys), 60)}")
        elif len(keys) <= _DEPTH:
            places.extend(((*keys, key), inner) for key, inner in _inside(value))


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        entries: Mapping[Any, Any] = {key: vars(value).get(key) for key in (*_KEYS, "config", "hparams")}
    elif isinstance(value, Namespace):
        entries = vars(value)
    elif isinstance(value, Mapping):
        entries = value
    else:
        # a Hugging Face configuration
        entries = {key: vars(value).get(key) for key in _KEYS} if hasattr(value, "id2label") else {}
    for key, inner in entries.items():
        if isinstance(key, str) and (
            key in _KEYS or isinstance(inner, Mapping | Namespace | nn.Module) or key == "config"
        ):
            yield key, inner


def _in_order(value: Any) -> tuple[str, ...] | None:
    names: list[Any] = list(value) if isinstance(value, list | tuple) else _by_number(value)
    texts = tuple(str(name).strip() for name in names if isinstance(name, str | int) and not isinstance(name, bool))
    usable = len(texts) == len(names) > 1 and len(set(texts)) == len(texts) and all(texts)
    return texts if usable and not all(_NAMELESS.fullmatch(text) for text in texts) else None


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
