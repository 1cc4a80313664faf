"""What a model says about every sample of a set, pooled: the only thing an audit looks at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bmft import fairness
from bmft.copies import check_values, copied
from bmft.data import Attribute, GroupedData, Inputs, as_grouped, map_tensors
from bmft.devices import Room, choose_device
from bmft.errors import CheckpointError, ConfigError, DataError, GroupError, NonFiniteError
from bmft.models import forward_logits
from bmft.processes import Share

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Nodes of autograd's graph that pass values on as they are.
_SAME_VALUES = tuple(
    f"{name}Backward"
    for name in ("Alias", "Clone", "Expand", "Permute", "Reshape", "Select", "Slice", "Squeeze", "T",
    "ToCopy",
                 "Transpose", "Unsqueeze", "UnsafeView", "View")
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of every sample beside its targets and groups, from any model or framework.

    Attributes:
        scores: ``(n, K)`` float64 probabilities; K is 1 for a binary label, else classes or labels.
        targets: ``(n, K)`` 0/1, one class against the rest; class numbers ``(n,)`` are taken too.
        groups: ``(n, attributes)`` ids; -1 is unknown.
        attributes: name and group names of each column of `groups`.
        task: ``binary``, ``multiclass`` or ``multilabel``.
        classes: names of the columns; for a binary label of its two values.
        clusters: ``(n,)`` patient ids, or None.
        rows: ``(n,)`` row of the manifest each sample came from; default 0, 1, ...
        content_hash: of the data; None where unknown.
        skipped: unreadable images that were left out.

    One column may be given as ``(n,)`` each time.

    Raises:
        DataError: shapes do not belong together, or a score is no probability.
        GroupError: a group id has no name in its attribute.

    >>> sex = Attribute("sex", ("female", "male"))
    >>> predictions = Predictions([0.2, 0.9], [0, 1], [0, 1], (sex,))
    >>> predictions.decisions(0.5).tolist()
    [[0], [1]]
    """

    scores: Floats = field(repr=False)
    targets: Ints = field(repr=False)
    groups: Ints = field(repr=False)
    attributes: tuple[Attribute, ...]
    task: str = "binary"
    classes: tuple[str, ...] = ("0", "1")
    clusters: Ints | None = field(default=None, repr=False)
    rows: Ints = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    content_hash: str | None = field(default=None, repr=False)
    skipped: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        scores, groups = np.asarray(self.scores, np.float64), np.asarray(self.groups, np.int64)
        scores = scores if scores.ndim == 2 else scores.reshape(len(scores), -1)
        targets = fairness.one_vs_rest(torch.from_numpy(np.asarray(self.targets)), scores.shape[1])
        filled = {
            "scores": scores,
            "targets": targets.numpy().astype(np.int64),
            "groups": groups if groups.ndim == 2 else groups[:, None],
            "clusters": None if self.clusters is None else np.asarray(self.clusters),
            "rows": np.asarray(self.rows) if len(self.rows) else np.arange(len(scores)),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        self._check()

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def columns(self) -> tuple[str, ...]:
        """The name of each column of `scores`; a binary label's is its positive value."""
        return self.classes[1:] if self.task == "binary" else self.classes

    def decisions(self, threshold: float = 0.5) -> Ints:
        """``(n, K)`` 0/1: scores of at least `threshold`; for several classes the largest score."""
        if self.task != "multiclass":
            return (self.scores >= threshold).astype(np.int64)
        return np.asarray(np.eye(self.scores.shape[1], dtype=np.int64)[self.scores.argmax(1)])

    def _check(self) -> None:
        n, width = len(self.scores), self.groups.shape[1]
        parts = (self.groups, self.targets, self.rows, self.clusters)
        lengths = {len(part) for part in parts if part is not None}
        if lengths != {n}:
            raise DataError(f"{n} scores, but another number of targets, groups, rows or clusters")
        if len(self.columns) != self.scores.shape[1]:
            raise DataError(f"{self.scores.shape[1]} columns of scores for the classes {self.classes}")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise DataError("a score is not in [0, 1]: expected probabilities, not logits")
        if width != len(self.attributes):
            raise DataError(f"{width} columns of groups for {len(self.attributes)} attributes")
        for attribute, ids in zip(self.attributes, self.groups.T, strict=True):
            if n and ids.max() >= len(attribute.groups):
                raise GroupError(f"{attribute.name!r} has the group id {ids.max()} and {attribute.groups}")


def predict(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int | Literal["auto"] = 64,
    device: str = "auto",
    batch_fn: Callable[[Any], tuple[Inputs, Tensor, Tensor]] | None = None,
    multi_label: bool = False,
) -> Predictions:
    """Probabilities of a model for every sample of `data`, in evaluation mode and full precision.

    The model comes back as it was given: device, training flags and weights, also when something fails.

    Args:
        model: gives logits: one per sample (binary), two (two classes), or one per class or label.
        data: `GroupedData`, or what yields ``(inputs, targets, groups)`` batches, possibly by `batch_fn`.
        batch_size: samples at once; ``"auto"`` is 64, or as many of them as memory has room for.
        device: where to run; ``"auto"`` is where the model is, or for one on the CPU a CUDA device if any.
        batch_fn: one batch -> ``(inputs, targets, groups)``.
        multi_label: every output is a label of its own; so taken where the data have several labels.

    Raises:
        CheckpointError: the model gives probabilities instead of logits.
        NonFiniteError: a logit is not finite.
        DataError: the model's outputs do not fit the data's classes.

    >>> from bmft.data import from_arrays
    >>> data = from_arrays(torch.eye(4), [0, 1, 0, 1], [0, 0, 1, 1])
    >>> predict(nn.Linear(4, 1), data).scores.shape
    (4, 1)
    """
    room, size = (Room(shrinks=True), 64) if batch_size == "auto" else (Room(), batch_size)
    if size < 1:
        raise ConfigError(f"batch_size is {batch_size}: expected at least 1")
    grouped = as_grouped(data, batch_fn=batch_fn)
    several = multi_label or grouped.task == "multilabel"
    with _borrowed(model, device) as network:
        share = Share(len(grouped))
        own = share.of(grouped)
        logits = room(lambda n: torch.cat([network(b.inputs) for b in own.batches(n)]), size)
        logits = share.gather(logits.to(network.device)).cpu()  # (n, outputs)
        last = network.last_operation(grouped.inputs(slice(0, 2)))
    _check_logits(logits, last, several, grouped)
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
    )


