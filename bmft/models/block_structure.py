"""The parts of a network that are switched on or off together, read off its module tree."""

import math
import re
from collections.abc import Iterable, Iterator

from torch import nn

from bmft.models.head import Head, find_head, is_layer

COMPONENTS = ("norm", "attention", "mlp", "conv", "shortcut", "other")
# A shortcut is a plain convolution: only its place in the block tells it from the block's own.
_SHORTCUTS = {"downsample", "proj", "project", "shortcut", "skip"}


def blocks(model: nn.Module, head: Head | None = None) -> dict[str, tuple[str, ...]]:
    """Block path -> the names of its parameters; every parameter of the model is in exactly one block.

    A block is what the network repeats: a residual, transformer or inception block, a whole dense block. What
    comes before the first of them is ``"stem"`` (embeddings wherever they stand included); a layer between or
    after blocks is a block of its own, with the norm that follows it; ``"head"``, the layer that makes the
    logits, comes last. In a plain network (VGG, an MLP) every layer is a block. The order is the module
    tree's.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Linear(8, 2))
    >>> blocks(net)
    {'0': ('0.weight', '0.bias', '1.weight', '1.bias'),
     '2': ('2.weight', '2.bias'),
     'head': ('3.weight', '3.bias')}
    """
    top = set((head or find_head(model)).parameters)
    owner = {name: block for block, names in _named_parts(model, top) for name in names}
    found: dict[str, list[str]] = {"stem": [], **{block: [] for block in owner.values()}, "head": []}
    for name, _ in model.named_parameters():
        found["head" if name in top else owner.get(name, "stem")].append(name)
    return {block: tuple(names) for block, names in found.items() if names}


# With fewer blocks the lower ones are too much of the network to stay: on the generated set, whose network has three,
# the gap of one seed in five then hardly moved.
DEEP = 6


def upper(model: nn.Module, head: Head, share: float) -> list[str]:
    """The parameters of that share of the blocks, counted from the head down, without the head's own.

    Of a network of fewer than six blocks, or with a share of 1, all but the head's.

    >>> net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    >>> upper(net, find_head(net), 0.25)
    ['6.weight', '6.bias', '7.weight', '7.bias']
    """
    body = [name for name, _ in model.named_parameters() if name not in head.parameters]
    inner = [names for block, names in blocks(model, head).items() if block not in ("stem", "head")]
    if share == 1 or len(inner) < DEEP:
        return body
    kept = {name for names in inner[-math.ceil(share * len(inner)) :] for name in names}
    return [name for name in body if name in kept]


def components(model: nn.Module, head: Head | None = None) -> dict[str, dict[str, tuple[str, ...]]]:
    """Block path -> component -> the names of its parameters: each of `blocks` cut up, nothing left out.

    ``norm`` is every normalisation layer, wherever it stands; ``attention`` what belongs to an attention
    module; ``shortcut`` the convolution on a residual block's way around; ``conv`` the other convolutions;
    ``mlp`` the other linear layers; ``other`` the rest (embeddings, layer scales) and the head.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> components(net)["0"]
    {'norm': ('1.weight', '1.bias'), 'conv': ('0.weight', '0.bias')}
    """
    return {
        block: {"other": names} if block == "head" else _split(model, block, names)
        for block, names in blocks(model, head).items()
    }


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that a network repeats, as far as several layers make one up: none lies in another.

    >>> net = nn.Sequential(nn.Linear(4, 4), *(nn.TransformerEncoderLayer(4, 1, 8) for _ in range(3)))
    >>> len(repeated_blocks(net)), repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    (3, [])
    """
    return [module for _, module in _parts(model, set()) if _count_layers(module) > 1]


def _named_parts(model: nn.Module, head: set[str]) -> Iterator[tuple[str, list[str]]]:
    """The name of the block that each part belongs to, and the part's parameter names."""
    parts = [
        (path, _count_layers(module), [name for name, _ in module.named_parameters(path)])
        for path, module in _parts(model, {_parent(name) for name in head})
    ]
    real = [number for number, (_, layers, names) in enumerate(parts) if layers > 1 and not head & set(names)]
    before = ("stem", 0)
    for number, (path, layers, names) in enumerate(parts):
        starts = not real or number >= real[0]
        follows = layers == 0 and before[1] == 1 and _parent(path) == _parent(before[0])
        before = (path, layers) if starts and not follows else before
        yield before[0], names


def _parts(module: nn.Module, heads: set[str], path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The blocks, and the single layers between them, in the order of the module tree."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        around_head = any(head.startswith(f"{inner}.") for head in heads)
        if around_head or _holds_blocks(child) or (_is_list(child) and _holds_layers(child)):
            yield from _parts(child, heads, inner)
        elif next(child.parameters(), None) is not None:
            yield inner, child


def _holds_blocks(module: nn.Module) -> bool:
    """Whether blocks lie in the module, at any depth: two or more of one kind with several layers each.

    In a list others may stand between them; a module that is no list must have nothing else. The layers of a
    dense block, which all see each other, are kept in a dict: it is one block.
    """
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    kinds = [type(child) for child in children if not _is_list(child) and _count_layers(child) > 1]
    if _is_list(module):
        found = len(kinds) > len(set(kinds))
    else:
        found = len(kinds) == len(children) > 1 == len(set(kinds)) and not isinstance(module, nn.ModuleDict)
    return found or any(_holds_blocks(child) for child in children)


def _holds_layers(module: nn.Module) -> bool:
    children = list(module.children())
    return sum(map(is_layer, children)) > 1 or any(_count_layers(child) > 1 for child in children)


def _is_list(module: nn.Module) -> bool:
    # A Sequential with a forward of its own is a block: it adds or joins what its children give.
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return plain or isinstance(module, nn.ModuleList)


def _count_layers(module: nn.Module) -> int:
    return sum(map(is_layer, module.modules()))


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _split(model: nn.Module, block: str, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    kinds = {name: _component(model, block, name) for name in names}
    parts = {kind: tuple(name for name in names if kinds[name] == kind) for kind in COMPONENTS}
    return {kind: part for kind, part in parts.items() if part}


def _component(model: nn.Module, block: str, name: str) -> str:
    # A parametrization (weight norm) keeps its tensors in a module of its own below the layer they make up.
    path = name.split(".parametrizations.")[0] if ".parametrizations." in name else _parent(name)
    owner = model.get_submodule(path)
    inside = path.removeprefix(f"{block}.").split(".") if path.startswith(f"{block}.") else []
    around = [model.get_submodule(".".join([block, *inside[:depth]])) for depth in range(1, len(inside) + 1)]
    kinds = " ".join(type(module).__name__.lower() for module in around)
    if _is_norm(owner):
        return "norm"
    if re.search("att(entio)?n", kinds):
        return "attention"
    if block != "stem" and inside and inside[0] in _SHORTCUTS:
        return "shortcut"
    if isinstance(owner, nn.Linear) or "mlp" in kinds:
        return "mlp"
    return "conv" if isinstance(owner, nn.modules.conv._ConvNd) else "other"


def _is_norm(module: nn.Module) -> bool:
    known = isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm)
    return known or "norm" in type(module).__name__.lower()
