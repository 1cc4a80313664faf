"""A model run on a few rows: which part of its answer is meant, what its last step is, whether it is steady."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bmft._common import Assumption
from bmft.data import GroupedData, Inputs, leaves, map_tensors
from bmft.errors import ArchitectureError, ConfigError, DataError
from bmft.models.answers import (
    Reading,
    called,
    check_place,
    choose,
    forward_outputs,
    mark,
    not_its_inputs,
    part_of,
    reading_of,
)
from bmft.models.modes import evaluating
from bmft.models.seen import unlike_training

ROWS = 8
# Sums in another order differ by a millionth; statistics of another batch, or dropout, by far more.
_STEADY = 1e-3
_EACH = (nn.Sigmoid, nn.LogSigmoid)
_CLASSES = (nn.Softmax, nn.LogSoftmax)


def settle(
    model: nn.Module,
    data: GroupedData,
    *,
    multi_label: bool = False,
    place: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    rows: int = ROWS,
) -> tuple[Assumption, ...]:
    """Change `model`: note how its answer is read, found by running it on a few rows of `data`; nothing if noted.

    Args:
        model: with what `bmft.read_as` noted, if anything.
        data: rows with the labels that the model is about.
        multi_label: every output is a label of its own.
        place: puts an input where and as the model takes it.
        rows: how many are run.

    Returns:
        What was inferred.

    Raises:
        ArchitectureError: no part of the answer can be the logits, or several can; the last activation does not go
            with the labels; the model answers differently each time, or by which rows are in a batch.
        ConfigError: the model has no such output, or one output is meant and the labels are not one yes or no.
        DataError: the model cannot take the inputs.
    """
    reading = reading_of(model)
    if reading.settled:
        return reading.assumed
    index = torch.linspace(0, len(data) - 1, max(2, min(rows, len(data)))).long()
    inputs = map_tensors(place, data.inputs(index))
    several = multi_label or data.task == "multilabel"
    if reading.output is not None:
        _check_one_label(data, several)
    sizes = sizes_for(data, several) if reading.output is None else None
    assumed = [*reading.assumed]
    with _leaving_no_trace(model), taking(model, inputs), _last_steps(model) as steps:
        answer = called(model, _copy(inputs))
    if reading.answer is None and not isinstance(answer, Tensor):
        path, reason = choose(answer, len(index), sizes)
        assumed.append(Assumption("answer", f"part {path!r} of what forward returns", reason, "--answer"))
        reading = replace(reading, answer=path)
    reading = replace(reading, multi_label=several)
    found = part_of(answer, len(index), reading.answer)
    columns = found.numel() // len(index)
    step = None if reading.answer_is == "logits" else _step_of(found, steps, logs=reading.answer_is is None)
    kind = None
    if step is not None:
        kind = type(model.get_submodule(step))
        _check_step(kind.__name__, issubclass(kind, _CLASSES), columns, several, reading)
        value = f"the logits that enter the model's last {kind.__name__} ({step or type(model).__name__})"
        assumed.append(Assumption("answer", value, "the model's last step", "--answer-is"))
        reading = replace(reading, before=step)
    if reading.output is not None:
        check_place(reading, columns)
        reading, about = _of_one_output(reading, columns, kind, found)
        assumed += about
    assumed += unlike_training(model, data, place)
    assumed += _every_category(model, data, inputs)
    mark(model, replace(reading, settled=True, assumed=tuple(assumed)))
    try:
        _check_steady(model, inputs, len(index), distinct=len(data) > 1)
    except ArchitectureError:
        mark(model, None)
        raise
    return tuple(assumed)


def _copy(inputs: Inputs) -> Inputs:
    # A model may change its input in place.
    return map_tensors(torch.clone, inputs)


def sizes_for(data: GroupedData, multi_label: bool) -> set[int]:
    """The numbers of outputs that a network for these data can have."""
    if data.task == "binary":
        return {1} if multi_label else {1, 2}
    return {len(data.classes)}


@contextmanager
def taking(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Inside, the model failing on these inputs is an error that names their shape.

    Raises:
        DataError: it failed.
    """
    if problem := not_its_inputs(model, inputs):
        raise DataError(f"{problem}.")
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in leaves(inputs))
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{type(model).__name__} cannot take inputs of shape {shapes}: {reason} "
            "Check the image size (--image-size) and the number of channels"
            f"{'' if isinstance(inputs, Tensor) else ', and what stands beside the image (--input)'}."
        ) from error


