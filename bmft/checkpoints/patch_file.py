"""A patch as it lies in its file: which values it changes, and how far; without torch."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from bmft._common import read_safetensors, short, shown
from bmft.errors import MismatchError

FORMAT = "1"


class Contents(NamedTuple):
    """What a patch file says beside its tensors: sizes of the tensors it changes, hashes, and how it was made."""

    totals: dict[str, int]
    before_hash: str
    after_hash: str
    recipe: dict[str, Any]


def patch_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `WeightPatch.summary` says of the patch in a file.

    Raises:
        MismatchError: the file is damaged, is no patch, or has a newer format number.
    """
    try:
        metadata, tensors = read_safetensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise MismatchError(f"{path} cannot be read as a patch: {short(error)}") from error
    contents = read_contents(path, metadata, tensors)
    values = {name: (tensors[f"{name}:before"], tensors[f"{name}:after"]) for name in contents.totals}
    return summarise(contents, values)


def recorded_threshold(path: str | os.PathLike[str]) -> tuple[float, str] | None:
    """Where the model that a patch makes decides, and the hash of its weights; None where the patch does not say.

    Raises:
        MismatchError: the file is damaged, is no patch, or has a newer format number.
    """
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise MismatchError(f"{path} cannot be read as a patch: {short(error)}") from error
    contents = read_contents(path, {**metadata, "totals": "{}"}, {})
    found = contents.recipe.get("threshold")
    if found is not None and not (isinstance(found, float) and 0 < found < 1):
        raise MismatchError(f"{path} is a damaged patch: its threshold is {shown(found)}")
    return None if found is None else (found, contents.after_hash)


def read_contents(path: str | os.PathLike[str], metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> Contents:
    """A patch file's metadata, checked against its tensors, which may be arrays or torch's.

    Raises:
        MismatchError: they are of no patch, of a newer one, or do not fit.
    """
    if metadata.get("kind") != "bmft.patch" or metadata.get("format") != FORMAT:
        raise MismatchError(
            f"{path} is {metadata.get('kind', 'no bmft file')}, format {metadata.get('format')}: "
            f"expected a bmft.patch of format {FORMAT}. A newer one needs a newer bmft."
        )
    try:
        totals, recipe = json.loads(metadata["totals"]), json.loads(metadata["recipe"])
        for name, total in totals.items():
            _check(name, total, *(tensors[f"{name}:{part}"] for part in ("index", "before", "after")))
        return Contents(totals, metadata["before_hash"], metadata["after_hash"], dict(recipe))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise MismatchError(f"{path} is a damaged patch: {shown(error, 120)}") from error


def summarise(contents: Contents, values: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, Any]:
    """Counts and norms (``moved``, ``l2_norm``, ``max_abs``), overall and per tensor in ``layers``, and the recipe.

    Args:
        contents: what the file says.
        values: tensor name -> the changed values before and after.
    """
    layers = {}
    for name, (before, after) in values.items():
        delta = after.astype(np.float64) - before.astype(np.float64)
        layers[name] = {
            "moved": len(delta),
            "total": contents.totals[name],
            "l2_norm": float(np.linalg.norm(delta)),
            "max_abs": float(np.abs(delta).max(initial=0.0)),
        }
    return {
        "moved": sum(entry["moved"] for entry in layers.values()),
        "l2_norm": sum(entry["l2_norm"] ** 2 for entry in layers.values()) ** 0.5,
        "max_abs": max((entry["max_abs"] for entry in layers.values()), default=0.0),
        "layers": layers,
        "before_hash": contents.before_hash,
        "after_hash": contents.after_hash,
        "recipe": contents.recipe,
    }


def _check(name: str, total: Any, index: Any, before: Any, after: Any) -> None:
    whole = str(index.dtype).removeprefix("torch.") in ("int32", "int64")
    if not isinstance(total, int) or not whole or before.dtype != after.dtype:
        raise ValueError(f"parts of {name!r} are of other types than a patch's")
    if not (index.shape == before.shape == after.shape and len(index.shape) == 1):
        raise ValueError(f"parts of {name!r} have different lengths")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < total:
        raise ValueError(f"positions of {name!r} lie outside the tensor")
