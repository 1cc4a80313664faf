"""What a report and a notebook draw alike: estimates with intervals, curves, trade-offs; numbers in, axes filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes as Axes
from numpy.typing import NDArray

from bmft.stats import reliability_bins, roc_points, wilson

Floats = NDArray[np.float64]
_MARKERS = "osD^vPX*"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


class Paint(NamedTuple):
    """The colours of a chart by what they are for."""

    ink: str
    muted: str
    grid: str
    paper: str
    before: str
    after: str
    series: tuple[str, ...]


# A report's colours on white paper; the style sheet of its page has the same.
SCREEN = Paint(
    ink="#1b1f24",
    muted="#57606a",
    grid="#d8dee4",
    paper="#ffffff",
    before="#6b7480",
    after="#0067a5",
    series=("#0072b2", "#c2500a", "#00795a", "#9c3f7f", "#866200", "#4b4f55", "#5a4fb0", "#a3162f"),
)


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; NaN where it could not be measured."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot; `after` is None where there is only one model."""

    label: str
    before: Estimate
    after: Estimate | None = None


@dataclass(frozen=True)
class Curve:
    """One line in the unit square, with an interval around each point where there is one."""

    label: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Point:
    """One epoch, trial or method in the plane of gap and AUC."""

    gap: float
    auc: float
    series: str
    eligible: bool = True
    chosen: bool = False


@dataclass(frozen=True)
class Spot:
    """One method of a comparison: where its mean lies, how far the seeds scatter, and what is written in it."""

    text: str
    gap: Estimate
    auc: Estimate


def roc(label: str, scores: Floats, targets: NDArray[np.int64]) -> Curve:
    """The ROC curve of some scores; empty where one of the two classes is absent."""
    return Curve(label, *roc_points(scores, targets))


def reliability(label: str, scores: Floats, targets: NDArray[np.int64]) -> Curve:
    """Observed share against mean predicted probability in five bins of equal size, with Wilson's intervals."""
    mean, positives, n = reliability_bins(scores, targets).T
    low, high = wilson(positives, n)
    return Curve(label, mean, positives / n, np.asarray(low), np.asarray(high))


ROC_AXES = {"x": "False positive rate", "y": "True positive rate"}
RELIABILITY_AXES = {"x": "Predicted probability", "y": "Observed share"}
Draw = Callable[[Axes, Paint], None]


def style(paint: Paint) -> dict[Any, Any]:
    """Matplotlib's settings for a chart in these colours."""
    return {
        "text.parse_math": False,  # a group called "$5k$" is a name, not a formula
        "font.size": 11,
        "axes.labelsize": 11,
        "xtick.labelsize": 10.5,
        "ytick.labelsize": 10.5,
        "legend.fontsize": 10.5,
        "text.color": paint.ink,
        "axes.labelcolor": paint.muted,
        "xtick.color": paint.muted,
        "ytick.color": paint.muted,
        "xtick.labelcolor": paint.muted,
        "ytick.labelcolor": paint.ink,
        "axes.edgecolor": paint.grid,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": paint.grid,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
    }


def on_axes(draw: Draw, axes: Axes | None, *, height: float = 3.6, above: bool = False) -> Axes:
    """`draw` on the axes given, else on those of a new pyplot figure, which a notebook then shows; and the axes.

    Axes that are given keep their own style; a new figure has the report's. The legend is where there is room, or
    `above` the axes.
    """
    own: Mapping[Any, Any] = {"text.parse_math": False} if axes is not None else style(SCREEN)
    with matplotlib.rc_context(dict(own)):
        if axes is None:
            from matplotlib import pyplot

            _, axes = pyplot.subplots(figsize=(5.2, height), layout="constrained")
        draw(axes, SCREEN)
        if labels := axes.get_legend_handles_labels()[1]:
            place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": min(3, len(labels))} if above else {}
            axes.legend(**place)
    return axes


def forest(rows: Sequence[ForestRow], *, labels: tuple[str, str] = ("", ""), from_zero: bool = False) -> Draw:
    """Estimates with intervals, one line per row, before (hollow) above after (filled)."""
    paired, names = any(row.after is not None for row in rows), [short_label(row.label) for row in rows]

    def draw(axes: Axes, paint: Paint) -> None:
        for position, row in enumerate(rows):
            shift = 0.16 if row.after is not None else 0.0
            _whisker(axes, row.before, position - shift, paint, hollow=paired)
            if row.after is not None:
                _whisker(axes, row.after, position + shift, paint, hollow=False)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        if from_zero:
            axes.axvline(0, color=paint.ink, linewidth=1)
        if paired:
            axes.plot([], [], "o-", color=paint.before, markerfacecolor=paint.paper, label=labels[0])
            axes.plot([], [], "D-", color=paint.after, label=labels[1])

    return draw


def unit_square(curves: Sequence[Curve], *, x: str, y: str) -> Draw:
    """ROC or reliability curves with the diagonal, told apart by colour, dash and marker."""

    def draw(axes: Axes, paint: Paint) -> None:
        axes.plot([0, 1], [0, 1], color=paint.muted, linewidth=0.8, dashes=(2, 3))
        for index, curve in enumerate(curves):
            color = paint.series[index % len(paint.series)]
            if curve.low is not None and curve.high is not None:
                axes.vlines(curve.x, curve.low, curve.high, color=color, linewidth=1, alpha=0.45)
            axes.plot(
                curve.x,
                curve.y,
                label=short_label(curve.label),
                color=color,
                linestyle=_DASHES[index % len(_DASHES)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4.5,
                markevery=_some(len(curve.x), index),
            )
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y)
        axes.grid()

    return draw


