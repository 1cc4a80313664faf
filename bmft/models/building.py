"""Networks: built by name, recognised by their weights' names and shapes, and looked into (head, blocks)."""

import ast
import inspect
import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from bmft._common import did_you_mean
from bmft.errors import ArchitectureError, MissingExtraError
from bmft.models.architectures import Entry, Shapes, fit_of, index, make_entry, matches, nearest, shapes_of

log = logging.getLogger(__name__)

_LIBRARIES = ("torchvision", "timm")
_FROM_CHECKPOINT = ("pretrained", "weights", "checkpoint_path", "num_classes")
# What a checkpoint's own word may set: sizes of the input, and parts that are there or not.
_HARMLESS = {"aux_logits", "image_size", "img_size", "in_chans", "transform_input"}


def build_model(arch: str, *, num_outputs: int | None = None) -> nn.Module:
    """A network with fresh random weights.

    Args:
        arch: ``torchvision:resnet18``, ``timm:vit_tiny_patch16_224``, either bare (torchvision's, where both
            have the name), or ``package.module:factory``. The library's own options may follow:
            ``timm:vit_tiny_patch16_224,img_size=64,in_chans=1``.
        num_outputs: size of the head; the network's own (mostly 1000) if None. A factory gets it as
            `num_classes` or `num_outputs` if it takes one of these, else it is called without.

    Raises:
        ArchitectureError: there is no such network, or it cannot be built so.
        MissingExtraError: it is timm's, which is not installed.

    >>> build_model("torchvision:resnet18", num_outputs=2).fc
    Linear(in_features=512, out_features=2, bias=True)
    """
    name, options = _parse(arch)
    library, _, rest = name.partition(":")
    if not rest:
        if not (known := readings(name)):
            raise ArchitectureError(_unknown(name, "torchvision or timm", [*_names("torchvision"), *_names("timm")]))
        library, rest = known[0].split(":")
    if library in _LIBRARIES:
        build = _from_torchvision if library == "torchvision" else _from_timm
        return _called(arch, build(rest), {**options, **({} if num_outputs is None else {"num_classes": num_outputs})})
    factory = _factory(name)
    takes = inspect.signature(factory).parameters
    sizes = [key for key in ("num_classes", "num_outputs") if key in takes and num_outputs is not None]
    return _called(arch, factory, {**options, **dict.fromkeys(sizes[:1], num_outputs)})


def outline(arch: str, *, num_outputs: int | None = None) -> nn.Module:
    """The same as `build_model`, but a library's network has shapes only: its weights take no memory."""
    if ":" in arch and arch.partition(":")[0] not in _LIBRARIES:
        return build_model(arch, num_outputs=num_outputs)
    try:
        with _NoMemory():
            return build_model(arch, num_outputs=num_outputs)
    except ArchitectureError:
        # A few networks compute with their weights while being built; if that is not it, this raises again.
        return build_model(arch, num_outputs=num_outputs)


def infer_architecture(shapes: Shapes) -> str:
    """The network that has these weights, whatever its number of outputs.

    Looked up among torchvision's classification networks, then among timm's. Weights do not tell everything:
    torchvision's pre-trained Inception and GoogLeNet also rescale their input (``transform_input=True``).

    Args:
        shapes: name -> shape of every tensor, without a prefix.

    Returns:
        A string for `build_model`.

    Raises:
        ArchitectureError: none has them (the message names the nearest), or several have.
        MissingExtraError: it is timm's, which is not installed.

    >>> infer_architecture(shapes_of(build_model("torchvision:resnet18", num_outputs=7).state_dict()))
    'torchvision:resnet18'
    """
    found = matches(shapes)
    ours = [arch for arch in found if arch.startswith("torchvision:")] or found
    if len(ours) > 1:
        raise ArchitectureError(
            f"{len(ours)} networks have these weights and may compute different things: {', '.join(ours)}. "
            "Say which with --arch."
        )
    if not ours:
        raise ArchitectureError(_nearest_in_words(shapes))
    if ours[0].startswith("timm:"):
        _need_timm(ours[0])
    if "inception_v3" in ours[0] or "googlenet" in ours[0]:
        log.warning(
            "taken as %s; if it was trained from torchvision's own weights, give --arch %s,transform_input=True",
            ours[0],
            ours[0],
        )
    return ours[0]


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
    name, _ = _parse(arch)
    library, _, rest = name.partition(":")
    if rest:
        return (arch,) if trusted or rest.split(".")[0] in _names(library) else ()
    known = [library for library in _LIBRARIES if name.split(".")[0] in _names(library)]
    usable = [library for library in known if library != "timm" or find_spec("timm")] or known
    return tuple(f"{library}:{arch}" for library in usable)


