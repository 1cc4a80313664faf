"""Audit a model: rates per group, gaps between groups, counts and intervals, always on pooled predictions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bmft._common import SHOWN, as_json, html_table, in_words, plain, short, unknown_name, with_interval
from bmft.auditing.gap_intervals import summarise_intervals
from bmft.auditing.group_intervals import Sample
from bmft.auditing.metrics import (
    METRICS,
    Bools,
    Column,
    Floats,
    Ints,
    Summary,
    count,
    group_metrics,
    group_shares,
    summarise,
    summarise_gaps,
)
from bmft.auditing.predictions import Predictions
from bmft.auditing.swapped import looks_swapped
from bmft.auditing.tidy import Row, forest_rows, rows_of
from bmft.errors import ConfigError, DataError
from bmft.stats import Interval
from bmft.tables import Attribute

if TYPE_CHECKING:
    import pandas as pd

    from bmft.auditing.charts import Axes

SCHEMA = 1
CONSTANT = "constant predictor"
Figures = dict[str, Any]
HEADLINE = "equalized_odds_difference"


@dataclass(frozen=True, eq=False, repr=False)
class AuditReport:
    """The result of an audit: figures of everybody and of every group, and the gaps between the groups.

    A figure that cannot be measured on these samples is NaN. For several classes or labels each figure is the mean over
    them; beside it stand ``by_class``, with the figures of each class or label, and ``worst_class``, with the worst.

    Attributes:
        n: The number of samples.
        unknown: For each attribute, the number of samples whose group is unknown. They count in `overall` only.
        overall: The metrics over everybody, by name.
        by_group: attribute -> group -> metric -> value. Each group also has ``n``, its number of samples, and
            ``n_positive``, how many of them are positive (of several classes, those of the rarest).
        gaps: attribute -> gap -> value: how far apart the groups are.
        intervals: The same three, with ``[low, high]`` in place of each value; empty if they were not asked for.
        threshold: Scores of at least this are positive decisions; for several classes the largest score decides.
        level: The two-sided level of the intervals, such as 0.95.
        task: ``binary``, ``multiclass`` or ``multilabel``.
        classes: The names of the classes or labels.
        clusters: The number of patients, or None where patients are not known.
        flags: Warnings that make the figures mean little, such as ``"constant predictor"`` where all answers are equal.
        content_hash: SHA-256 of the data, or None where it is not known.
        skipped: The number of unreadable images that were left out.
        assumed: What was inferred about the model and the data, by subject, and from where.
        predictions: What was audited; it is not written to the file.
    """

    n: int
    unknown: Mapping[str, int]
    overall: Figures = field(repr=False)
    by_group: Mapping[str, Mapping[str, Figures]] = field(repr=False)
    gaps: Mapping[str, Figures] = field(repr=False)
    intervals: Figures = field(repr=False)
    threshold: float
    level: float
    task: str
    classes: tuple[str, ...]
    clusters: int | None
    flags: tuple[str, ...]
    content_hash: str | None
    skipped: int = 0
    assumed: Mapping[str, Any] = field(default_factory=dict, repr=False)
    predictions: Predictions | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        parts = [f"n={self.n}", f"ROC AUC {with_interval(*self.figure('overall', 'roc_auc'))}"]
        parts += [f"{name}: odds gap {with_interval(*self.figure('gaps', name, HEADLINE))}" for name in self.gaps]
        return short(f"AuditReport({', '.join([*parts, *self.flags])})", 240)

    def _repr_html_(self) -> str:
        lines = [("", "everyone", self.n, *self._cells("overall"))]
        for attribute, groups in self.by_group.items():
            lines += [
                (attribute, group, figures["n"], *self._cells("by_group", attribute, group))
                for group, figures in groups.items()
            ]
            lines.append((attribute, "largest difference", "", *self._cells("gaps", attribute, end="_difference")))
        header = ("attribute", "group", "n", *SHOWN.values())
        caption = f"Audit of {self.n:,} cases{'; '.join(['', *self.flags])}"
        return html_table(". ".join([caption, *in_words(self.assumed)]), header, lines)

    def to_frame(self) -> "pd.DataFrame":
        """Every figure as a row of ``attribute, group, metric, value, low, high, n``.

        Everybody's figures have neither attribute nor group, a gap has no group; ``n`` is how many samples the
        group has. For several classes or labels there is ``output``, too: "" is their mean, ``worst`` the worst.

        >>> sex = Attribute("sex", ("female", "male"))
        >>> report = audit_predictions(Predictions([0.2, 0.9, 0.6, 0.7], [0, 1, 0, 1], [0, 0, 1, 1], (sex,)))
        >>> report.to_frame().query("group == 'male' and metric == 'accuracy'").round(2).values.tolist()
        [['sex', 'male', 'accuracy', 0.5, 0.09, 0.91, 2]]
        """
        import pandas as pd

        frame = pd.DataFrame(self._rows(), columns=Row._fields)
        return frame if self.task != "binary" else frame.drop(columns="output")

    def plot(
        self,
        metric: str = "gaps",
        *,
        attribute: str | None = None,
        after: "AuditReport | None" = None,
        ax: "Axes | None" = None,
    ) -> "Axes":
        """A forest plot: the main gaps, or one metric of every group, with its interval.

        Args:
            metric: ``gaps``, or a metric such as ``roc_auc``.
            attribute: of this attribute alone.
            after: an audit of the same rows to draw below each line.
            ax: Matplotlib axes to draw on; by default those of a new figure.

        Raises:
            ConfigError: there is no such metric or attribute.

        >>> sex = Attribute("sex", ("female", "male"))
        >>> report = audit_predictions(Predictions([0.2, 0.9, 0.6, 0.7], [0, 1, 0, 1], [0, 0, 1, 1], (sex,)))
        >>> report.plot("accuracy").get_xlabel()
        'Accuracy'
        """
        from bmft.auditing.charts import forest, on_axes

        attributes = list(self.by_group) if attribute is None else [attribute]
        if unknown := [name for name in attributes if name not in self.by_group]:
            raise ConfigError(unknown_name("attribute", unknown[0], self.by_group))
        if metric not in ("gaps", *METRICS):
            raise ConfigError(unknown_name("metric", metric, ("gaps", *METRICS)))
        rows = forest_rows(self._rows(), [] if after is None else after._rows(), attributes, metric)
        draw = forest(rows, labels=("before", "after"), from_zero=metric == "gaps")
        axes = on_axes(draw, ax, height=0.9 + 0.36 * len(rows), above=True)
        axes.set_xlabel("largest difference between two groups" if metric == "gaps" else METRICS[metric].name)
        return axes

    def _rows(self) -> list[Row]:
        return list(rows_of(self.overall, self.by_group, self.gaps, self.intervals, self.n))

    def figure(self, *path: str) -> tuple[float, Any]:
        """A figure and its interval, None where it has none, by its place, such as ``"overall", "roc_auc"``."""
        value, span = getattr(self, path[0]), self.intervals.get(path[0])
        for key in path[1:]:
            value, span = value[key], (span or {}).get(key)
        return value, span

    def _cells(self, *path: str, end: str = "") -> list[str]:
        return [with_interval(*self.figure(*path, name + end)) for name in SHOWN]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN is None."""
        kept = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "predictions"}
        return {"schema": SCHEMA, **kept}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AuditReport":
        """The report that `to_dict` made into `values`, without its predictions.

        Raises:
            DataError: not an audit, or one that a newer version wrote.
        """
        if values.get("schema") != SCHEMA:
            raise DataError(f"audit: schema is {values.get('schema')!r}, expected {SCHEMA}: not by this version")
        names = [f.name for f in fields(cls) if f.name not in ("predictions", "skipped", "assumed")]
        if missing := [name for name in names if name not in values]:
            raise DataError(f"audit: no {', '.join(missing)}: not an audit that bmft wrote")
        figures = {name: _measured(values[name]) for name in ("overall", "by_group", "gaps", "intervals")}
        texts = {name: tuple(values[name]) for name in ("classes", "flags")}
        # Audits of 0.1.0's first days have neither.
        counted = {"skipped": int(values.get("skipped") or 0), "assumed": values.get("assumed") or {}}
        return cls(**{**{name: values[name] for name in names}, **figures, **texts, **counted})


