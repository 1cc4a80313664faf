"""Folders that hold a model: which files its weights are in, and the same folder again with others in their place."""

import copy
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bmft._common import short
from bmft.checkpoints.bundles import bundle_network, bundle_weights
from bmft.checkpoints.formats import Folder, WeightFile, read_file, write_file
from bmft.checkpoints.huggingface import adapted, classifier_of, config_of, is_transformers
from bmft.checkpoints.layout import in_precision, tensors_of
from bmft.errors import CheckpointError

log = logging.getLogger(__name__)

HUGGING_FACE, FOLDER = "Hugging Face folder", "folder"
# In the order in which the libraries look.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pt2",
    ".ts",
    ".trt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".index.json",
)
_NO_MODEL = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "random_states", "adapter_model")


def read_weights(path: Path, *, trust_pickle: bool = False) -> WeightFile:
    """What a file of weights, or a folder with them, holds; see `bmft.checkpoints.formats.read_file`.

    Raises:
        CheckpointError: a folder holds no weights, or several that could be meant.
        MissingExtraError: it is a folder of a library that is not installed.
    """
    if not path.is_dir():
        return read_file(path, trust_pickle=trust_pickle)
    if (path / "adapter_config.json").exists():
        base, adapter = adapted(path)
        file = read_weights(base)
        if file.folder is None or file.kind != HUGGING_FACE:
            raise CheckpointError(f"{path} adapts {base}, which is no folder that transformers wrote")
        return replace(file, content=adapter(file.content), content_hash=_hash_of(path, [file.content_hash]))
    said = config_of(path)
    if bundle_weights(path) is not None and (network := bundle_network(path)) is not None:
        said = {**said, "arch": network}
    parts = {name: read_file(path / name, trust_pickle=trust_pickle) for name in _files(path)}
    content_hash = _hash_of(path, [part.content_hash for part in parts.values()])
    stale = tuple(name for name in _others(path) if name not in parts)
    weights = {key: tensor for part in parts.values() for key, tensor in tensors_of(part.content).items()}
    if is_transformers(said):
        model, names = classifier_of(path, weights)
        return WeightFile(HUGGING_FACE, model, content_hash, folder=Folder(path, parts, names, stale, said))
    if len(parts) == 1:
        (part,) = parts.values()
        metadata = {**part.metadata, "config.json": json.dumps(said)} if said else part.metadata
        return WeightFile(FOLDER, part.content, content_hash, metadata, folder=Folder(path, parts, None, stale, said))
    return WeightFile(FOLDER, weights, content_hash, folder=Folder(path, parts, {key: key for key in weights}, stale))


def write_weights(file: WeightFile, content: Any, path: Path) -> None:
    """Write `content` as the file, or the folder with everything else in it, that `file` was.

    It appears whole or not at all; a folder that is there already is replaced if it is one that this made.

    Raises:
        CheckpointError: it cannot be written there.
    """
    if file.folder is None:
        write_file(file, content, path)
        return
    folder = file.folder
    check_place(folder.path, path)
    for name in folder.stale:
        log.warning("%s: %s is left out, since it holds the weights as they were", path, name)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    left_out = {*folder.stale, *folder.parts}
    try:
        shutil.copytree(folder.path, temporary, ignore=lambda at, names: _within(folder.path, at, names, left_out))
        for name, part in folder.parts.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(part, _refilled(part, content, folder.names), temporary / name)
        if path.exists():
            old = path.with_name(f".{secrets.token_hex(8)}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except (OSError, shutil.Error) as error:
        raise CheckpointError(f"{path} cannot be written: {short(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(folder: Path, target: Path) -> None:
    """Refuse to write a folder where something else is; what was written there from this folder may be replaced.

    Raises:
        CheckpointError: something else is there, or it is the folder itself or in it.
    """
    if folder.resolve() in (target.resolve(), *target.resolve().parents):
        raise CheckpointError(f"{target} is in {folder}, the folder that is read: write it elsewhere")
    if target.exists() and not (target.is_dir() and _inside(target) <= _inside(folder)):
        raise CheckpointError(f"{target} is there already and is no copy of {folder}: name another, or remove it")


def _inside(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _files(folder: Path) -> list[str]:
    """The files that hold the model, as the libraries choose."""
    if (inside := bundle_weights(folder)) is not None:
        return [inside]
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [name]
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder, f"{name}.index.json")
    found = [
        name
        for name in sorted(p.name for p in folder.iterdir() if p.is_file())
        if name.endswith(_SUFFIXES[:5]) and not name.startswith(_NO_MODEL)
    ]
    if len(found) == 1:
        return found
    if found:
        raise CheckpointError(
            f"{folder} holds {len(found)} files of weights ({', '.join(found[:5])}): name the one that is meant"
        )
    names = sorted(p.name for p in folder.iterdir())
    if steps := [name for name in names if name.startswith("checkpoint-")]:
        raise CheckpointError(f"{folder} holds {len(steps)} checkpoints ({', '.join(steps[:5])}): name the one meant")
    raise CheckpointError(
        f"{folder} is a folder without weights: expected model.safetensors, pytorch_model.bin or one file of weights; "
        f"it holds {', '.join(names[:5]) or 'nothing'}"
    )


def _shards(folder: Path, index: str) -> list[str]:
    try:
        places = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(map(str, places)))
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / index} is damaged: {short(error)}") from error
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{folder / index} names {short(name)!r}, which is outside the folder: refused")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}, one of {len(names)} shards, is missing: copy the whole folder")
    return names


def _others(folder: Path) -> list[str]:
    """Files beside the chosen ones that hold the same network's weights under the names libraries give them."""
    stems = ("model.", "model-", "pytorch_model", "tf_model", "flax_model", "open_clip_", "consolidated")
    found = [p for p in folder.rglob("*") if p.is_file() and p.name.endswith(_SUFFIXES)]
    return sorted(
        p.relative_to(folder).as_posix()
        for p in found
        if (p.name.startswith(stems) or p.suffix == ".onnx")
        and not (p.name.endswith(".index.json") and p.name.removesuffix(".index.json") in WEIGHTS)
        and not any(part.startswith("checkpoint-") for part in p.relative_to(folder).parts)
    )


def _within(root: Path, at: str, names: list[str], left_out: set[str]) -> list[str]:
    return [name for name in names if (Path(at) / name).relative_to(root).as_posix() in left_out]


def _refilled(part: WeightFile, content: Any, names: Mapping[str, str] | None) -> Any:
    if names is None:
        return content
    new = tensors_of(content)
    back = {key: name for name, key in names.items() if name in new}
    filled: dict[str, Tensor] = {
        key: in_precision(key, new[back[key]].detach().cpu(), old) if key in back else old
        for key, old in tensors_of(part.content).items()
    }
    whole = copy.copy(part.content)
    whole.update(filled)
    return whole


def _hash_of(folder: Path, parts: list[str]) -> str:
    """One for all files of weights; of a single one its own."""
    more = [_file_hash(p) for p in sorted(folder.glob("adapter_model*"))]
    every = [*parts, *more]
    return every[0] if len(every) == 1 else hashlib.sha256("".join(every).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
