"""A network made to fit some weights: other sizes of image, other channels, a head that was replaced."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bmft._common import Assumption
from bmft.errors import ArchitectureError
from bmft.models.architectures import Fit, Shapes, fit_of, shapes_of
from bmft.models.building import build_model, needs_size, outline
from bmft.models.head import find_head
from bmft.models.naming import parsed, spelled

_SIZE_OPTIONS = {"timm": "img_size", "torchvision": "image_size"}
_CHANNEL_OPTIONS = {"timm": "in_chans", "monai": "in_channels", "torchxrayvision": "in_channels"}
_USUAL_SIZES = (224, 384, 256, 192, 128, 64, 32, 96, 112, 160, 288, 320, 336, 448, 512, 518)


@dataclass(frozen=True)
class Fitted:
    """A network, and how well some weights fit it.

    Attributes:
        arch: its name, with the options that the weights' shapes ask for.
        outputs: size of its head, if the weights tell.
        fit: what of the weights does not fit.
        assumed: what no shape tells, such as the activations of a head that was replaced.
        settings: what the checkpoint says that it was made with.
        weights: shapes of the weights under the network's names.
    """

    arch: str
    outputs: int | None
    fit: Fit
    assumed: tuple[Assumption, ...]
    settings: Mapping[str, Any]
    weights: Shapes

    def build(self) -> nn.Module:
        """The network itself, with fresh weights."""
        model = build_model(self.arch, num_outputs=self.outputs, settings=self.settings)
        reshape(model, self.weights)
        return model


def fitted(arch: str, weights: Callable[[Iterable[str]], Shapes], settings: Mapping[str, Any] | None = None) -> Fitted:
    """The network of that name, with the head, the channels and the size of image that the weights have.

    Args:
        arch: see `bmft.models.build_model`.
        weights: a network's names -> the shapes of the weights, with those names as far as they are the same.
        settings: see `bmft.models.build_model`.

    Raises:
        ArchitectureError: it cannot be built.

    >>> shapes = shapes_of(build_model("torchvision:resnet18", num_outputs=3).state_dict())
    >>> fitted("torchvision:resnet18", lambda names: {**shapes, "conv1.weight": (64, 1, 7, 7)}).fit.distance
    0
    """
    settings = settings or {}
    network = outline(arch, num_outputs=2 if needs_size(arch) else None, settings=settings)
    shapes = weights(network.state_dict())
    head = find_head(network)
    outputs = next((shapes[name][0] for name in head.parameters if shapes.get(name)), None)
    best: Fitted | None = None
    for more in _options(arch, network, shapes):
        name = spelled(parsed(arch), more) if more else arch
        try:
            network = outline(name, num_outputs=outputs, settings=settings)
        except ArchitectureError:
            if not more:
                raise
            continue
        assumed = reshape(network, shapes)
        size = find_head(network).num_outputs if assumed or outputs is None else outputs
        found = Fitted(name, size, compare(network, shapes), assumed, settings, shapes)
        if best is None or found.fit.distance < best.fit.distance:
            best = found
        if not best.fit.distance:
            break
    if best is None:
        raise ArchitectureError(f"{arch} cannot be built")
    return best


def compare(model: nn.Module, shapes: Shapes) -> Fit:
    """How far the weights are the model's; of weights that are one in the model, one is enough."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name for group in names.values() if any(name in shapes for name in group) for name in group}
    wanted = shapes_of(model.state_dict())
    return fit_of({n: s for n, s in wanted.items() if n in shapes or n not in tied}, shapes)


def reshape(model: nn.Module, shapes: Shapes) -> tuple[Assumption, ...]:
    """Change `model`: give it the first convolution and the head that the weights have, where that is all they lack.

    Returns:
        What of it leaves no trace in the weights.
    """
    _reshape_stem(model, shapes)
    return _reshape_head(model, shapes)


def _options(arch: str, network: nn.Module, shapes: Shapes) -> Iterator[dict[str, Any]]:
    """Options of the library that the weights' shapes may ask for, none of them first."""
    yield {}
    named = parsed(arch)
    library = named.library or ("timm" if hasattr(network, "pretrained_cfg") else "torchvision")
    more: dict[str, Any] = {}
    stem = _stem(network)
    channels = shapes.get(f"{stem[0]}.weight", ())[1:2] if stem else ()
    own_channels = _CHANNEL_OPTIONS.get(library, "")
    if own_channels and stem and channels not in ((), (stem[1].in_channels,)) and own_channels not in named.options:
        more[own_channels] = channels[0]
        yield dict(more)
    option = _SIZE_OPTIONS.get(library)
    own = shapes_of(network.state_dict())
    others = [
        name
        for name in own
        if shapes.get(name, own[name]) != own[name] and not name.startswith(stem[0] if stem else "?")
    ]
    if option is None or option in named.options or not others:
        return
    for size in dict.fromkeys([*_sizes(network, own, shapes), *_USUAL_SIZES]):
        yield {**more, option: size}


