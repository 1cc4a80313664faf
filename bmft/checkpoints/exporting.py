"""A checkpoint in other forms: ONNX, and a folder that the Hugging Face hub takes as it is."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bmft._common import put, short
from bmft.checkpoints.checkpoint import Checkpoint
from bmft.checkpoints.classes import output_names
from bmft.checkpoints.inputs import KEY
from bmft.data import drawn_columns, input_names
from bmft.errors import ArchitectureError, ConfigError, MismatchError, MissingExtraError
from bmft.models import evaluating, forward_logits, not_its_inputs
from bmft.tables import InputColumn

TOLERANCE = 1e-4
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
# What torch raises of a network that it cannot trace; its own errors are RuntimeErrors.
_UNTRACEABLE = (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError)


class _Logits(nn.Module):
    """The model with the part of its answer that is meant as its only output, and inputs one after the other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return forward_logits(self.model, inputs)


def write_onnx(
    model: nn.Module, shape: tuple[int, int, int], path: str | Path, columns: Sequence[InputColumn] = ()
) -> float:
    """Write a model as ONNX (``image`` -> ``logits``, any number of images) and check it against onnxruntime.

    Of a model that takes `columns` beside the image the further inputs are called ``numbers`` and as each category is
    (`bmft.data.input_names`).

    Args:
        model: any classifier; it is run in evaluation mode and left as it was.
        shape: channels, height and width of an image as the model takes it, normalized.
        path: the file, written whole or not at all.
        columns: what the model takes beside the image.

    Returns:
        The largest difference between both models' logits of images of noise.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ArchitectureError: torch cannot export this network.
        MismatchError: the two differ by more than 1e-4; no file is written.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise MissingExtraError(f"ONNX needs {' and '.join(missing)}: pip install 'bmft[onnx]'")
    import onnxruntime

    drawn = torch.Generator().manual_seed(0)
    names = input_names(columns)
    inputs = [(torch.randn(n, *shape, generator=drawn), *drawn_columns(columns, n, drawn)) for n in (2, 5)]
    if problem := not_its_inputs(model, inputs[0]):
        raise ArchitectureError(problem)
    with tempfile.TemporaryDirectory() as folder, evaluating(model), torch.no_grad(), warnings.catch_warnings():
        # Several inputs have one batch, which torch remarks on.
        warnings.filterwarnings("ignore", "# The axis name: batch", UserWarning)
        file, network = Path(folder, "model.onnx"), _Logits(model).eval()
        batch_size = torch.export.Dim("batch")
        try:
            torch.onnx.export(
                network,
                inputs[0],
                str(file),
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(tuple({0: batch_size} for _ in names),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except _UNTRACEABLE as error:
            raise ArchitectureError(f"torch cannot export {type(model).__name__} to ONNX: {short(error)}") from error
        content = file.read_bytes()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        differences = [
            float((torch.from_numpy(session.run(None, _fed(names, batch))[0]) - network(*batch)).abs().max())
            for batch in inputs
        ]
    # Written so that NaN is no agreement.
    if not max(differences) <= TOLERANCE:
        raise MismatchError(
            f"onnxruntime's logits differ from torch's by {max(differences):.2g}, more than {TOLERANCE:g}: {path} is "
            "not written"
        )
    put(content, path)
    return max(differences)


def _fed(names: Sequence[str], batch: Sequence[Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)}


def write_hub_folder(
    checkpoint: Checkpoint, found: dict[str, Any], folder: str | Path, *, report: str | Path
) -> list[Path]:
    """Write a folder that ``huggingface_hub.upload_folder`` takes as it is: weights, config, model card and report.

    A folder that transformers wrote stays one; of other checkpoints the weights become ``model.safetensors``, and
    ``config.json`` says what they are (for a timm network, so that timm loads the folder).

    Args:
        checkpoint: from `read_checkpoint`.
        found: what `describe` says of it.
        folder: made if absent.
        report: the folder that ``debias --report`` or ``audit --report`` wrote; its ``report.md`` is the model card.

    Raises:
        ConfigError: there is no report in that folder, or `folder` is not empty.
    """
    folder, report = Path(folder), Path(report)
    if not (report / "report.md").is_file():
        raise ConfigError(f"{report}: no report.md in it; --report names the folder that bmft debias --report wrote.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already and not empty; name a new folder.")
    if checkpoint.path.is_dir():
        shutil.copytree(checkpoint.path, folder, dirs_exist_ok=True)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        # Tied weights share memory, which safetensors refuses.
        own = {name: tensor.clone().contiguous() for name, tensor in checkpoint.state.items()}
        columns = found.get("inputs")
        put(save(own, {KEY: json.dumps(columns)} if columns else None), folder / "model.safetensors")
        put(json.dumps(_config(checkpoint, found), indent=2) + "\n", folder / "config.json")
    for source, name in (("report.md", "README.md"), ("report.html", "report.html"), ("report.json", "report.json")):
        if (report / source).is_file():
            put((report / source).read_bytes(), folder / name)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _config(checkpoint: Checkpoint, found: dict[str, Any]) -> dict[str, Any]:
    """What the weights are, and for timm in the words that it reads."""
    pixels, names = checkpoint.pixels[0], list(output_names(checkpoint).names)
    library, _, name = str(found["arch"]).partition(":")
    said: dict[str, Any] = {"architecture": found["arch"], "num_classes": found["head"]["num_outputs"]}
    if library == "timm":
        said = {"architecture": name.partition(",")[0], "num_classes": said["num_classes"]}
    if columns := found.get("inputs"):
        said["inputs"] = columns
    if any(names):
        said["label_names"] = names
    if pixels is not None:
        said["pixels"] = {key: str(value) for key, value in pixels.words().items()}
    return said
