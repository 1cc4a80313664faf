"""What a network takes beside the image, as a file of weights or the patch beside it records it."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bmft._common import short, with_metadata
from bmft.checkpoints.formats import SAFETENSORS, WeightFile
from bmft.errors import CheckpointError
from bmft.models import state_hash
from bmft.tables import InputColumn

KEY = "bmft_inputs"


def plain_inputs(columns: Sequence[InputColumn]) -> list[dict[str, Any]]:
    """As a recipe or a file has them.

    >>> plain_inputs([InputColumn("age", 62.5, 14.2)])
    [{'name': 'age', 'mean': 62.5, 'std': 14.2, 'names': [], 'codes': []}]
    """
    return [asdict(one) | {"names": list(one.names), "codes": list(one.codes)} for one in columns]


def read_inputs(found: Any, where: object) -> tuple[InputColumn, ...]:
    """The columns of what `plain_inputs` gave, or of its JSON.

    Raises:
        CheckpointError: it is no such thing.
    """
    try:
        entries = json.loads(found) if isinstance(found, str) else found
        return tuple(
            InputColumn(
                str(one["name"]),
                float(one["mean"]),
                float(one["std"]),
                tuple(map(str, one["names"])),
                tuple(map(float, one["codes"])),
            )
            for one in entries
        )
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{where}: its record of the network's inputs is damaged: {short(error)}") from error


def inputs_by_patch(path: Path, state: Mapping[str, Tensor]) -> tuple[InputColumn, ...]:
    """What the patch beside a checkpoint says, if it made these weights: a bare state dict has no room for a record."""
    patch = path.with_name(f"{path.stem}.patch.safetensors")
    try:
        with safe_open(str(patch), framework="pt") as file:
            metadata = file.metadata() or {}
        found = json.loads(metadata.get("recipe", "{}")).get("inputs")
    except (SafetensorError, OSError, ValueError, AttributeError, RecursionError):
        return ()
    return read_inputs(found, patch) if found and metadata.get("after_hash") == state_hash(state) else ()


def with_record(
    file: WeightFile, content: Any, keys: tuple[str, ...], columns: Sequence[InputColumn] | None
) -> tuple[WeightFile, Any]:
    """The file and its content with the record of these columns, where there is room for one; None takes it away."""
    text = None if columns is None else json.dumps(plain_inputs(columns))
    if file.kind == SAFETENSORS and file.folder is None:
        if file.metadata.get(KEY) == text:
            return file, content
        return replace(file, header=with_metadata(file.header, partial(_recorded, text))), content
    if not keys or not isinstance(content, dict) or content.get(KEY) == text:
        return file, content
    content = copy.copy(content)
    content.pop(KEY, None)
    if text is not None:
        content[KEY] = text
    return file, content


def _recorded(text: str | None, metadata: dict[str, str]) -> dict[str, str]:
    """The metadata with that record, at their end, or without one."""
    return {key: value for key, value in metadata.items() if key != KEY} | ({} if text is None else {KEY: text})
