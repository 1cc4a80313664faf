"""Published networks, recognised by their weights' names and shapes: an index, looked up in milliseconds.

``benchmarks/make_architecture_index.py`` writes it.
"""

import hashlib
import heapq
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from torch import Tensor

from bmft.errors import ArchitectureError

Shapes = Mapping[str, tuple[int, ...]]
_SKETCH_SIZE = 8
# Added to batch norm in 2017; older checkpoints lack them and load all the same.
_OPTIONAL = "num_batches_tracked"


class Entry(NamedTuple):
    """What the index knows of one network.

    Attributes:
        head: the tensors whose first axis is the number of outputs.
        signature: hash of all names and shapes, but for that axis.
        sketch: the smallest hashes of single names and shapes; two sketches show how much two networks share
            (Broder, On the resemblance and containment of documents, 1997).
    """

    head: tuple[str, ...]
    signature: str
    sketch: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """How well some weights fit a network.

    Attributes:
        missing: names the network has and the weights do not.
        unexpected: names only the weights have.
        reshaped: names both have, in different shapes.
        notes: what differs first, in words.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    notes: str

    @property
    def distance(self) -> int:
        """The number of names that do not fit; 0 if all do."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items() if isinstance(tensor, Tensor)}


def fit_of(network: Shapes, weights: Shapes) -> Fit:
    """Compare the shapes that a network has with those of some weights.

    >>> fit_of({"fc.weight": (2, 8)}, {"fc.weight": (3, 8), "fc.bias": (3,)}).notes
    "1 has another shape ('fc.weight' is (3, 8), expected (2, 8)), 1 is unexpected ('fc.bias')"
    """
    missing = tuple(name for name in network if name not in weights and not name.endswith(_OPTIONAL))
    unexpected = tuple(name for name in weights if name not in network)
    reshaped = tuple(name for name in network if name in weights and tuple(network[name]) != tuple(weights[name]))
    notes = []
    if reshaped:
        first = reshaped[0]
        what = f"{first!r} is {tuple(weights[first])}, expected {tuple(network[first])}"
        notes.append(f"{len(reshaped)} {'has' if len(reshaped) == 1 else 'have'} another shape ({what})")
    for names, word in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            notes.append(f"{len(names)} {'is' if len(names) == 1 else 'are'} {word} ({_some(names)})")
    return Fit(missing, unexpected, reshaped, ", ".join(notes))


def make_entry(shapes: Shapes, other: Shapes) -> Entry:
    """The entry of a network from its shapes with two different numbers of outputs.

    Raises:
        ArchitectureError: something but the first axis of some tensors depends on the number of outputs.

    >>> make_entry({"fc.weight": (3, 8), "fc.bias": (3,)}, {"fc.weight": (5, 8), "fc.bias": (5,)}).head
    ('fc.bias', 'fc.weight')
    """
    head = tuple(sorted(name for name in shapes if shapes[name] != other.get(name)))
    if not head or list(shapes) != list(other) or any(shapes[name][1:] != other[name][1:] for name in head):
        raise ArchitectureError("the number of outputs is not the first axis of some of the weights")
    return Entry(head, _signature(shapes, head), _sketch(shapes, head))


def matches(shapes: Shapes) -> list[str]:
    """The networks with exactly these names and shapes, whatever their number of outputs."""
    networks = index()
    heads = {entry.head for entry in networks.values() if all(name in shapes for name in entry.head)}
    signatures = {(head, _signature(shapes, head)) for head in heads}
    return [arch for arch, entry in networks.items() if (entry.head, entry.signature) in signatures]


def nearest(shapes: Shapes, count: int) -> list[str]:
    """The networks that share most names and shapes with these, nearest first; those sharing none are not."""
    ours = _sketch(shapes, ())
    scores = {arch: _resemblance(ours, entry.sketch) for arch, entry in index().items()}
    return heapq.nlargest(count, (arch for arch in scores if scores[arch] > 0), key=scores.__getitem__)


@cache
def index() -> dict[str, Entry]:
    """Architecture -> its entry, torchvision's first."""
    text = resources.files("bmft.models").joinpath("architectures.json").read_text(encoding="utf-8")
    content = json.loads(text)
    heads = [tuple(head) for head in content["heads"]]
    return {
        arch: Entry(heads[head], signature, tuple(sketch.split()))
        for arch, (head, signature, sketch) in content["architectures"].items()
    }


def _lines(shapes: Shapes, head: Collection[str]) -> Iterator[str]:
    for name in sorted(shapes):
        if not name.endswith(_OPTIONAL):
            yield f"{name} {('outputs', *shapes[name][1:]) if name in head else tuple(shapes[name])}"


def _signature(shapes: Shapes, head: Collection[str]) -> str:
    return hashlib.sha256("\n".join(_lines(shapes, head)).encode()).hexdigest()[:12]


def _sketch(shapes: Shapes, head: Collection[str]) -> tuple[str, ...]:
    body = {name: shape for name, shape in shapes.items() if name not in head}
    hashes = {hashlib.sha256(line.encode()).hexdigest()[:6] for line in _lines(body, ())}
    return tuple(heapq.nsmallest(_SKETCH_SIZE, hashes))


def _resemblance(a: Collection[str], b: Collection[str]) -> float:
    union = heapq.nsmallest(_SKETCH_SIZE, {*a, *b})
    return sum(item in a and item in b for item in union) / len(union) if union else 0.0


def _some(names: Iterable[str], count: int = 3) -> str:
    first = [repr(name) for name in names]
    return ", ".join(first[:count]) + (", ..." if len(first) > count else "")