def audit_predictions(
    predictions: Predictions,
    *,
    threshold: float = 0.5,
    level: float = 0.95,
    intervals: bool = True,
    resamples: int = 2000,
    seed: int = 0,
) -> AuditReport:
    """Measure how a model does for each group, and how far apart the groups are, from what it said.

    Args:
        predictions: of any model, in any framework.
        threshold: scores of at least this are positive; for several classes the largest score decides.
        level: two-sided level of the intervals.
        intervals: give them; without them an audit takes milliseconds.
        resamples: of the bootstrap, where there is no closed form.
        seed: of the bootstrap: same seed, same intervals.

    Raises:
        ConfigError: `threshold` or `level` is not between 0 and 1.
        DataError: there is no sample.

    >>> sex = Attribute("sex", ("female", "male"))
    >>> predictions = Predictions([0.2, 0.9, 0.6, 0.7], [0, 1, 0, 1], [0, 0, 1, 1], (sex,))
    >>> report = audit_predictions(predictions, intervals=False)
    >>> report.by_group["sex"]["male"]["false_positive_rate"], report.gaps["sex"]["equalized_odds_difference"]
    (1.0, 1.0)
    """
    for name, value in (("threshold", threshold), ("level", level)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} is {value}: expected a number between 0 and 1")
    if not len(predictions):
        raise DataError("there is no sample to audit")
    ask = _Audit.of(predictions, threshold, (level, resamples, seed) if intervals else None)
    everyone = ask.side(Attribute("all", ("all",)), np.zeros(len(predictions), np.int64))
    pairs = zip(predictions.attributes, predictions.groups.T, strict=True)
    sides = {attribute.name: ask.side(attribute, ids) for attribute, ids in pairs}
    return AuditReport(
        n=len(predictions),
        unknown={name: side.unknown for name, side in sides.items()},
        overall=everyone.figures["all"],
        by_group={name: side.figures for name, side in sides.items()},
        gaps={name: side.gaps for name, side in sides.items()},
        intervals={
            "overall": everyone.figure_intervals["all"],
            "by_group": {name: side.figure_intervals for name, side in sides.items()},
            "gaps": {name: side.gap_intervals for name, side in sides.items()},
        },
        threshold=float(threshold),
        level=float(level),
        task=predictions.task,
        classes=predictions.classes,
        clusters=None if predictions.clusters is None else len(np.unique(predictions.clusters)),
        flags=_flags(predictions, ask.columns, everyone.figures["all"]),
        content_hash=predictions.content_hash,
        skipped=predictions.skipped,
        assumed=as_json(predictions.assumed),
        predictions=predictions,
    )