@contextmanager
def _leaving_no_trace(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and needs no gradients; afterwards its buffers are what they were."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def _last_steps(model: nn.Module) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Path -> what last entered and left each activation that makes probabilities, as it runs inside."""
    seen: dict[str, tuple[Any, Any]] = {}
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if isinstance(module, (*_EACH, *_CLASSES)):
                hooks.enter_context(
                    module.register_forward_hook(
                        lambda _, given, made, path=path: seen.update({path: (given[0], made)})
                    )
                )
        yield seen


def _step_of(found: Tensor, steps: dict[str, tuple[Any, Any]], *, logs: bool) -> str | None:
    """The activation whose output is this part of the answer."""
    for path, (given, made) in steps.items():
        if not isinstance(made, Tensor) or made.numel() != found.numel() or given.shape != made.shape:
            continue
        in_range = bool(((made >= 0) & (made <= 1)).all())
        if (in_range or logs) and torch.equal(made.reshape(found.shape), found):
            return path
    return None


def _check_one_label(data: GroupedData, several: bool) -> None:
    """Raise unless the data say yes or no to one thing."""
    if data.task == "binary" and not several:
        return
    if data.task == "binary":
        problem = "--multi-label reads every output, each with a label of its own: leave out one of the two"
    else:
        kind = "labels" if data.task == "multilabel" else "classes"
        problem = f"the data have {len(data.classes)} {kind}: name the one --label of two values that it is about"
    raise ConfigError(f"--output picks one of the model's outputs, and {problem}")


def _of_one_output(
    reading: Reading, columns: int, step: type[nn.Module] | None, found: Tensor
) -> tuple[Reading, list[Assumption]]:
    """How the one output is read, as a label or as a class, and what of that was inferred."""
    place, names = int(reading.output or 0), reading.names
    if len(names.names) != columns:
        names = names._replace(names=())
    reading, assumed = replace(reading, names=names), []
    named = bool(names.names and names.names[place])
    which = f"number {place} of {columns}, from 0 on" + (f", {reading.called(place)}" if named else "")
    assumed.append(Assumption("output", which, names.source if named else "--output", "--output"))
    if columns == 1:
        return reading, assumed
    kind, source = _kind(reading, columns, step, found)
    words = "one class of a softmax against all others" if kind == "class" else "a yes or no of its own"
    if reading.output_is is None:
        guess = source is None
        source = source or f"nothing says whether the {columns} outputs are labels or classes"
        assumed.append(Assumption("output", f"read as {words}", source, "--output-is", guess))
    return replace(reading, one_vs_rest=kind == "class"), assumed


def _kind(
    reading: Reading, columns: int, step: type[nn.Module] | None, found: Tensor
) -> tuple[Literal["label", "class"], str | None]:
    """Whether the outputs are labels or classes, and what says so, if anything does."""
    if step is not None:
        return ("class" if issubclass(step, _CLASSES) else "label"), "the model's last step"
    if reading.output_is is not None:
        return reading.output_is, "--output-is"
    if reading.answer_is == "probabilities":
        sums_to_one = bool(((found.reshape(-1, columns).sum(1) - 1).abs() < _STEADY).all())
        return ("class" if sums_to_one else "label"), "the sums of the probabilities"
    if reading.names.kind is not None:
        return reading.names.kind, reading.names.source
    return ("class" if columns == 2 else "label"), None


def _check_step(kind: str, classes: bool, columns: int, several: bool, reading: Reading) -> None:
    if classes and columns == 1:
        raise ArchitectureError(f"the model ends in a {kind} over one output, which is the same for every input")
    if reading.output_is is not None and columns > 1 and (reading.output_is == "class") != classes:
        raise ConfigError(
            f"--output-is is {reading.output_is}, and the model ends in a {kind}, whose outputs are "
            f"{'classes' if classes else 'labels'}: leave it out"
        )
    if reading.output is not None or columns == 1 or classes != several:
        return
    if classes:
        raise ArchitectureError(
            f"the model ends in a {kind} over {columns} classes, and every output is to be a label of its own: leave "
            "out --multi-label, or give one --label"
        )
    raise ArchitectureError(
        f"the model ends in a {kind} over {columns} outputs, each a yes or no of its own, and the label is one of "
        "several classes: give --multi-label with a --label for each"
    )


def _check_steady(model: nn.Module, inputs: Inputs, n: int, *, distinct: bool) -> None:
    """Raise where the same rows are answered differently, again or in a batch of another make-up."""
    with _leaving_no_trace(model):
        first, again = (forward_outputs(model, _copy(inputs)) for _ in range(2))
    if (apart := _apart(first, again)) > _STEADY:
        raise ArchitectureError(
            f"the model answers differently each time: the same {n} rows twice, and its logits are up to {apart:.3g} "
            "apart. Something random is on in evaluation mode, such as a functional dropout: pass it "
            "training=self.training"
        )
    if not distinct:
        return
    few = slice(0, 3 if n > 3 else 1)
    try:
        with _leaving_no_trace(model):
            part = forward_outputs(model, map_tensors(lambda tensor: tensor[few].clone(), inputs))
    except ValueError as error:
        raise ArchitectureError(f"the model cannot answer for one row by itself: {error}{_blame(model)}") from error
    if (apart := _apart(first[few], part)) > _STEADY:
        raise ArchitectureError(
            f"the model's answer for a row depends on which others are in its batch: its logits are up to {apart:.3g} "
            f"apart.{_blame(model)} Give normalization layers running statistics (track_running_stats=True), or let "
            "them work on one row"
        )


def _every_category(model: nn.Module, data: GroupedData, inputs: Inputs) -> list[Assumption]:
    """Raise where the model cannot take the last name of a column; a remark where it has room for more names."""
    said, categories = [], [one for one in data.columns if one.is_category]
    places = [i for i, one in enumerate(inputs) if one.dim() == 1 and not one.is_floating_point()] if categories else []
    for column, place in zip(categories, places, strict=True):
        last = torch.full_like(inputs[place], len(column.names) - 1)
        tables: dict[str, int] = {}

        def look(
            module: nn.Module, given: tuple[Any, ...], path: str, last: Tensor = last, found: dict[str, int] = tables
        ) -> None:
            if given and isinstance(given[0], Tensor) and given[0].numel() == len(last) and torch.equal(given[0], last):
                found[path] = int(getattr(module, "num_embeddings", 0))

        with ExitStack() as hooks, _leaving_no_trace(model), taking(model, inputs):
            for path, module in model.named_modules():
                if isinstance(module, nn.Embedding):
                    hooks.enter_context(module.register_forward_pre_hook(partial(look, path=path)))
            called(model, (*inputs[:place], last, *inputs[place + 1 :]))
        for path, rows in tables.items():
            if rows != len(column.names):
                value = f"{column.name} has {len(column.names)} names, and {path} a row for each of {rows}"
                said.append(Assumption("inputs", value, "the rows beyond are never used", "--input", guess=True))
    return said


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to how large the numbers are; infinities and NaN at the same place are alike."""
    known = a.isfinite() & b.isfinite()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    difference = (a - b).abs() / (1 + a.abs())
    return float(difference[known].max()) if bool(known.any()) else 0.0


def _blame(model: nn.Module) -> str:
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        and module.running_mean is None
        and not isinstance(module, nn.modules.instancenorm._InstanceNorm)
    ]
    return f" {len(names)} normalization layers have no running statistics (first: {names[0]!r})." if names else ""
