"""Networks built by name, with weights or as outlines that take no memory."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from bmft._common import short
from bmft.errors import ArchitectureError, MissingExtraError
from bmft.models import libraries
from bmft.models.architectures import Entry, index, make_entry, shapes_of
from bmft.models.naming import found_function, no_network, parsed

_LIBRARIES = ("torchvision", "timm")
# What a checkpoint's own word may set of torchvision's: sizes of the input, and parts that are there or not.
_SIZES = {"aux_logits", "image_size", "transform_input"}
# What it may not set of timm's: where else to read from.
_HARMFUL = ("pretrained", "weights", "checkpoint", "cache_dir", "features_only", "scriptable")
# What functions that make networks call the number of outputs.
_OUTPUTS = ("num_classes", "num_outputs", "n_classes", "num_labels", "n_outputs", "out_channels")


def build_model(arch: str, *, num_outputs: int | None = None, settings: Mapping[str, Any] | None = None) -> nn.Module:
    """A network with fresh random weights.

    Args:
        arch: ``torchvision:resnet18``, ``timm:vit_tiny_patch16_224``, either bare (torchvision's, where both
            have the name), ``monai:DenseNet121`` (of images unless ``spatial_dims`` is given),
            ``torchxrayvision:DenseNet``, ``fastai:resnet18``, or ``package.module:factory`` or
            ``path/to/file.py:Class`` of your own. Options may follow, as literals of Python:
            ``timm:vit_tiny_patch16_224,img_size=64,in_chans=1``, ``net.py:Net(2, sizes=(8, 16))``.
        num_outputs: size of the head; the network's own (mostly 1000) if None. A factory gets it as
            `num_classes`, `num_outputs` or the like if it takes one of these, else it is called without.
        settings: what a checkpoint says that its network was made with (Lightning's ``hyper_parameters``): a
            factory gets those of them that it takes, where `arch` says nothing else.

    Raises:
        ArchitectureError: there is no such network, or it cannot be built so.
        MissingExtraError: its library is not installed.

    >>> build_model("torchvision:resnet18", num_outputs=2).fc
    Linear(in_features=512, out_features=2, bias=True)
    """
    named = parsed(arch)
    library, _, rest = named.name.partition(":")
    if not rest:
        if not (known := readings(named.name)):
            every = [*_names("torchvision"), *_names("timm")]
            raise ArchitectureError(no_network(named.name, "torchvision or timm", every))
        library, rest = known[0].split(":")
    if library in _LIBRARIES:
        build = _from_torchvision if library == "torchvision" else _from_timm
        outputs = {} if num_outputs is None else {"num_classes": num_outputs}
        return _called(arch, build(rest), (), {**named.options, **outputs})
    if library in libraries.MAKERS:
        return _called(arch, libraries.maker(library, rest, num_outputs), named.arguments, named.options)
    factory = found_function(named.name)
    options = {**_taken(factory, settings or {}, len(named.arguments)), **named.options}
    size = size_option(factory)
    if size and size not in options and num_outputs is not None:
        options[size] = num_outputs
    return _called(arch, factory, named.arguments, options)


def size_option(factory: Callable[..., Any]) -> str | None:
    """What a factory calls the number of outputs, if it takes it."""
    takes = inspect.signature(factory).parameters
    return next((name for name in _OUTPUTS if name in takes), None)


def needs_size(arch: str) -> bool:
    """Whether the network has a head of its own only where its size is said."""
    named = parsed(arch)
    if named.library in ("", *_LIBRARIES, *libraries.MAKERS):
        return True
    factory = found_function(named.name)
    size = size_option(factory)
    default = inspect.signature(factory).parameters[size].default if size else None
    return size is not None and size not in named.options and default in (None, 0, inspect.Parameter.empty)


def outline(arch: str, *, num_outputs: int | None = None, settings: Mapping[str, Any] | None = None) -> nn.Module:
    """The same as `build_model`, but a library's network has shapes only: its weights take no memory."""
    build = partial(build_model, arch, num_outputs=num_outputs, settings=settings)
    if ":" in arch and arch.partition(":")[0] not in _LIBRARIES:
        return build()
    try:
        with _NoMemory():
            return build()
    except ArchitectureError:
        # A few networks compute with their weights while being built; if that is not it, this raises again.
        return build()


def readings(arch: str, *, trusted: bool = True) -> tuple[str, ...]:
    """What `arch` can mean, with its library: for a bare name torchvision's and timm's, if they have it.

    Args:
        arch: as for `build_model`.
        trusted: False for a name that a file gives: a factory, which would import a module of the file's
            choice, is then no reading, and only harmless options are taken.

    Raises:
        ArchitectureError: the options cannot be read and `arch` is trusted.

    >>> readings("resnet18")[0], readings("os:system", trusted=False)
    ('torchvision:resnet18', ())
    """
    if not trusted and not _harmless(arch):
        return ()
    name = parsed(arch).name
    library, _, rest = name.partition(":")
    if library in libraries.MAKERS:
        return (arch,) if trusted or rest.isidentifier() else ()
    if rest:
        return (arch,) if trusted or rest.split(".")[0] in _names(library) else ()
    known = [library for library in _LIBRARIES if name.split(".")[0] in _names(library)]
    usable = [library for library in known if library != "timm" or find_spec("timm")] or known
    return tuple(f"{library}:{arch}" for library in usable)


def index_entry(arch: str) -> Entry:
    """The network's entry in the index in which `infer_architecture` looks weights up."""
    return make_entry(outline_shapes(arch, 3), outline_shapes(arch, 5))


class _NoMemory(TorchFunctionMode):
    """Inside, weights are made on the meta device, and all else (RegNet computes its widths) as always."""

    _MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._MAKERS and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _taken(factory: Callable[..., Any], settings: Mapping[str, Any], already: int) -> dict[str, Any]:
    """The settings that a factory takes by name; all of them, as Lightning does, where it takes any."""
    takes = list(inspect.signature(factory).parameters.values())[already:]
    kinds = {parameter.kind for parameter in takes}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return dict(settings)
    return {parameter.name: settings[parameter.name] for parameter in takes if parameter.name in settings}


def _called(arch: str, build: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> nn.Module:
    try:
        model = build(*arguments, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, AttributeError) as error:
        given = ", ".join([*map(repr, arguments), *(f"{key}={value!r}" for key, value in options.items())])
        raise ArchitectureError(f"{arch} cannot be built with ({given}): {error}") from error
    except ImportError as error:
        raise MissingExtraError(f"{arch} needs a package that is not installed: {short(error)}") from error
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"{arch} gives a {type(model).__name__}: expected a function that returns a torch.nn.Module"
        )
    return model


def _from_torchvision(name: str) -> Callable[..., nn.Module]:
    if name not in _names("torchvision"):
        raise ArchitectureError(no_network(name, "torchvision", _names("torchvision")))

    def build(**options: Any) -> nn.Module:
        # These two warn unless told how to set weights that are about to be replaced.
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model: nn.Module = torchvision.models.get_model(name, weights=None, **more, **options)
        return model

    return build


def _from_timm(name: str) -> Callable[..., nn.Module]:
    need_timm(name)
    import timm

    # Names such as "hf-hub:user/model" would be fetched.
    if not timm.is_model(name):
        raise ArchitectureError(no_network(name, "timm", timm.list_models()))

    def build(**options: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    return build


def need_timm(name: str) -> None:
    """Raise where timm is not installed, which has this network."""
    if find_spec("timm") is None:
        raise MissingExtraError(f"{name} is a network of timm, which is not installed: pip install 'bmft[timm]'")


def _names(library: str) -> list[str]:
    """The library's networks; timm's from the index, since importing timm to list them takes seconds."""
    if library == "torchvision":
        return list(torchvision.models.list_models(module=torchvision.models))
    return [arch.removeprefix(f"{library}:") for arch in index() if arch.startswith(f"{library}:")]


def _harmless(arch: str) -> bool:
    try:
        name, _, options = parsed(arch)
    except ArchitectureError:
        return False
    if name.startswith("torchvision:") or name in _names("torchvision"):
        return set(options) <= _SIZES and all(isinstance(value, int) for value in options.values())
    return not any(key.startswith(_HARMFUL) for key in options) and all(_is_plain(value) for value in options.values())


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, int | float | str | None)


def outline_shapes(arch: str, num_outputs: int | None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the network."""
    return shapes_of(outline(arch, num_outputs=num_outputs).state_dict())