def _sizes(network: nn.Module, own: Shapes, shapes: Shapes) -> Iterator[int]:
    """Sizes of image whose grid of patches has as many places as the weights have positions."""
    for name, was in own.items():
        now = shapes.get(name, ())
        if "pos_embed" in name and len(was) == len(now) == 3 and was != now:
            image = _image_size(network)
            for prefix in dict.fromkeys([getattr(network, "num_prefix_tokens", 1), 0, 1, 2]):
                if was[1] > prefix < now[1] and image:
                    yield round(image * ((now[1] - prefix) / (was[1] - prefix)) ** 0.5)


def _image_size(network: nn.Module) -> int:
    size: Any = getattr(getattr(network, "patch_embed", None), "img_size", None) or getattr(network, "image_size", 0)
    return int(size[0] if isinstance(size, tuple | list) else size)


def _stem(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    return next(((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)


def _reshape_stem(model: nn.Module, shapes: Shapes) -> None:
    stem = _stem(model)
    if stem is None:
        return
    path, layer = stem
    wanted, own = shapes.get(f"{path}.weight", ()), tuple(layer.weight.shape)
    if (
        len(wanted) == 4
        and layer.groups == 1
        and wanted[1] != own[1]
        and (wanted[0], *wanted[2:]) == (own[0], *own[2:])
    ):
        layer.in_channels = wanted[1]
        layer.weight = nn.Parameter(layer.weight.new_empty(wanted))


def _reshape_head(model: nn.Module, shapes: Shapes) -> tuple[Assumption, ...]:
    fit = compare(model, shapes)
    odd = [*fit.missing, *fit.unexpected, *fit.reshaped]
    if not fit.distance or next(model.children(), None) is None:
        return ()
    path = find_head(model).name
    while path and not all(name.startswith(f"{path}.") for name in odd):
        path = path.rpartition(".")[0]
    if not path or not isinstance(model.get_submodule(path), nn.Linear | nn.Sequential):
        return ()
    inside = {name.removeprefix(f"{path}."): shape for name, shape in shapes.items() if name.startswith(f"{path}.")}
    head, activations = _head_of(inside)
    if head is None:
        return ()
    model.set_submodule(path, head)
    if isinstance(head, nn.Linear):
        return ()
    layers = ", ".join(type(layer).__name__ for layer in head if not isinstance(layer, nn.Identity))
    value = f"{path} is {layers}"
    if activations:
        value += "; nothing in the file says which activation stands there"
    return (Assumption("head", value, "the shapes of its weights", "--arch", guess=activations),)


def _head_of(inside: Shapes) -> tuple[nn.Linear | nn.Sequential | None, bool]:
    """A linear layer, or several in a row, of these weights; whether an activation between them is made up."""
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in inside.items():
        place, _, kind = name.rpartition(".")
        groups.setdefault(place, {})[kind] = shape
    if set(groups) == {""}:
        layer = _layer_of(groups[""])
        return (layer if isinstance(layer, nn.Linear) else None), False
    if not all(re.fullmatch(r"\d{1,2}", place) for place in groups):
        return None, False
    layers: list[nn.Module] = [nn.Identity() for _ in range(max(map(int, groups)) + 1)]
    for place, group in groups.items():
        layer = _layer_of(group)
        if layer is None:
            return None, False
        layers[int(place)] = layer
    made_up = False
    linear = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    for one, other in itertools.pairwise(linear):
        gaps = [place for place in range(one + 1, other) if isinstance(layers[place], nn.Identity)]
        if gaps:
            # Right after the layer, or after its normalization; what else leaves no trace is mostly dropout.
            layers[gaps[0]] = nn.ReLU()
            made_up = True
    return nn.Sequential(*layers), made_up


def _layer_of(group: Mapping[str, tuple[int, ...]]) -> nn.Module | None:
    weight = group.get("weight", ())
    if len(weight) == 2 and set(group) <= {"weight", "bias"}:
        return nn.Linear(weight[1], weight[0], bias="bias" in group)
    if len(weight) == 1 and "running_mean" in group:
        return nn.BatchNorm1d(weight[0])
    return None