def tradeoff(points: Sequence[Point], *, x: str, y: str) -> Draw:
    """Gap against AUC: one point per epoch; hollow where a condition was not met, ringed where chosen."""

    def draw(axes: Axes, paint: Paint) -> None:
        for index, name in enumerate(dict.fromkeys(point.series for point in points)):
            color, marker = paint.series[index % len(paint.series)], _MARKERS[index % len(_MARKERS)]
            for eligible in (False, True):
                chosen = [p for p in points if p.series == name and p.eligible is eligible]
                axes.plot(
                    [p.gap for p in chosen],
                    [p.auc for p in chosen],
                    linestyle="none",
                    marker=marker,
                    color=color,
                    markerfacecolor=color if eligible else paint.paper,
                    markersize=6,
                )
            axes.plot([], [], linestyle="none", marker=marker, color=color, label=short_label(name))
        for point in points:
            if point.chosen:
                axes.plot([point.gap], [point.auc], "o", markersize=14, color=paint.ink, markerfacecolor="none")
                axes.annotate("chosen", (point.gap, point.auc), xytext=(0, 11), textcoords="offset points", ha="center")
        axes.set(xlabel=x, ylabel=y)
        axes.margins(0.12)
        axes.grid()

    return draw


def methods(spots: Sequence[Spot]) -> Draw:
    """Gap against AUC of every method, the untouched model first; a line joins those that no other beats in both."""
    front = undominated([(spot.gap.value, spot.auc.value) for spot in spots])

    def draw(axes: Axes, paint: Paint) -> None:
        axes.plot([x for x, _ in front], [y for _, y in front], color=paint.after, linewidth=1.2, zorder=1)
        for place, spot in enumerate(spots):
            x, y = spot.gap.value, spot.auc.value
            color = paint.before if place == 0 else paint.after if (x, y) in front else paint.ink
            order = 3 + 0.02 * place
            axes.plot([x], [y], "o", color=color, markersize=12, markerfacecolor=paint.paper, zorder=order)
            axes.annotate(spot.text, (x, y), ha="center", va="center", fontsize=9, color=color, zorder=order + 0.01)
        axes.margins(0.12)
        # The frame is the means': one method that the seeds scatter must not squeeze the others together.
        axes.set(xlabel="gap", ylabel="ROC AUC", xlim=axes.get_xlim(), ylim=axes.get_ylim())
        for spot in spots:
            if np.isfinite(spot.gap.low):
                axes.hlines(spot.auc.value, spot.gap.low, spot.gap.high, color=paint.muted, linewidth=0.8, zorder=1)
            if np.isfinite(spot.auc.low):
                axes.vlines(spot.gap.value, spot.auc.low, spot.auc.high, color=paint.muted, linewidth=0.8, zorder=1)
        axes.grid()

    return draw


def undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (gap, AUC) that no other beats in both, from left to right.

    >>> undominated([(0.2, 0.9), (0.1, 0.8), (0.3, 0.9)])
    [(0.1, 0.8), (0.2, 0.9)]
    """
    front: list[tuple[float, float]] = []
    for gap, negative in sorted((gap, -auc) for gap, auc in points):
        if not front or -negative > front[-1][1]:
            front.append((gap, -negative))
    return front


def _whisker(axes: Axes, estimate: Estimate, position: float, paint: Paint, *, hollow: bool) -> None:
    color = paint.before if hollow else paint.after
    if np.isnan(estimate.value):
        axes.text(
            0.01,
            position,
            "not measurable",
            color=paint.muted,
            va="center",
            fontsize=10,
            transform=axes.get_yaxis_transform(),
        )
        return
    if not np.isnan(estimate.low):
        axes.hlines(position, estimate.low, estimate.high, color=color, linewidth=2)
    axes.plot(
        [estimate.value],
        [position],
        "o" if hollow else "D",
        color=color,
        markersize=6,
        markerfacecolor=paint.paper if hollow else color,
    )


def _some(length: int, index: int) -> tuple[int, int] | None:
    """Markers on a few points only, shifted per line so that they do not lie on top of each other."""
    return None if length <= 20 else (index * length // 50, max(1, length // 6))


def label_width(text: str) -> float:
    """About how wide a browser sets a label; Chinese, Japanese and Korean letters are twice as wide."""
    return sum(11.5 if ord(letter) > 0x2E7F else 6.4 for letter in text)


def short_label(text: str, limit: float = 154, *, keep_end: bool = False) -> str:
    """A label that fits; an ellipsis stands for what does not.

    >>> short_label("a group with a very long name"), short_label("layer4.1.bn2.weight.of.a.model", keep_end=True)
    ('a group with a very lon…', '…1.bn2.weight.of.a.model')
    """
    if label_width(text) <= limit:
        return text
    while label_width(text) > limit - 6.4:
        text = text[1:] if keep_end else text[:-1]
    return "…" + text if keep_end else text + "…"
