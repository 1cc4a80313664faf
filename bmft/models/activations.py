"""What stays the same while the upper part of a network trains: the activations that enter it, computed once."""

import itertools
import logging
import math
import os
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bmft.compute import AT_ONCE, Share
from bmft.data import GroupedData, Inputs, images_of, map_images
from bmft.errors import ArchitectureError
from bmft.models.answers import called, forward_outputs, passed_on
from bmft.models.weights import state_hash, tensors_of

_log = logging.getLogger(__name__)
Context = Callable[[], AbstractContextManager[Any]]
Value = TypeVar("Value")


class Tail(nn.Module):
    """The part of `model` that runs from one of its modules on: activations in, the model's answer out.

    The model itself runs, with `entry` given the activations, and with what runs before it (`below`) answering at once
    with uninitialised memory of the right shape. What the model takes beside the images, such as a table, it is given
    after the activations, as it is. It shares the model's weights. Made by `tail_above`.
    """

    def __init__(
        self,
        model: nn.Module,
        entry: str,
        below: Mapping[str, torch.Size],
        fixed: Sequence[str],
        inputs: Tensor,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.model, self.entry, self.below, self.fixed = model, entry, below, fixed
        self.input_shape, self.input_dtype, self.dtype = inputs.shape[1:], inputs.dtype, dtype
        self._poisoned = False
        passed_on(model, self, inside="model")

    def forward(self, activations: Tensor, *beside: Tensor) -> Any:
        """The answer for activations ``(n, ...)`` that enter the entry, and for what stands beside the images."""
        n = len(activations)
        # Under autocast a block may expect what it was given in training: half precision. What was kept in that is
        # for weights of more without it.
        half, given = torch.is_autocast_enabled(activations.device.type), activations
        if half:
            given = activations.to(self.dtype)
        elif activations.dtype in (torch.bfloat16, torch.float16):
            given = activations.to(next(self.model.parameters()).dtype)
        with self._standing_in(given, n):
            return self.model(self._blank(activations, (n, *self.input_shape), self.input_dtype), *beside)

    def _blank(self, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What nothing may depend on: uninitialised, or NaN, which shows in whatever it reaches."""
        if self._poisoned and dtype.is_floating_point:
            return like.new_full(shape, math.nan, dtype=dtype)
        return like.new_empty(shape, dtype=dtype)

    @contextmanager
    def over_nan(self) -> Iterator[None]:
        """Inside, all below the entry answers NaN."""
        self._poisoned = True
        try:
            yield
        finally:
            self._poisoned = False

    @contextmanager
    def _standing_in(self, given: Tensor, n: int) -> Iterator[None]:
        stubs = {self.model.get_submodule(name): shape for name, shape in self.below.items()}
        with self.model.get_submodule(self.entry).register_forward_pre_hook(lambda *_: (given,)):
            try:
                for module, shape in stubs.items():
                    # An attribute of the instance comes before the class's method, and is gone with `del`.
                    module.forward = lambda *_, shape=shape, **__: self._blank(given, (n, *shape), given.dtype)
                yield
            finally:
                for module in stubs:
                    module.__dict__.pop("forward", None)

    def entering(self, inputs: Inputs) -> Tensor:
        """The activations that enter for these inputs of the whole model, of which only what lies below runs.

        Raises:
            ArchitectureError: for these inputs the model does not come to the entry.
        """

        def stop(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            raise _ReachedError(arguments[0])

        try:
            with self.model.get_submodule(self.entry).register_forward_pre_hook(stop), torch.no_grad():
                called(self.model, inputs)
        except _ReachedError as reached:
            return reached.activations
        raise ArchitectureError(f"the model runs {self.entry!r} for some inputs only: let every block move (depth 1)")


class _ReachedError(Exception):
    """Ends a forward pass where the activations that it was for are known."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.activations = activations


class _Recording(NamedTuple):
    """In which order modules begin and end, what enters them and what they give."""

    entered: dict[str, list[tuple[int, Any]]]
    left: dict[str, list[tuple[int, Any]]]


@contextmanager
def _recorded(model: nn.Module) -> Iterator[_Recording]:
    """Inside, what the model's modules do is recorded."""
    seen, moments = _Recording({}, {}), itertools.count(1)

    def note(book: dict[str, list[tuple[int, Any]]], name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], *result: Any) -> None:
            alone = len(arguments) == 1 and not keywords and isinstance(arguments[0], Tensor)
            # A copy: a module that works in place would change what was noted.
            value = result[0] if result else arguments[0].clone() if alone else None
            book.setdefault(name, []).append((next(moments), value))

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_pre_hook(note(seen.entered, name), with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(note(seen.left, name), with_kwargs=True))
        yield seen


def tail_above(model: nn.Module, moving: Iterable[str], inputs: Any, *, autocast: Context = nullcontext) -> Tail | None:
    """The longest part of the network below which none of the parameters `moving` acts; None when there is none.

    Which modules run before which is seen by running the model on a few `inputs` ``(n >= 3, ...)``; that nothing but
    the activations of the entry passes upwards (a skip connection would) is checked on them to the last bit.

    >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> tail = tail_above(net, ["2.weight"], torch.ones(3, 2))
    >>> tail.entry, torch.equal(tail(tail.entering(torch.ones(3, 2))), net(torch.ones(3, 2)))
    ('2', True)
    """
    images, *beside = inputs if isinstance(inputs, tuple) else (inputs,)
    if (
        not isinstance(images, Tensor)
        or len(images) < 3
        or (beside and (images.dim() != 4 or len(images_of(inputs)) > 1))
    ):
        return None
    with torch.no_grad(), autocast(), _recorded(model) as seen:
        logits = forward_outputs(model, inputs)
    alone = _without_images(model, inputs, seen, autocast) if beside else frozenset[str]()
    begins = _first_use(model, set(moving), seen)
    entries = [
        (calls[0][0], name)
        for name, calls in seen.entered.items()
        if len(calls) == 1 and calls[0][0] <= begins and _per_sample(calls[0][1], len(images))
    ]
    for moment, name in sorted(entries, reverse=True):
        below = _before(model, moment, seen, len(images), alone)
        if not any(next(model.get_submodule(done).parameters(), None) is not None for done in below):
            return None
        activations = seen.entered[name][0][1]
        tail = Tail(model, name, below, _fixed(model, moment, below, seen), images, activations.dtype)
        few = (activations[:2], *(one[:2] for one in beside))
        if _agrees(tail, (activations, *beside), logits, autocast) and _agrees(tail, few, logits[:2], autocast):
            return tail
    return None


def _without_images(model: nn.Module, inputs: Inputs, seen: _Recording, autocast: Context) -> frozenset[str]:
    """The modules that give the same for other images: they work on what stands beside these, and run in the tail."""
    with torch.no_grad(), autocast(), _recorded(model) as others:
        forward_outputs(model, map_images(lambda images: images.flip(0) + 1, inputs))

    def same(a: list[tuple[int, Any]], b: list[tuple[int, Any]]) -> bool:
        pairs = zip([value for _, value in a], [value for _, value in b], strict=False)
        return len(a) == len(b) and all(
            isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y) for x, y in pairs
        )

    return frozenset(name for name, calls in seen.left.items() if same(calls, others.left.get(name, [])))


