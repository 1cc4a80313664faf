"""What a model says about every sample of a set, pooled: the only thing an audit looks at."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from bmft._common import MOST, Assumption, html_table, short, unknown_name
from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables import Attribute, about_classes

if TYPE_CHECKING:
    from bmft.auditing.charts import Axes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Probabilities of every sample beside its targets and groups, from any model or framework.

    Attributes:
        scores: ``(n, K)`` float64 probabilities; K is 1 for a binary label, else classes or labels.
        targets: ``(n, K)`` 0/1, one class against the rest; class numbers ``(n,)`` are taken too. Of several labels
            -1 is one that is not known, and left out of that label's figures.
        groups: ``(n, attributes)`` ids; -1 is unknown.
        attributes: name and group names of each column of `groups`.
        task: ``binary``, ``multiclass`` or ``multilabel``.
        classes: names of the columns; for a binary label of its two values.
        clusters: ``(n,)`` patient ids, or None.
        rows: ``(n,)`` row of the manifest each sample came from; default 0, 1, ...
        content_hash: of the data; None where unknown.
        skipped: unreadable images that were left out.
        assumed: what was inferred about the model, its classes, its pixels and its rows; which class is positive is
            added where nothing says it: of two the second.
        others: ``(n, others)`` probabilities of the model's other outputs, where these are of one of many; else None.
        other_outputs: what those are called.

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
    assumed: tuple[Assumption, ...] = field(default=(), repr=False)
    others: Floats | None = field(default=None, repr=False)
    other_outputs: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        scores, groups = np.asarray(self.scores, np.float64), np.asarray(self.groups, np.int64)
        scores = scores if scores.ndim == 2 else scores.reshape(len(scores), -1)
        targets = one_vs_rest(np.asarray(self.targets), scores.shape[1])
        filled = {
            "scores": scores,
            "targets": targets,
            "groups": groups if groups.ndim == 2 else groups[:, None],
            "clusters": None if self.clusters is None else np.asarray(self.clusters),
            "rows": np.asarray(self.rows) if len(self.rows) else np.arange(len(scores)),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        self._check()
        if not any(one.subject == "classes" for one in self.assumed):
            said = about_classes(self.classes, self.task, "the numbers of the targets", "classes")
            object.__setattr__(self, "assumed", (*self.assumed, said))

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        names = ", ".join(attribute.name for attribute in self.attributes)
        about = f"n={len(self)}, task={self.task!r}, classes={self.classes}, attributes=({names})"
        return short(f"Predictions({about})", 240)

    def _repr_html_(self) -> str:
        lines = [
            (attribute.name, group, int((ids == g).sum()), *self.targets[ids == g].sum(0))
            for attribute, ids in zip(self.attributes, self.groups.T, strict=True)
            for g, group in enumerate(attribute.groups)
        ]
        header = ("attribute", "group", "n", *self.columns[:MOST])
        return html_table(f"Predictions for {len(self):,} cases", header, [line[: len(header)] for line in lines])

    def plot(
        self,
        curve: Literal["roc", "reliability"] = "roc",
        *,
        attribute: str | None = None,
        output: str | None = None,
        ax: "Axes | None" = None,
    ) -> "Axes":
        """The ROC or reliability curve of every group.

        Args:
            curve: ``roc``, or ``reliability``: the observed share in five bins of equal size, with intervals.
            attribute: whose groups; the first by default.
            output: which class or label; the positive one by default, of several the first.
            ax: Matplotlib axes to draw on; by default those of a new figure.

        Raises:
            ConfigError: there is no such curve, attribute or output.

        >>> sex = Attribute("sex", ("female", "male"))
        >>> axes = Predictions([0.2, 0.9, 0.6, 0.7], [0, 1, 0, 1], [0, 0, 1, 1], (sex,)).plot()
        >>> axes.get_xlabel(), len(axes.get_lines())
        ('False positive rate', 3)
        """
        from bmft.auditing.charts import RELIABILITY_AXES, ROC_AXES, on_axes, reliability, roc, unit_square

        names = [one.name for one in self.attributes]
        for what, name, known in (("attribute", attribute, names), ("output", output, self.columns)):
            if name is not None and name not in known:
                raise ConfigError(unknown_name(what, name, known))
        place = 0 if attribute is None else names.index(attribute)
        cases = list(self.cases(place, 0 if output is None else self.columns.index(output)))
        if curve == "roc":
            draw = unit_square([roc(*case) for case in cases], **ROC_AXES)
        elif curve == "reliability":
            curves = [reliability(*case) for case in cases if len(case[1])]
            draw = unit_square(curves, **RELIABILITY_AXES)
        else:
            raise ConfigError(unknown_name("curve", curve, ("roc", "reliability")))
        return on_axes(draw, ax, height=5)

    @property
    def columns(self) -> tuple[str, ...]:
        """The name of each column of `scores`; a binary label's is its positive value."""
        return self.classes[1:] if self.task == "binary" else self.classes

    def subset(self, rows: NDArray[Any]) -> Self:
        """Those of some rows, which are numbers or true where a row is wanted.

        >>> sex = Attribute("sex", ("female", "male"))
        >>> Predictions([0.2, 0.9, 0.4], [0, 1, 1], [0, 1, 0], (sex,)).subset(np.array([2, 0])).rows.tolist()
        [2, 0]
        """
        parts: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[rows]
            for name in ("scores", "targets", "groups", "rows", "clusters", "others")
        }
        return replace(self, **parts)

    def decisions(self, threshold: float = 0.5) -> Ints:
        """``(n, K)`` 0/1: scores of at least `threshold`; for several classes the largest score."""
        if self.task != "multiclass":
            return (self.scores >= threshold).astype(np.int64)
        return np.asarray(np.eye(self.scores.shape[1], dtype=np.int64)[self.scores.argmax(1)])

    def cases(self, attribute: int, column: int) -> Iterator[tuple[str, Floats, Ints]]:
        """Each group of an attribute: its name, and scores and targets of its members where the column is known."""
        for group, name in enumerate(self.attributes[attribute].groups):
            members = (self.groups[:, attribute] == group) & (self.targets[:, column] >= 0)
            yield name, self.scores[members, column], self.targets[members, column]

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
        if self.task != "multilabel" and (self.targets < 0).any():
            rows = ", ".join(map(str, self.rows[(self.targets < 0).any(axis=1)][:5]))
            raise DataError(f"targets of -1 (first: rows {rows}): leave out the rows without a label")
        if width != len(self.attributes):
            raise DataError(f"{width} columns of groups for {len(self.attributes)} attributes")
        for attribute, ids in zip(self.attributes, self.groups.T, strict=True):
            if n and ids.max() >= len(attribute.groups):
                raise GroupError(f"{attribute.name!r} has the group id {ids.max()} and {attribute.groups}")


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
        _balanced_accuracy(scores[targets >= 0], targets[targets >= 0] == 1, cuts)
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


