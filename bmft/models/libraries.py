"""Networks of libraries that are no dependency, made by name with the defaults that images ask for."""

import inspect
from collections.abc import Callable, Mapping
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


def maker(library: str, name: str, num_outputs: int | None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What makes a library's network from the options that follow its name, and its first arguments.

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
    return partial(make, network, num_outputs), ()


def _monai(network: Callable[..., Any], num_outputs: int | None, **options: Any) -> Any:
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
    return network(**{**given, **options})


def _xrayvision(network: Callable[..., Any], num_outputs: int | None, **options: Any) -> Any:
    import torch

    outputs = {} if num_outputs is None else {"num_classes": num_outputs}
    if options.get("op_threshs") is True:
        options["op_threshs"] = torch.ones(num_outputs or 18)
    return network(**{**outputs, "weights": None, **options})


def _fastai(network: Callable[..., Any], num_outputs: int | None, **options: Any) -> Any:
    from fastai.vision.learner import create_vision_model

    return create_vision_model(network, num_outputs or 2, pretrained=False, **options)