def _first_use(model: nn.Module, moving: set[str], seen: _Recording) -> int:
    """When the first module begins that holds one of the parameters itself; 0 if that cannot be told."""
    owners = {name.rpartition(".")[0] for name in moving}
    moments = [seen.entered[name][0][0] if name in seen.entered else 0 for name in owners]
    return min(moments, default=0)


def _before(model: nn.Module, moment: int, seen: _Recording, n: int, alone: frozenset[str]) -> dict[str, torch.Size]:
    """The outermost modules that are done at that moment, and the shape of what one sample gives there.

    Those that do not look at the images (`alone`) are not among them.
    """
    found: dict[str, torch.Size] = {}
    for name, _ in model.named_modules():
        calls = seen.left.get(name, [])
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if inside or name in alone or not calls or calls[-1][0] > moment:
            continue
        if all(_per_sample(value, n) for _, value in calls) and len({value.shape for _, value in calls}) == 1:
            found[name] = calls[0][1].shape[1:]
    return found


def _per_sample(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == n


def _fixed(model: nn.Module, moment: int, below: Iterable[str], seen: _Recording) -> list[str]:
    """The names in the state dict on which the activations at that moment may depend."""
    running = {"", *(name for name, calls in seen.entered.items() if calls[0][0] < moment)}
    inside = tuple(f"{name}." for name in below)
    return [key for key in tensors_of(model) if key.rpartition(".")[0] in running or key.startswith(inside)]


def _agrees(tail: Tail, given: tuple[Tensor, ...], logits: Tensor, autocast: Context) -> bool:
    # A product with weights of zero would hide what comes from below, if that were a number.
    with tail.over_nan(), torch.no_grad(), autocast():
        found = forward_outputs(tail, given)
    # A smaller batch may be summed in another order.
    return torch.equal(found, logits) or (len(logits) == 2 and torch.allclose(found, logits, rtol=1e-3, atol=1e-4))


@dataclass
class Activations:
    """Keeps what enters the tails of a network, per set, and what else runs have in common; one may serve several runs.

    Runs from the same weights share them: a search computes what its trials leave alone once.

    Attributes:
        limit: bytes kept in memory, in all.
        on_disk: bytes kept beyond that in memory-mapped files, which have no name and are gone with the process.
        whole: has what enters for sets of which others are parts.
        meter: counts the samples that went through the model so far.
        spared: how many more would have, had `once` made everything anew.
    """

    limit: int = 2 << 30
    on_disk: int = 16 << 30
    whole: "Activations | None" = None
    _parts: dict[int, tuple[GroupedData, GroupedData, Tensor]] = field(default_factory=dict)
    meter: Callable[[], int] = int
    spared: int = 0
    _counted: int = 0
    _shared: dict[Hashable, tuple[object, Any, int]] = field(default_factory=dict)
    _kept: dict[tuple[Any, ...], tuple[GroupedData, GroupedData]] = field(default_factory=dict)
    _bytes: int = 0
    _bytes_on_disk: int = 0

    def know(self, part: GroupedData, data: GroupedData, rows: Tensor) -> None:
        """Let `part` be these `rows` of `data`, whose activations `whole` has if it has room for them."""
        self._parts[id(part)] = part, data, rows

    def of(
        self, tail: Tail, data: GroupedData, *, autocast: Context = nullcontext, batch_size: int = AT_ONCE
    ) -> GroupedData | None:
        """`data` with the activations in place of the inputs; None when they would take too much room."""
        device = next(tail.parameters()).device
        with autocast():
            half = torch.is_autocast_enabled(device.type)
        key = (id(data), tail.entry, half, _digest(tail))
        if key not in self._kept and self.whole is not None and id(data) in self._parts:
            _, given, rows = self._parts[id(data)]
            found = self.whole.of(tail, given, autocast=autocast, batch_size=batch_size)
            if found is not None:
                self._kept[key] = data, found.subset(rows)
        if key not in self._kept:
            with autocast():
                sample = tail.entering(data.take(slice(0, 1)).to(device).inputs)
            inputs, on_disk = self._room((len(data), *sample.shape[1:]), sample.dtype)
            if inputs is None:
                return None
            share, start = Share(len(data)), 0
            mine, beside = inputs[share.rows], []
            for batch in share.of(data).batches(batch_size):
                given = batch.to(device).inputs
                with autocast():
                    entering = tail.entering(given)
                beside.append(given[1:] if isinstance(given, tuple) else ())
                mine[start : start + len(entering)] = entering
                start += len(entering)
            if not share.whole:
                inputs.copy_(share.gather(mine.to(device)))
            # Counted when it is filled: a batch that found no room is tried again in pieces.
            if on_disk:
                self._bytes_on_disk += inputs.nbytes
            else:
                self._bytes += inputs.nbytes
            # The set itself is kept too, so that its id stays its own.
            others = tuple(share.gather(torch.cat(parts)).cpu() for parts in zip(*beside, strict=True))
            self._kept[key] = data, data.with_inputs((inputs, *others) if others else inputs)
        return self._kept[key][1]

    def once(
        self, key: Hashable, owner: object, make: Callable[[], Value], enough: Callable[[Value], bool] = lambda _: True
    ) -> Value:
        """What `make` gives, made once for this key and this owner; made again where what there is is not `enough`.

        >>> kept = Activations()
        >>> [kept.once("predictions", kept, made) for made in (lambda: 1, lambda: 2)]
        [1, 1]
        """
        full = (key, id(owner))
        _, value, cost = self._shared.get(full, (owner, None, 0))
        if full in self._shared and enough(value):
            self.spared += cost
            return value  # type: ignore[no-any-return]
        before, inner = self.meter(), self._counted
        made = make()
        # What was made on the way has its own place and cost.
        cost = self.meter() - before - (self._counted - inner)
        self._counted += cost
        # The owner is kept too, so that its id stays its own.
        self._shared[full] = owner, made, cost
        return made

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor | None, bool]:
        """A tensor of that shape in memory, else in a file, else None; and whether it is in a file."""
        size = dtype.itemsize * math.prod(shape)
        if self._bytes + size <= self.limit:
            return torch.empty(shape, dtype=dtype), False
        return (_mapped(shape, size, dtype) if self._bytes_on_disk + size <= self.on_disk else None), True


def _mapped(shape: tuple[int, ...], size: int, dtype: torch.dtype) -> Tensor | None:
    """Memory backed by a file that nothing names any more; None where the disk has no room for it."""
    with tempfile.NamedTemporaryFile(prefix="bmft-") as file:
        try:
            # Reserved now: a page that finds no room when it is written ends the process.
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            _log.info("activations are not kept in a file: %s", error)
            return None
        return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)


def _digest(tail: Tail) -> str:
    state = tensors_of(tail.model)
    return state_hash({name: state[name] for name in tail.fixed})
