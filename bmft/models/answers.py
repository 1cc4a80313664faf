"""How a model's answer is read: which part of what `forward` returns, as logits or probabilities, which output."""

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bmft._common import Assumption, folded
from bmft.data import leaves
from bmft.errors import ArchitectureError, CheckpointError, ConfigError
from bmft.models.outputs import Kind, OutputNames, apart, listed_outputs, output_names_of, output_place
from bmft.models.weights import check_module

# A plain attribute: deepcopy and pickle keep it, a state dict does not have it.
_MARK = "_bmft_reading"
_ROUNDING = 1e-3  # how far from 1 the probabilities of one row may add up


@dataclass(frozen=True)
class Reading:
    """How the answer of one model is read.

    Attributes:
        answer: the part of what ``forward`` returns: a key, an index, or several joined by ``/``; None: found out.
        answer_is: ``"logits"`` or ``"probabilities"``; None: logits, which `bmft.predict` checks.
        output: the place of the one of many outputs that is meant; None: all of them.
        output_is: ``"label"``: a yes or no of its own; ``"class"``: one of a softmax against all others; None: found
            out.
        names: of the outputs, where something names them.
        by_name: `output` was given as one of these names.
        before: path of a last activation that is stepped over: its input is the logits.
        multi_label: every output is a label of its own.
        one_vs_rest: the outputs are classes of one softmax, so that `output` is one of them against all others.
        threshold: the probability from which the model decides for the positive class, where something says so.
        settled: the model was run on rows and answers as is written here.
        assumed: what of it was inferred.
    """

    answer: str | int | None = None
    answer_is: Literal["logits", "probabilities"] | None = None
    output: int | None = None
    output_is: Kind | None = None
    names: OutputNames = field(default_factory=OutputNames)
    by_name: bool = False
    before: str | None = None
    multi_label: bool = False
    one_vs_rest: bool = False
    threshold: float | None = None
    settled: bool = False
    assumed: tuple[Assumption, ...] = ()

    def __post_init__(self) -> None:
        if self.answer_is not in (None, "logits", "probabilities"):
            raise ConfigError(f"answer_is is {self.answer_is!r}: expected 'logits' or 'probabilities'")
        if self.output_is not in (None, "label", "class"):
            raise ConfigError(f"output_is is {self.output_is!r}: expected 'label' or 'class'")
        if self.output_is is not None and self.output is None:
            raise ConfigError("--output-is says how one output of many is read: name it (--output)")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold}: expected a number between 0 and 1")

    def called(self, place: int) -> str:
        """An output in words: by its name where it has one."""
        name = self.names.names[place] if place < len(self.names.names) else ""
        twice = self.names.names.count(name) > 1
        return f"{name} (output {place})" if name and twice else name or f"output {place}"

    def others(self, count: int) -> tuple[str, ...]:
        """What the other ones of `count` outputs are called; of two classes the other is the rest."""
        rest = tuple(self.called(place) for place in range(count) if place != self.output)
        return () if self.one_vs_rest and len(rest) == 1 else rest

    def described(self) -> dict[str, Any]:
        """What of it was said, as plain values: it decides what a run does."""
        said = {name: getattr(self, name) for name in ("answer", "answer_is", "output", "output_is")}
        return {name: value for name, value in said.items() if value is not None}