def one_vs_rest(targets: NDArray[Any], num_columns: int) -> Ints:
    """Targets as ``(n, K)`` zeros and ones, one column per class or label; `bmft.fairness` has it for tensors.

    Args:
        targets: ``(n,)`` 0/1 where `num_columns` is 1, else class indices; or ``(n, K)`` 0/1, kept as is, -1 or NaN
            where a label is not known.
        num_columns: K, the columns of the scores.

    Raises:
        DataError: a class index or a shape that does not fit `num_columns`, or a value other than 0 and 1.

    >>> one_vs_rest(np.array([0, 2]), 3).tolist()
    [[1, 0, 0], [0, 0, 1]]
    """
    if targets.dtype.kind == "f":
        targets = np.where(np.isnan(targets), -1, targets)
    if targets.ndim == 1 and num_columns > 1:
        if ((targets < 0) | (targets >= num_columns)).any():
            raise DataError(f"targets hold a class outside 0..{num_columns - 1}, the scores' columns")
        return np.asarray(targets[:, None] == np.arange(num_columns), np.int64)
    columns = targets[:, None] if targets.ndim == 1 else targets
    if columns.ndim != 2 or columns.shape[1] != num_columns:
        raise DataError(f"targets have the shape {tuple(targets.shape)}: expected {num_columns} columns")
    if ((columns != 0) & (columns != 1) & ((columns != -1) | (targets.ndim == 1))).any():
        raise DataError("targets hold a value other than 0 and 1: classes need one score each")
    return np.asarray(columns, np.int64)