class _Side(NamedTuple):
    """What was found for one attribute, or for everybody as its only group."""

    unknown: int
    figures: dict[str, Figures]
    gaps: Figures
    figure_intervals: dict[str, Figures]
    gap_intervals: Figures


@dataclass(frozen=True)
class _Audit:
    """What every attribute is measured by."""

    columns: list[Column]
    names: tuple[str, ...]
    right: Bools | None  # for several classes: the samples whose largest score is the right one's
    clusters: Ints | None
    precision: tuple[float, int, int] | None  # level, resamples and seed; None: no intervals

    @staticmethod
    def of(predictions: Predictions, threshold: float, precision: tuple[float, int, int] | None) -> "_Audit":
        called, positive = predictions.decisions(threshold) == 1, predictions.targets == 1
        columns = [
            Column(scores, decisions, targets, None if known.all() else known)
            for scores, decisions, targets, known in zip(
                predictions.scores.T, called.T, positive.T, (predictions.targets >= 0).T, strict=True
            )
        ]
        right = (called & positive).any(1) if predictions.task == "multiclass" else None
        return _Audit(columns, predictions.columns, right, predictions.clusters, precision)

    def side(self, attribute: Attribute, groups: Ints) -> _Side:
        size = len(attribute.groups)
        accuracy = None if self.right is None else group_shares(self.right, groups, size)
        metrics = summarise([group_metrics(column, groups, size) for column in self.columns], accuracy)
        gaps = summarise_gaps(metrics, classes=self.right is not None)
        spans, gap_spans = self._intervals(metrics, groups, size)
        counts = [count(column, groups, size) for column in self.columns]
        figures, figure_intervals = {}, {}
        for g, name in enumerate(attribute.groups):
            sizes = [{"n": int(c.n[g]), "n_positive": int(c.positive[g])} for c in counts]
            figures[name] = self._nested(metrics, partial(_at, g), sizes)
            figure_intervals[name] = self._nested(spans, partial(_ends_at, g))
        return _Side(
            unknown=int((groups < 0).sum()),
            figures=figures,
            gaps=self._nested(gaps, float),
            figure_intervals=figure_intervals,
            gap_intervals=self._nested(gap_spans, _ends),
        )

    def _intervals(self, metrics: Summary, groups: Ints, size: int) -> tuple[Summary, Summary]:
        if self.precision is None:
            return Summary({}, {}, ()), Summary({}, {}, ())
        level, resamples, seed = self.precision
        sample = Sample(groups, size, self.clusters, resamples, seed)
        return summarise_intervals(self.columns, metrics, sample, level, self.right)

    def _nested(self, summary: Summary, pick: Callable[[Any], Any], sizes: Sequence[Mapping[str, int]] = ()) -> Figures:
        """The figures that `pick` takes out of a summary, after the sample sizes, as a report has them."""
        picked = [{name: pick(value) for name, value in column.items()} for column in summary.columns]
        first = dict(min(sizes, key=lambda size: size["n_positive"], default={}))
        nested = {**first, **{name: pick(value) for name, value in summary.mean.items()}}
        if picked:
            classes = [{**size, **column} for size, column in zip(sizes or [{}] * len(picked), picked, strict=True)]
            nested["worst_class"] = {name: pick(value) for name, value in summary.worst.items()}
            nested["by_class"] = dict(zip(self.names, classes, strict=True))
        return nested


