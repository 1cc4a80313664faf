"""MONAI bundles: which file in them holds the weights, and which network their configuration defines."""

import ast
import json
import logging
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bmft._common import shown

log = logging.getLogger(__name__)

_NETWORKS = "monai.networks.nets"
_WEIGHTS = ("models/model.pt", "models/model.pth", "models/model.safetensors")


def bundle_weights(folder: Path) -> str | None:
    """The file of weights in a bundle; None where the folder is none."""
    if not (folder / "configs").is_dir():
        return None
    return next((name for name in _WEIGHTS if (folder / name).is_file()), None)


def bundle_network(folder: Path) -> str | None:
    """The network that the bundle's ``network_def`` defines, as ``--arch`` names it; its expressions are not run.

    None where nothing defines it in plain values.
    """
    for path, said in _configs(folder):
        network = said.get("network_def")
        if not isinstance(network, Mapping):
            continue
        name = str(network.get("_target_", "")).removeprefix(f"{_NETWORKS}.")
        try:
            options = {key: _resolved(value, said) for key, value in network.items() if not key.startswith("_")}
        except ValueError as error:
            log.warning("%s: network_def is not read, since %s; say it with --arch", path, error)
            continue
        if name.isidentifier():
            return ",".join([f"monai:{name}", *(f"{key}={value!r}" for key, value in options.items())])
        log.warning("%s: network_def is %s, which is not MONAI's; name it with --arch", path, shown(name))
    return None


def _configs(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for stem in ("inference", "train", "evaluate"):
        for path in sorted((folder / "configs").glob(f"{stem}.*")):
            try:
                text = path.read_text(encoding="utf-8")
                found = json.loads(text) if path.suffix == ".json" else _yaml(text)
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(found, Mapping):
                yield path, found


def _yaml(text: str) -> Any:
    if find_spec("yaml") is None:
        return None
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _resolved(value: Any, said: Mapping[str, Any], depth: int = 0) -> Any:
    """A plain value, with what ``@name`` refers to in its place.

    Raises:
        ValueError: it is an expression, or refers to one.
    """
    if depth > 8:
        raise ValueError("its references go round in a circle")
    if isinstance(value, Mapping):
        return {key: _resolved(inner, said, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, said, depth + 1) for inner in value]
    if isinstance(value, str) and value.startswith("@"):
        found: Any = said
        for part in value[1:].replace("#", "::").split("::"):
            if not isinstance(found, Mapping) or part not in found:
                raise ValueError(f"{shown(value)} refers to nothing")
            found = found[part]
        return _resolved(found, said, depth + 1)
    if isinstance(value, str) and value.startswith("$"):
        try:
            return ast.literal_eval(value[1:].strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"{shown(value)} is an expression") from None
    return value