def pick_threshold(predictions: Predictions) -> float:
    """The threshold with the best balanced accuracy, mean over labels; of equals the one closest to 0.5.

    It lies halfway between two neighbouring scores, so that rounding on another machine changes no decision.

    Raises:
        ConfigError: for several classes the largest score decides and there is no threshold.
        DataError: a label has only positives or only negatives.

    >>> sex = Attribute("sex", ("female", "male"))
    >>> pick_threshold(Predictions([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [0, 1, 0, 1], (sex,)))
    0.25
    """
    if predictions.task == "multiclass":
        raise ConfigError("a threshold cannot be picked for several classes: the largest score decides")
    cuts = np.unique(predictions.scores)
    cuts = (cuts[1:] + cuts[:-1]) / 2 if len(cuts) > 1 else np.array([0.5])
    curves = [
        _balanced_accuracy(scores, targets == 1, cuts)
        for scores, targets in zip(predictions.scores.T, predictions.targets.T, strict=True)
    ]
    mean = np.mean(curves, axis=0)
    best = cuts[mean >= mean.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def _balanced_accuracy(scores: Floats, positive: NDArray[np.bool_], cuts: Floats) -> Floats:
    if positive.all() or not positive.any():
        raise DataError("a threshold cannot be picked: a label has only positives or only negatives")
    missed = np.searchsorted(np.sort(scores[positive]), cuts) / positive.sum()
    rejected = np.searchsorted(np.sort(scores[~positive]), cuts) / (~positive).sum()
    return np.asarray((1 - missed + rejected) / 2)


@dataclass(frozen=True)
class _Network:
    """A model in evaluation mode on its device: inputs in, logits in full precision on the CPU out."""

    model: nn.Module
    device: torch.device
    dtype: torch.dtype

    def __call__(self, inputs: Inputs) -> Tensor:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return forward_logits(self.model, map_tensors(self._placed, inputs)).detach().cpu()

    def last_operation(self, inputs: Inputs) -> str:
        """What made the logits, as autograd names it, views and copies aside; "" where it cannot be seen."""
        with torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            tracked = map_tensors(lambda tensor: _tracked(self._placed(tensor)), inputs)
            node = forward_logits(self.model, tracked).grad_fn
        while node is not None and node.name().startswith(_SAME_VALUES):
            node = node.next_functions[0][0]
        return "" if node is None else str(node.name())

    def _placed(self, tensor: Tensor) -> Tensor:
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
    modules = list(model.modules())
    training = [module.training for module in modules]
    data = [parameter.data for parameter in model.parameters()]
    buffers = [(module, name, b) for module in modules for name, b in module.named_buffers(recurse=False)]
    try:
        model.eval()
        if target != home:
            model.to(target)
        yield _full_precision(model, target)
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
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


def _check_logits(logits: Tensor, last: str, multi_label: bool, data: GroupedData) -> None:
    bad = ~logits.isfinite().all(1)
    if bad.any():
        rows = ", ".join(map(str, data.rows[bad][:5].tolist()))
        raise NonFiniteError(
            f"the logits of {int(bad.sum())} of {len(bad)} samples are not finite (first: rows {rows}); "
            "check the weights and the inputs"
        )
    shares = not multi_label and logits.shape[1] > 1 and bool((logits >= 0).all())
    sums_to_one = shares and bool(torch.isclose(logits.sum(1), torch.ones(()).to(logits), atol=1e-4).all())
    if last.startswith(("SigmoidBackward", "SoftmaxBackward")) or sums_to_one:
        raise CheckpointError(
            "the model gives probabilities (its last step is a sigmoid or softmax): logits are expected: a "
            "second sigmoid calls every sample positive. Remove the last step from the model."
        )
    expected = _outputs(data, multi_label)
    if logits.shape[1] not in expected:
        raise DataError(
            f"the model has {logits.shape[1]} outputs, and the data's task is {data.task} with the classes "
            f"{', '.join(data.classes)}: expected {' or '.join(map(str, expected))}"
        )


def _outputs(data: GroupedData, multi_label: bool) -> tuple[int, ...]:
    """The numbers of outputs that fit the data."""
    if data.task == "binary":
        return (1,) if multi_label else (1, 2)
    return (len(data.classes),)