def read_as(
    model: nn.Module,
    *,
    answer: str | int | None = None,
    answer_is: Literal["logits", "probabilities"] | None = None,
    output: int | str | None = None,
    output_is: Kind | None = None,
    names: Sequence[str] | OutputNames | None = None,
    threshold: float | None = None,
) -> nn.Module:
    """Change `model`: note how its answer is read by all of bmft; gives the same model back.

    The note is an attribute of the object, which copies keep and its state dict does not have.

    Args:
        answer: the part of what ``forward`` returns: a key or an index, nested ones as ``"heads/1"``. By default the
            only part of the right shape.
        answer_is: what it holds. By default logits; an answer in [0, 1] is refused.
        output: which of many outputs one label of yes or no is about: its place from 0, or its name among `names`.
        output_is: ``"label"`` for a yes or no of its own (a sigmoid), ``"class"`` for one class of a softmax, then read
            against all others. By default what the names or the model's last step say, else a label, and a class of
            two.
        threshold: the probability from which it decides for the positive class; by default what was noted, else 0.5.
        names: of the outputs, in their order; by default what the model says (``pathologies``, ``config.id2label``).

    Raises:
        ConfigError: `answer_is` or `output_is` is neither word, or no output has that name.

    >>> net = read_as(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), answer_is="probabilities", output=2)
    >>> forward_logits(net, torch.zeros(5, 4)).shape
    torch.Size([5, 1])
    """
    if names is None:
        names = output_names_of(model)
    elif not isinstance(names, OutputNames):
        names = OutputNames(tuple(map(str, names)), "names=")
    place = None if output is None else output_place(output, names)
    by_name = isinstance(output, str) and folded(output) in map(folded, names.names)
    one_vs_rest = place is not None and output_is == "class"
    threshold = reading_of(model).threshold if threshold is None else threshold
    more: dict[str, Any] = {"one_vs_rest": one_vs_rest, "threshold": threshold}
    mark(model, Reading(answer, answer_is, place, output_is, names, by_name, **more))
    return model


def reading_of(model: nn.Module) -> Reading:
    """The note of how this model's answer is read; an empty one where `read_as` and `settle` noted nothing."""
    check_module(model)
    found = model.__dict__.get(_MARK)
    return found if isinstance(found, Reading) else Reading()


def mark(model: nn.Module, reading: Reading | None) -> None:
    """Change `model`: note that its answer is read like this; None removes the note."""
    model.__dict__.pop(_MARK, None)
    if reading is not None:
        model.__dict__[_MARK] = reading


@contextmanager
def kept_mark(model: nn.Module) -> Iterator[None]:
    """Inside, the note of how the model's answer is read may change; afterwards it is what it was before, or none."""
    before = model.__dict__.get(_MARK)
    try:
        yield
    finally:
        mark(model, before)


def forward_logits(model: nn.Module, inputs: Any) -> Tensor:
    """The model's logits for a batch, as `read_as` or `settle` noted that its answer is read.

    Without a note: a tensor, or the part called ``logits`` (Hugging Face, Inception in training mode), or the only part
    that has one row per sample.

    Args:
        model: called as ``model(inputs)``.
        inputs: a tensor of n samples; a dict is passed by keyword, a tuple or list by position.

    Returns:
        ``(n, outputs)``; ``(n, 1)`` where one output is meant.

    Raises:
        ArchitectureError: the answer holds no logits, or not one row of them per sample, or several that could be.
        CheckpointError: what was said to be probabilities is none.

    >>> forward_logits(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), torch.zeros(3, 4)).shape
    torch.Size([3, 1])
    """
    return meant(forward_outputs(model, inputs), reading_of(model))[0]


def forward_with_others(model: nn.Module, inputs: Any) -> Tensor:
    """`forward_logits`, and where one output is meant beside it the logits ``(n, others)`` of the others."""
    outputs, reading = forward_outputs(model, inputs), reading_of(model)
    return outputs if reading.output is None else torch.cat(meant(outputs, reading), 1)


