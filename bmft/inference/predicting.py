"""A model and data in, predictions or an audit out: the forward pass, in evaluation mode and full precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bmft import fairness
from bmft.auditing import AuditReport, Predictions, audit_predictions
from bmft.compute import AT_ONCE, Room, Share, choose_device
from bmft.data import GroupedData, Inputs, as_grouped, map_tensors
from bmft.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from bmft.models import (
    ROWS,
    check_values,
    copied,
    evaluating,
    forward_outputs,
    kept_mark,
    meant,
    positive_first,
    reading_of,
    settle,
    sizes_for,
    turned,
)

# Nodes of autograd's graph that pass values on as they are.
_SAME_VALUES = tuple(
    f"{name}Backward"
    for name in (
        "Alias",
        "Cat",
        "Clone",
        "Expand",
        "Permute",
        "Reshape",
        "Select",
        "Slice",
        "Squeeze",
        "Stack",
        "T",
        "ToCopy",
        "Transpose",
        "Unsqueeze",
        "UnsafeView",
        "View",
    )
)

_SQUASHING = tuple(f"{name}Backward" for name in ("Sigmoid", "Softmax", "LogSigmoid"))
_BY_LAYER = tuple(f"{name}Backward" for name in ("Addmm", "Mm", "Addbmm", "Baddbmm", "Bmm", "Convolution", "Linear"))


def predict(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int | Literal["auto"] = AT_ONCE,
    device: str = "auto",
    batch_fn: Callable[[Any], tuple[Inputs, Tensor, Tensor]] | None = None,
    multi_label: bool = False,
) -> Predictions:
    """Probabilities of a model for every sample of `data`, in evaluation mode and full precision.

    The model comes back as it was given: device, training flags and weights, also when something fails.

    Args:
        model: gives logits: one per sample (binary), two (two classes), or one per class or label; what else it
            gives is said by `bmft.read_as`.
        data: `GroupedData`, or what yields ``(inputs, targets, groups)`` batches, possibly by `batch_fn`.
        batch_size: samples at once; ``"auto"`` is 64, or as many of them as memory has room for.
        device: where to run; ``"auto"`` is where the model is, or for one on the CPU a CUDA device if any.
        batch_fn: one batch -> ``(inputs, targets, groups)``.
        multi_label: every output is a label of its own; so taken where the data have several labels.

    Raises:
        CheckpointError: the model gives probabilities instead of logits, and `read_as` did not say so.
        ArchitectureError: see `bmft.models.settle`.
        NonFiniteError: a logit is not finite.
        DataError: the model's outputs do not fit the data's classes.

    >>> from bmft.data import from_arrays
    >>> data = from_arrays(torch.eye(4), [0, 1, 0, 1], [0, 0, 1, 1])
    >>> predict(nn.Linear(4, 1), data).scores.shape
    (4, 1)
    """
    room, size = (Room(shrinks=True), AT_ONCE) if batch_size == "auto" else (Room(), batch_size)
    if size < 1:
        raise ConfigError(f"batch_size is {batch_size}: expected at least 1")
    grouped = as_grouped(data, batch_fn=batch_fn)
    several = multi_label or grouped.task == "multilabel"
    with _borrowed(model, device) as network:
        room(lambda n: settle(network.model, grouped, multi_label=several, place=network.placed, rows=n), ROWS)
        share = Share(len(grouped))
        own = share.of(grouped)
        outputs = room(lambda n: torch.cat([network(b.inputs) for b in own.batches(n)]), size)
        outputs = share.gather(outputs.to(network.device)).cpu()  # (n, outputs)
        reading = reading_of(network.model)
        logits, others = meant(outputs, reading)
        _check_logits(logits, several, grouped)
        if reading.answer_is is None and reading.before is None:
            made_by = network.last_operations(grouped.inputs(slice(0, 2)))
            labels = several or (reading.output is not None and not reading.one_vs_rest)
            _check_range(outputs, made_by, labels)
        reverse = positive_first(network.model, grouped)
    if reverse:
        logits = turned(logits)
    one = reading.output is not None
    scores = fairness.probabilities(logits.double(), multi_label=several).numpy()
    return Predictions(
        scores=scores,
        targets=grouped.targets.numpy(),
        groups=grouped.groups.numpy(),
        attributes=grouped.attributes,
        task=grouped.task,
        classes=grouped.classes,
        clusters=None if grouped.clusters is None else grouped.clusters.numpy(),
        rows=grouped.rows.numpy(),
        content_hash=grouped.content_hash,
        skipped=grouped.skipped,
        assumed=tuple(dict.fromkeys((*grouped.assumed, *reading.assumed))),
        others=torch.sigmoid(others.double()).numpy() if one else None,
        other_outputs=reading.others(outputs.shape[1]) if one else (),
    )


def audit(
    model_or_predictions: nn.Module | Predictions,
    data: Any = None,
    *,
    threshold: float | None = None,
    level: float = 0.95,
    intervals: bool = True,
    resamples: int = 2000,
    seed: int = 0,
    **options: Any,
) -> AuditReport:
    """Measure how a model does for each group, and how far apart the groups are.

    Args:
        model_or_predictions: a model that gives logits, or the `Predictions` of any model.
        data: for a model: `GroupedData`, or what yields ``(inputs, targets, groups)`` batches.
        threshold: from which probability a case counts as positive; by default the model's own (`bmft.read_as`, or the
            patch beside a calibrated checkpoint), else 0.5.
        level, intervals, resamples, seed: see `bmft.auditing.audit_predictions`.
        **options: for `predict`: `batch_size`, `device`, `batch_fn`, `multi_label`.

    Raises:
        ConfigError: `threshold` or `level` is not between 0 and 1, or data are missing or given twice.
        DataError: there is no sample.
        CheckpointError: the model gives probabilities instead of logits.

    >>> from bmft.data import from_arrays
    >>> data = from_arrays(torch.eye(4), [0, 1, 0, 1], [0, 0, 1, 1])
    >>> audit(nn.Linear(4, 1), data, intervals=False).n
    4
    """
    if isinstance(model_or_predictions, Predictions):
        if data is not None or options:
            raise ConfigError("predictions were given: data and the options of predict go with a model")
        predictions = model_or_predictions
    elif data is None:
        raise ConfigError("a model was given without data to audit it on")
    else:
        predictions = predict(model_or_predictions, data, **options)
        threshold = reading_of(model_or_predictions).threshold if threshold is None else threshold
    threshold = 0.5 if threshold is None else threshold
    return audit_predictions(
        predictions, threshold=threshold, level=level, intervals=intervals, resamples=resamples, seed=seed
    )


@dataclass(frozen=True)
class _Network:
    """A model in evaluation mode on its device: inputs in, every output in full precision on the CPU out."""

    model: nn.Module
    device: torch.device
    dtype: torch.dtype

    def __call__(self, inputs: Inputs) -> Tensor:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return forward_outputs(self.model, map_tensors(self.placed, inputs)).detach().cpu()

    def last_operations(self, inputs: Inputs) -> set[str]:
        """What made the outputs, as autograd names it, views, copies and joins aside; empty where it cannot be seen."""
        with torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            tracked = map_tensors(lambda tensor: _tracked(self.placed(tensor)), inputs)
            nodes = [forward_outputs(self.model, tracked).grad_fn]
        found = set()
        while nodes:
            if (node := nodes.pop()) is None:
                continue
            if node.name().startswith(_SAME_VALUES):
                nodes += [below for below, _ in node.next_functions]
            else:
                found.add(str(node.name()))
        return found

    def placed(self, tensor: Tensor) -> Tensor:
        """A tensor where and as the model takes it."""
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)


def _tracked(tensor: Tensor) -> Tensor:
    # A copy, since a model may change its input in place, which autograd forbids for a leaf.
    return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor


@contextmanager
def _borrowed(model: nn.Module, device: str) -> Iterator[_Network]:
    """The model in evaluation mode on `device`, and afterwards exactly as it was."""
    check_values(model)
    tensors = [*model.parameters(), *model.buffers()]
    home = tensors[0].device if tensors else torch.device("cpu")
    target = home if device == "auto" and home.type != "cpu" else choose_device(device)
    data = [parameter.data for parameter in model.parameters()]
    buffers = [(module, name, b) for module in model.modules() for name, b in module.named_buffers(recurse=False)]
    try:
        with evaluating(model), kept_mark(model):
            if target != home:
                model.to(target)
            yield _full_precision(model, target)
    finally:
        if target != home:
            for parameter, tensor in zip(model.parameters(), data, strict=True):
                parameter.data = tensor
            for module, name, tensor in buffers:
                setattr(module, name, tensor)


def _full_precision(model: nn.Module, device: torch.device) -> _Network:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes & {torch.float16, torch.bfloat16}:
        model = copied(model).float()
        dtypes = {torch.float32}
    return _Network(model, device, torch.float64 if dtypes == {torch.float64} else torch.float32)


def _check_logits(logits: Tensor, multi_label: bool, data: GroupedData) -> None:
    bad = ~logits.isfinite().all(1)
    if bad.any():
        rows = ", ".join(map(str, data.rows[bad][:5].tolist()))
        raise NonFiniteError(
            f"the logits of {int(bad.sum())} of {len(bad)} samples are not finite (first: rows {rows}); "
            "check the weights and the inputs"
        )
    expected = sizes_for(data, multi_label)
    if logits.shape[1] not in expected:
        hint = ". Say which one the label is about: bmft.read_as(model, output=...)" if data.task == "binary" else ""
        raise DataError(
            f"the model has {logits.shape[1]} outputs, and the data's task is {data.task} with the classes "
            f"{', '.join(data.classes)}: expected {' or '.join(map(str, sorted(expected)))}{hint}"
        )


def _check_range(logits: Tensor, made_by: set[str], multi_label: bool) -> None:
    """Raise where logits look like probabilities: by what made them, or by where all of them lie.

    What a layer of weights made itself is no probability, wherever it happens to lie.
    """
    bounded = bool(((logits >= 0) & (logits <= 1)).all())
    squashed = any(name.startswith(_SQUASHING) for name in made_by)
    if multi_label or logits.shape[1] == 1:
        # For classes they are as good as logits.
        squashed |= any(name.startswith("LogSoftmaxBackward") for name in made_by)
    by_layer = bool(made_by) and all(name.startswith(_BY_LAYER) for name in made_by)
    if squashed or (bounded and not by_layer):
        what = "its last step is a sigmoid or softmax" if squashed else "every answer is between 0 and 1"
        raise CheckpointError(
            f"the model gives probabilities ({what}), and a second sigmoid would call every sample positive: say "
            "--answer-is probabilities, or, if they are logits after all, --answer-is logits"
        )
