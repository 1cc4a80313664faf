"""Folders that transformers' `save_pretrained` writes: read by its own loader, which knows its weights' old names."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmft._common import shown
from bmft.errors import CheckpointError, MissingExtraError

# What the name of a class says that it makes, where that is no classes of images.
_OTHERS = {
    "Segmentation": "segments images",
    "ObjectDetection": "detects objects",
    "KeypointDetection": "finds keypoints",
    "DepthEstimation": "estimates depth",
    "MaskedImageModeling": "restores masked images",
    "PreTraining": "is pre-trained and has no classifier",
    "ImageToImage": "makes images",
    "ImageSuperResolution": "makes images",
    "VideoClassification": "classifies videos",
    "Conditional": "generates text",
    "CausalLM": "generates text",
    "SequenceClassification": "classifies text",
    "AudioClassification": "classifies sound",
    "Model": "has no classifier",
}


def classifier_of(folder: Path, weights: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, str]]:
    """The folder's classifier in the precision it is kept in, and where each of its weights came from.

    Args:
        folder: with a ``config.json`` of transformers.
        weights: everything in its files, by the names there.

    Returns:
        The model in evaluation mode, and its names -> those of `weights`.

    Raises:
        CheckpointError: it is no classifier of images, or its weights are not complete.
        MissingExtraError: transformers is not installed.
    """
    said = config_of(folder)
    _check_kind(folder, said)
    if find_spec("transformers") is None:
        raise MissingExtraError(
            f"{folder} is a folder of transformers, which is not installed: pip install 'bmft[transformers]'"
        )
    with _quietly(folder):
        from transformers import AutoModelForImageClassification

        model, found = AutoModelForImageClassification.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
        _check_complete(folder, found)
        names = _sources(model, weights)
    missing = [name for name in model.state_dict() if name not in names]
    if missing:
        raise CheckpointError(
            f"{folder}: transformers puts several weights of the file together into {shown(missing[0])}, which cannot "
            "be taken apart again"
        )
    return model.eval(), names


def config_of(folder: Path) -> Mapping[str, Any]:
    """The folder's ``config.json``; empty where there is none.

    Raises:
        CheckpointError: it is no JSON object.
    """
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} holds a {type(found).__name__}: expected the settings of a model")
    return found


def is_transformers(said: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one that transformers wrote."""
    return isinstance(said.get("model_type"), str) or isinstance(said.get("architectures"), list)


def _check_kind(folder: Path, said: Mapping[str, Any]) -> None:
    names = [str(name) for name in said.get("architectures") or []]
    name = names[0] if names else ""
    does = next((does for part, does in _OTHERS.items() if part in name), None)
    if "ForImageClassification" not in name and does is not None:
        raise CheckpointError(
            f"{folder} is a {name}, which {does}: expected a classifier of images, such as a ViTForImageClassification"
        )
    if "auto_map" in said:
        raise CheckpointError(
            f"{folder} needs code of its own (auto_map in config.json), which is not run: build the network yourself "
            "and give it with --arch package.module:factory and the file of weights in the folder"
        )
    if "quantization_config" in said:
        raise CheckpointError(f"{folder} holds quantized weights, which cannot be tuned: take those before quantizing")
    if said.get("problem_type") == "regression":
        raise CheckpointError(f"{folder} is a regression (problem_type in config.json): expected a classifier")


def _check_complete(folder: Path, found: Mapping[str, Any]) -> None:
    for key, what in (("missing_keys", "are not in the folder"), ("mismatched_keys", "have another shape there")):
        if names := sorted(str(name) for name in found.get(key) or ()):
            raise CheckpointError(
                f"{folder}: {len(names)} weights of its network {what} (first: {names[0]}): transformers would make "
                "them up. Save the whole classifier: model.save_pretrained(...)"
            )
    if errors := found.get("error_msgs"):
        raise CheckpointError(f"{folder}: {shown(errors[0], 200)}")


def _sources(model: Any, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The model's names -> the file's: the library's own loader is given numbers that tell whence each came."""
    keys = list(weights)
    tags = {
        key: torch.full(weights[key].shape, place, dtype=torch.float32 if weights[key].is_floating_point() else None)
        for place, key in enumerate(keys, 1)
    }
    tagged = type(model).from_pretrained(None, config=model.config, state_dict=tags, dtype=torch.float32)
    found = {}
    for name, tensor in tagged.state_dict().items():
        low, high = (int(value) for value in (tensor.min(), tensor.max()))
        if low == high and 1 <= low <= len(keys) and weights[keys[low - 1]].shape == tensor.shape:
            found[name] = keys[low - 1]
    return found


@contextmanager
def _quietly(folder: Path) -> Iterator[None]:
    """Inside, transformers neither draws bars nor remarks; what it raises is about the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as theirs

        level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
        theirs.set_verbosity(logging.CRITICAL)
        theirs.disable_progress_bar()
        try:
            yield
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError, TypeError) as error:
            raise CheckpointError(f"{folder} cannot be loaded by transformers: {shown(error, 200)}") from error
        finally:
            theirs.set_verbosity(level)
            if bars:
                theirs.enable_progress_bar()


def adapted(folder: Path) -> tuple[Path, Callable[[nn.Module], nn.Module]]:
    """The local folder of the model that a PEFT adapter was trained on, and what merges the adapter into it.

    Raises:
        CheckpointError: the adapted model is not on this machine.
        MissingExtraError: peft is not installed.
    """
    path = folder / "adapter_config.json"
    try:
        name = str(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {shown(error, 120)}") from error
    base = next((place for place in (Path(name), folder / name) if place.is_dir()), None)
    if base is None:
        raise CheckpointError(
            f"{folder} is an adapter of {shown(name)}, which is no folder here. Merge it where that is: "
            "PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)"
        )
    if find_spec("peft") is None:
        raise MissingExtraError(f"{folder} is an adapter of peft, which is not installed: pip install 'bmft[lora]'")

    def merged(model: nn.Module) -> nn.Module:
        with _quietly(folder):
            from peft import PeftModel

            whole: nn.Module = PeftModel.from_pretrained(model, folder, local_files_only=True).merge_and_unload()
        for parameter in whole.parameters():
            parameter.requires_grad_(True)
        return whole.eval()

    return base, merged