def meant(outputs: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
    """The logits that are meant, and those of the other outputs, each a yes or no of its own; see `outputs.apart`."""
    if reading.output is None:
        return outputs, outputs[:, :0]
    check_place(reading, outputs.shape[1])
    return apart(outputs, reading.output, classes=reading.one_vs_rest)


def check_place(reading: Reading, count: int) -> None:
    """Raise unless `count` outputs have the one that is meant.

    Raises:
        ConfigError: there is no such place, or the names are those of another number of outputs.
    """
    names, source, _ = reading.names
    if reading.by_name and len(names) != count:
        raise ConfigError(
            f"--output: {source} has {len(names)} names, and the model has {count} outputs, so a name does not tell "
            f"which one is meant: give its place, from 0 to {count - 1}"
        )
    if reading.output is not None and reading.output >= count:
        raise ConfigError(
            f"--output is {reading.output}, and the model has {count} outputs: "
            f"{listed_outputs(names if len(names) == count else (), count)}"
        )


def forward_outputs(model: nn.Module, inputs: Any) -> Tensor:
    """The logits of every output ``(n, outputs)``, also where one of them is meant."""
    reading, n = reading_of(model), next(leaves(inputs)).shape[0]
    if reading.before is not None:
        return _rows(_entering(model, reading.before, inputs), n)
    answer = called(model, inputs)
    found = _rows(part_of(answer, n, reading.answer), n)
    return _as_logits(found, reading) if reading.answer_is == "probabilities" else found


def not_its_inputs(model: nn.Module, inputs: Any) -> str:
    """Why ``forward`` cannot be called with as many inputs, or these names; "" where it can, or where it is not said.

    >>> class Two(nn.Module):
    ...     def forward(self, image, table):
    ...         return image
    >>> not_its_inputs(Two(), torch.ones(1, 3))
    'Two takes 2 inputs (image, table) and is given 1: name the columns ...'
    """
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # what is compiled may not say
        return ""
    args: tuple[Any, ...] = (inputs,)
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    elif isinstance(inputs, tuple | list):
        args = tuple(inputs)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        needed = [
            one.name for one in signature.parameters.values() if one.default is one.empty and one.kind in _BY_PLACE
        ]
        given = f"{', '.join(kwargs)}" if kwargs else len(args)
        inputs_are = f"{len(needed)} input{'' if len(needed) == 1 else 's'} ({', '.join(needed)})"
        return (
            f"{type(model).__name__} takes {inputs_are} and is given {given}: name the columns of the table that it "
            "takes beside the image, in their order (--input COLUMN; inputs= of load_manifest), or none"
        )
    return ""


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def called(model: nn.Module, inputs: Any) -> Any:
    """Whatever the model returns for these inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _entering(model: nn.Module, path: str, inputs: Any) -> Tensor:
    seen: list[Tensor] = []
    with model.get_submodule(path).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])):
        called(model, inputs)
    return seen[-1]


def part_of(answer: Any, n: int, wanted: str | int | None = None) -> Tensor:
    """The part of an answer for n samples that is named, or that can be meant.

    Raises:
        ArchitectureError: there is none, or there are several.
    """
    if wanted is not None:
        return _named(answer, n, str(wanted))
    return answer if isinstance(answer, Tensor) else parts(answer)[choose(answer, n)[0]]


def choose(answer: Any, n: int, sizes: range | set[int] | None = None) -> tuple[str, str]:
    """The path of the part of an answer for n samples that holds the logits, and why it is that one.

    Args:
        answer: what a model returned, other than a tensor.
        n: how many samples it is about.
        sizes: numbers of outputs that are right; any by default.

    Raises:
        ArchitectureError: there is none, or there are several.

    >>> choose({"features": torch.zeros(3, 8), "label": torch.zeros(3, 1)}, 3, {1, 2})
    ('label', 'the only part of the right shape')
    """
    found = parts(answer)
    fitting = {path: tensor for path, tensor in found.items() if _has_rows(tensor, n)}
    called_logits = [path for path in fitting if path.rpartition("/")[2] == "logits"]
    if len(called_logits) == 1:
        return called_logits[0], "its name"
    right = [path for path, tensor in fitting.items() if sizes is None or tensor.numel() // n in sizes]
    if len(right) == 1:
        return right[0], "the only part of the right shape"
    for one, other in itertools.permutations(right, 2) if len(right) == 2 else ():
        if _is_softmax(found[one], found[other]):
            return other, f"part {one!r} is its softmax"
    if not found:
        raise ArchitectureError(
            f"the model answers with a {type(answer).__name__}: expected a tensor of logits, or a dict, tuple or "
            "object that holds one. Wrap the model in one that does."
        )
    size = " or ".join(map(str, sorted(sizes))) if isinstance(sizes, set) else "outputs"
    problem = f"{len(right)} parts of" if right else "no part of"
    raise ArchitectureError(
        f"{problem} the model's answer could be its logits, ({n}, {size}) for {n} samples: it holds {_listed(found)}. "
        "Name the part that does (--answer)."
    )


def _is_softmax(probabilities: Tensor, logits: Tensor) -> bool:
    alike = probabilities.shape == logits.shape and probabilities.dim() == 2
    return alike and torch.allclose(probabilities, logits.softmax(1), atol=1e-6)


def parts(answer: Any, path: str = "") -> dict[str, Tensor]:
    """Every tensor in an answer by its path: keys and indices, joined by ``/``."""
    if isinstance(answer, Tensor):
        return {path: answer}
    if isinstance(answer, Mapping):
        inside = {str(key): value for key, value in answer.items()}
    elif isinstance(answer, tuple | list):
        names = getattr(answer, "_fields", None) or map(str, range(len(answer)))
        inside = dict(zip(names, answer, strict=True))
    else:
        inside = dict(getattr(answer, "__dict__", {}))
    found: dict[str, Tensor] = {}
    for key, value in inside.items():
        found |= parts(value, f"{path}/{key}" if path else key)
    return found


def _named(answer: Any, n: int, wanted: str) -> Tensor:
    found = parts(answer)
    if wanted not in found and not isinstance(answer, Tensor):
        # A named tuple's parts and a dict's go by their places, too.
        places = dict(enumerate(list(found)))
        wanted = places.get(int(wanted), wanted) if wanted.isdigit() and "/" not in "".join(found) else wanted
    if wanted not in found:
        inside = [path for path in found if path.startswith(f"{wanted}/")]
        if len(inside) == 1:
            return found[inside[0]]
        listed = _listed(found) if not isinstance(answer, Tensor) else "one tensor and nothing else"
        raise ArchitectureError(f"--answer: the model's answer has no part {wanted!r}: it holds {listed}")
    if not _has_rows(found[wanted], n):
        raise ArchitectureError(
            f"--answer: {wanted!r} is {tuple(found[wanted].shape)} for {n} samples, expected ({n}, outputs): the "
            f"answer holds {_listed(found)}"
        )
    return found[wanted]


def _listed(found: Mapping[str, Tensor]) -> str:
    shown = [f"{path} {tuple(tensor.shape)}" for path, tensor in list(found.items())[:12]]
    return ", ".join(shown) + (f" and {len(found) - 12} more" if len(found) > 12 else "")


def _has_rows(tensor: Tensor, n: int) -> bool:
    rows = tensor.shape[:1] == (n,)
    # A model that squeezes gives (n,) for one output, (outputs,) or () for a single sample.
    squeezed = tensor.dim() < 2 and (rows or n == 1)
    return (tensor.dim() == 2 and rows) or squeezed or (rows and tensor[0].numel() == tensor.shape[1])


def _rows(logits: Tensor, n: int) -> Tensor:
    if not _has_rows(logits, n):
        raise ArchitectureError(
            f"the model answers with shape {tuple(logits.shape)} for {n} samples: expected ({n}, outputs)"
        )
    return logits if logits.dim() == 2 else logits.reshape(n, -1)


def _as_logits(values: Tensor, reading: Reading) -> Tensor:
    """What gives these probabilities again: by a sigmoid, or by the softmax of several classes."""
    values = values if values.dtype == torch.float64 else values.float()
    low, high = float(values.detach().min()), float(values.detach().max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise CheckpointError(
            f"the model's answer holds values from {low:.3g} to {high:.3g}, which are no probabilities: leave out "
            "--answer-is probabilities"
        )
    # Tiny probabilities keep their order; 1 has to be less than that for its logit to be a number.
    inside = values.clamp(torch.finfo(values.dtype).tiny, 1 - torch.finfo(values.dtype).eps / 2)
    if values.shape[1] == 1 or reading.multi_label or (reading.output is not None and not reading.one_vs_rest):
        return inside.log() - torch.log1p(-inside)
    total = values.detach().sum(1)
    if bool(((total - 1).abs() > 10 * _ROUNDING).any()):
        raise CheckpointError(
            f"the {values.shape[1]} probabilities of a row add up to {float(total.min()):.3g} to "
            f"{float(total.max()):.3g}, not to 1, so they are no classes: give --multi-label"
        )
    return inside.log()


def passed_on(model: nn.Module, to: nn.Module, inside: str) -> None:
    """Change `to`: its answer is read as the model's, which it holds under the name `inside`."""
    if (found := reading_of(model)) != Reading():
        before = None if found.before is None else f"{inside}.{found.before}".rstrip(".")
        mark(to, replace(found, before=before))


@contextmanager
def as_head_of(model: nn.Module, head: nn.Module) -> Iterator[None]:
    """Inside, `head` by itself, whose outputs are the model's logits, is read as the model's output."""
    reading = reading_of(model)
    with kept_mark(head):
        if head is not model:
            mark(head, replace(reading, answer=None, answer_is=None, before=None, settled=True))
        yield