def _at(group: int, values: Floats) -> float:
    return float(values[group])


def _ends_at(group: int, interval: Interval) -> list[float]:
    return [float(end[group]) for end in interval]


def _ends(interval: Interval) -> list[float]:
    return [float(end) for end in interval]


def _flags(predictions: Predictions, columns: Sequence[Column], figures: Figures) -> tuple[str, ...]:
    """What a reader has to know before the figures: swapped classes, and where every answer is the same."""
    same = [_constant(column) for column in columns]
    if all(same):
        return (CONSTANT,)
    low = figures.get("worst_class", figures)["roc_auc"] < 0.5
    found = [swapped] if low and (swapped := looks_swapped(predictions)) else []
    found += [f"{name}: every decision is the same" for name, one in zip(predictions.columns, same, strict=True) if one]
    for attribute, ids in zip(predictions.attributes, predictions.groups.T, strict=True):
        for g, group in enumerate(attribute.groups):
            own = [column.where(column.among(ids) == g) for column in columns]
            # With one label only, equal decisions may all be right.
            mixed = any(len(np.unique(column.targets)) > 1 for column in own)
            if mixed and all(_constant(column) for column in own):
                found.append(f"{attribute.name}={group}: every decision is the same")
    return tuple(found)


def _constant(column: Column) -> bool:
    return bool(np.ptp(column.scores) == 0 or column.decisions.all() or not column.decisions.any())


def _measured(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _measured(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_measured(inner) for inner in value]
    return math.nan if value is None else value
