"""Networks of libraries that are no dependency, made by name with the defaults that images ask for."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from bmft.errors import ArchitectureError, MissingExtraError
from bmft.models.naming import no_network

# Library -> the module with its networks.
MAKERS: Mapping[str, str] = {
    "monai": "monai.networks.nets",
    "torchxrayvision": "torchxrayvision.models",
    "fastai": "torchvision.models",
}
# What fastai's tutorials and courses train.
_FASTAI = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "densenet121",
    "vgg16_bn",
    "squeezenet1_1",
    "alexnet",
)


def maker(library: str, name: str, num_outputs: int | None) -> Callable[..., Any]:
    """What makes a library's network from the options that follow its name.

    Raises:
        ArchitectureError: the library has no such network.
        MissingExtraError: it is not installed.
    """
    if find_spec(library) is None:
        raise MissingExtraError(f"{library}:{name} needs {library}, which is not installed: pip install {library}")
    module = import_module(MAKERS[library])
    network = getattr(module, name, None)
    if not callable(network):
        raise ArchitectureError(no_network(name, library, [known for known in dir(module) if known[0] != "_"]))
    make = {"monai": _monai, "torchxrayvision": _xrayvision, "fastai": _fastai}[library]
    return partial(make, network, num_outputs)


def candidates(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Networks of these libraries that the weights' names speak for."""
    if "class_layers.out.weight" in shapes:
        yield from (f"monai:DenseNet{depth}" for depth in (121, 169, 201, 264))
    if any(name.endswith("downsample.0.bias") for name in shapes) and "fc.weight" in shapes:
        yield from (f"monai:resnet{depth}" for depth in (10, 18, 34, 50, 101, 152, 200))
    if "last_linear.weight" in shapes and any(".conv1.conv.weight" in name for name in shapes):
        yield from ("monai:SEResNet50", "monai:SEResNet101", "monai:SEResNet152", "monai:SENet154", "monai:SEResNext50")
        yield "monai:SEResNext101"
    if "_conv_stem.weight" in shapes and any(name.startswith("_blocks.0.0.") for name in shapes):
        yield from (f"monai:EfficientNetBN('efficientnet-b{size}')" for size in range(9))
    if "op_threshs" in shapes:
        yield "torchxrayvision:DenseNet,op_threshs=True"
    if "0.0.weight" in shapes and any(name.startswith("1.") for name in shapes):
        yield from (f"fastai:{name}" for name in _FASTAI)


def _monai(network: Callable[..., Any], num_outputs: int | None, *arguments: Any, **options: Any) -> Any:
    takes = inspect.signature(network).parameters
    # What takes the rest as keywords passes it on to its ResNet or SENet.
    loose = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    size = "out_channels" if "out_channels" in takes else "num_classes"
    channels = "in_channels"
    if "n_input_channels" in takes or network.__module__.endswith(".resnet"):
        channels = "n_input_channels"
    defaults = {"spatial_dims": 2, channels: 3, "pretrained": False, "classification": True}
    if num_outputs is not None:
        options.setdefault(size, num_outputs)
    if channels == "n_input_channels" and "in_channels" in options:
        options[channels] = options.pop("in_channels")
    given = {
        key: value for key, value in defaults.items() if key in takes or (loose and key in ("spatial_dims", channels))
    }
    return network(*arguments, **{**given, **options})


def _xrayvision(network: Callable[..., Any], num_outputs: int | None, *arguments: Any, **options: Any) -> Any:
    import torch

    outputs = {} if num_outputs is None else {"num_classes": num_outputs}
    if options.get("op_threshs") is True:
        options["op_threshs"] = torch.ones(num_outputs or 18)
    return network(*arguments, **{**outputs, "weights": None, **options})


def _fastai(network: Callable[..., Any], num_outputs: int | None, *arguments: Any, **options: Any) -> Any:
    from fastai.vision.learner import create_vision_model

    return create_vision_model(network, num_outputs or 2, *arguments, pretrained=False, **options)