def index_entry(arch: str) -> Entry:
    """The network's entry for the index that `infer_architecture` looks into."""
    return make_entry(_outline_shapes(arch, 3), _outline_shapes(arch, 5))


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


def _parse(arch: str) -> tuple[str, dict[str, Any]]:
    name, *texts = arch.split(",")
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ArchitectureError(f"arch {arch!r}: expected options as in 'timm:vit_tiny_patch16_224,img_size=64'")
        if key in _FROM_CHECKPOINT:
            raise ArchitectureError(f"arch {arch!r}: {key!r} cannot be set, since the weights come from the checkpoint")
        try:
            options[key] = ast.literal_eval(value)
        # What `literal_eval` says of text that is no Python value, or one too deep or odd to hold.
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            options[key] = value
    return name, options


def _called(arch: str, build: Callable[..., Any], options: Mapping[str, Any]) -> nn.Module:
    try:
        model = build(**options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ArchitectureError(f"{arch} cannot be built with ({given}): {error}") from error
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"{arch} gives a {type(model).__name__}: expected a function that returns a torch.nn.Module"
        )
    return model


def _from_torchvision(name: str) -> Callable[..., nn.Module]:
    if name not in _names("torchvision"):
        raise ArchitectureError(_unknown(name, "torchvision", _names("torchvision")))

    def build(**options: Any) -> nn.Module:
        # These two warn unless told how to set weights that are about to be replaced.
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model: nn.Module = torchvision.models.get_model(name, weights=None, **more, **options)
        return model

    return build


def _from_timm(name: str) -> Callable[..., nn.Module]:
    _need_timm(name)
    import timm

    # Names such as "hf-hub:user/model" would be fetched.
    if not timm.is_model(name):
        raise ArchitectureError(_unknown(name, "timm", timm.list_models()))

    def build(**options: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    return build


def _need_timm(name: str) -> None:
    if find_spec("timm") is None:
        raise MissingExtraError(f"{name} is a network of timm, which is not installed: pip install 'bmft[timm]'")


def _names(library: str) -> list[str]:
    """The library's networks; timm's from the index, since importing timm to list them takes seconds."""
    if library == "torchvision":
        return list(torchvision.models.list_models(module=torchvision.models))
    return [arch.removeprefix(f"{library}:") for arch in index() if arch.startswith(f"{library}:")]


def _harmless(arch: str) -> bool:
    try:
        _, options = _parse(arch)
    except ArchitectureError:
        return False
    return set(options) <= _HARMLESS and all(isinstance(value, int) for value in options.values())


def _factory(name: str) -> Callable[..., Any]:
    path, _, attribute = name.partition(":")
    try:
        module = import_module(path)
    except ImportError as error:
        raise ArchitectureError(
            f"{name}: module {path!r} cannot be imported ({error}). Run from the folder that holds it, or install it."
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ArchitectureError(_unknown(attribute, path, dir(module)))
    return factory  # type: ignore[no-any-return]


def _unknown(name: str, where: str, known: list[str]) -> str:
    own = "A network of your own is named package.module:factory."
    return f"{where} has no network {name!r}. {did_you_mean(name, known, own)}"


def _nearest_in_words(shapes: Shapes) -> str:
    usable = [arch for arch in nearest(shapes, 8) if arch.startswith("torchvision:") or find_spec("timm")]
    fits = {arch: fit_of(_outline_shapes(arch, _outputs(arch, shapes)), shapes) for arch in usable[:5]}
    best = sorted(fits, key=lambda arch: fits[arch].distance)[:3]
    near = "; ".join(f"{arch} ({fits[arch].notes})" for arch in best)
    return (
        f"no network of torchvision{' or timm' if find_spec('timm') else ''} has these weights. "
        f"{f'Nearest: {near}. ' if near else ''}Give the network with --arch, such as torchvision:resnet18, "
        "timm:vit_tiny_patch16_224,img_size=64 or your own package.module:factory."
    )


def _outline_shapes(arch: str, num_outputs: int | None) -> dict[str, tuple[int, ...]]:
    return shapes_of(outline(arch, num_outputs=num_outputs).state_dict())


def _outputs(arch: str, shapes: Shapes) -> int | None:
    return next((shapes[name][0] for name in index()[arch].head if shapes.get(name)), None)
