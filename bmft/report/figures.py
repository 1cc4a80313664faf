"""Charts of a report as inline SVG: plain numbers in, one `<svg>` element out, the same bytes every time."""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bmft.report.svg import AFTER, BEFORE, GRID, INK, MUTED, PAPER, SERIES, Caption, inline

Floats = NDArray[np.float64]
WIDTH = 360  # drawing units: one is one CSS pixel on a phone, so that 11 is a readable letter everywhere
_LEFT, _EDGE = 54, 10
_MARKERS = "osD^vPX*"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a group called "$5k$" is a name, not a formula
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


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


def forest(rows: Sequence[ForestRow], caption: Caption, *, labels: tuple[str, str], from_zero: bool = False) -> str:
    """Estimates with intervals, one line per row, before (hollow) above after (filled)."""
    paired, names = any(row.after is not None for row in rows), [_short(row.label) for row in rows]

    def draw(axes: Axes) -> None:
        for position, row in enumerate(rows):
            shift = 0.16 if row.after is not None else 0.0
            _whisker(axes, row.before, position - shift, hollow=paired)
            if row.after is not None:
                _whisker(axes, row.after, position + shift, hollow=False)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        if from_zero:
            axes.axvline(0, color=INK, linewidth=1)
        if paired:
            axes.plot([], [], "o-", color=BEFORE, markerfacecolor=PAPER, label=labels[0])
            axes.plot([], [], "D-", color=AFTER, label=labels[1])

    return render(draw, caption, plot=10 + 31 * len(rows), left=_room(names), legend=labels if paired else ())


def unit_square(curves: Sequence[Curve], caption: Caption, *, x: str, y: str) -> str:
    """ROC or reliability curves with the diagonal, told apart by colour, dash and marker."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, dashes=(2, 3))
        for index, curve in enumerate(curves):
            color = SERIES[index % len(SERIES)]
            if curve.low is not None and curve.high is not None:
                axes.vlines(curve.x, curve.low, curve.high, color=color, linewidth=1, alpha=0.45)
            axes.plot(
                curve.x,
                curve.y,
                label=_short(curve.label),
                color=color,
                linestyle=_DASHES[index % len(_DASHES)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4.5,
                markevery=_some(len(curve.x), index),
            )
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y)
        axes.grid()

    names = [curve.label for curve in curves]
    return render(draw, caption, plot=WIDTH - _LEFT - _EDGE, labelled=True, legend=names)


def tradeoff(points: Sequence[Point], caption: Caption, *, x: str, y: str) -> str:
    """Gap against AUC: one point per epoch; hollow where a condition was not met, ringed where chosen."""
    series = list(dict.fromkeys(point.series for point in points))

    def draw(axes: Axes) -> None:
        for index, name in enumerate(series):
            color, marker = SERIES[index % len(SERIES)], _MARKERS[index % len(_MARKERS)]
            for eligible in (False, True):
                chosen = [p for p in points if p.series == name and p.eligible is eligible]
                axes.plot(
                    [p.gap for p in chosen],
                    [p.auc for p in chosen],
                    linestyle="none",
                    marker=marker,
                    color=color,
                    markerfacecolor=color if eligible else PAPER,
                    markersize=6,
                )
            axes.plot([], [], linestyle="none", marker=marker, color=color, label=_short(name))
        for point in points:
            if point.chosen:
                axes.plot([point.gap], [point.auc], "o", markersize=14, color=INK, markerfacecolor="none")
                axes.annotate("chosen", (point.gap, point.auc), xytext=(0, 11), textcoords="offset points", ha="center")
        axes.set(xlabel=x, ylabel=y)
        axes.margins(0.12)
        axes.grid()

    return render(draw, caption, plot=225, labelled=True, legend=series)


def bars(labels: Sequence[str], values: Sequence[float], caption: Caption, *, x: str) -> str:
    """One horizontal bar per label, in the order given, its value written at its end."""
    names = [_short(label, keep_end=True) for label in labels]

    def draw(axes: Axes) -> None:
        axes.barh(range(len(labels)), values, color=AFTER, height=0.66)
        for position, value in enumerate(values):
            axes.annotate(
                f"{value:.3g}", (value, position), xytext=(4, 0), textcoords="offset points", va="center", fontsize=10
            )
        axes.set_yticks(range(len(labels)), names)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(0, max([*values, 1e-12]) * 1.18)
        axes.set_xlabel(x)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)

    return render(draw, caption, plot=8 + 19 * len(labels), left=_room(names), labelled=True)


def grid(values: Floats, rows: Sequence[str], columns: Sequence[str], caption: Caption) -> str:
    """A matrix of values in [0, 1] as shaded cells; NaN cells are left out."""
    names = [_short(name, keep_end=True) for name in rows]

    def draw(axes: Axes) -> None:
        for i, j in np.argwhere(np.isfinite(values)):
            shade = 0.75 * float(np.clip(values[i, j], 0, 1))
            axes.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, facecolor=AFTER, alpha=shade, linewidth=0))
            axes.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, edgecolor=GRID, linewidth=0.6))
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xticks(range(len(columns)), [_short(name, 84) for name in columns], rotation=30, ha="right")
        axes.set_yticks(range(len(rows)), names)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return render(draw, caption, plot=23 * len(rows), left=_room(names), below=46)


def trials(values: Floats, best: Floats, caption: Caption, *, y: str) -> str:
    """Every trial of a search in order (NaN for a pruned one), with the best so far as a stepped line."""

    def draw(axes: Axes) -> None:
        numbers = np.arange(len(values))
        axes.step(numbers, best, where="post", color=AFTER, label="best so far")
        axes.plot(numbers, values, "o", color=BEFORE, markerfacecolor=PAPER, markersize=5, label="trial")
        axes.set(xlabel="trial", ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid()

    return render(draw, caption, plot=205, labelled=True, legend=("best so far", "trial"))


def render(
    draw: Callable[[Axes], None],
    caption: Caption,
    *,
    plot: float,
    left: float = _LEFT,
    labelled: bool = False,
    below: float = 0,
    legend: Sequence[str] = (),
) -> str:
    """One `<svg role="img">` with the caption as its title and description; `draw` fills the axes.

    Args:
        draw: what is in the plot.
        caption: id, title and text.
        plot: height of the plot itself.
        left: room for the labels on its left.
        labelled: whether the horizontal axis has a label.
        below: further room below the ticks.
        legend: names that `draw` gave; they are written below the plot.

    >>> svg = render(lambda axes: None, Caption("empty", "A <b> chart", "Nothing is drawn."), plot=100)
    >>> svg[:4], "<title" in svg, "A &lt;b&gt; chart" in svg, "<b>" in svg
    ('<svg', True, True, False)
    """
    columns = _legend_columns(legend)
    rows = -(-len(legend) // columns)
    bottom = 20 + 16 * labelled + below + (15 * rows + 10 if rows else 0)
    height = _EDGE + plot + bottom
    # Margins are sums, not measured by Matplotlib's layout: half the time, and the same in every version.
    place = (left / WIDTH, bottom / height, 1 - (left + _EDGE) / WIDTH, plot / height)
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The browser has letters DejaVu lacks; nothing is drawn with them here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()  # a user's style sheet must not change a report's bytes
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": caption.name})
        figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
        draw(figure.add_axes(place))
        if rows:
            figure.legend(loc="lower center", ncols=columns, handlelength=2.6, columnspacing=1.2, borderaxespad=0)
        buffer = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return inline(buffer.getvalue(), caption, f"0 0 {WIDTH} {height:g}")


def _whisker(axes: Axes, estimate: Estimate, position: float, *, hollow: bool) -> None:
    color = BEFORE if hollow else AFTER
    if np.isnan(estimate.value):
        axes.text(
            0.01,
            position,
            "not measurable",
            color=MUTED,
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
        markerfacecolor=PAPER if hollow else color,
    )


def _legend_columns(labels: Sequence[str]) -> int:
    widest = max(map(_width, map(_short, labels)), default=0)
    return max(1, min(3, len(labels), int(WIDTH / (widest + 46))))


def _some(length: int, index: int) -> tuple[int, int] | None:
    """Markers on a few points only, shifted per line so that they do not lie on top of each other."""
    return None if length <= 20 else (index * length // 50, max(1, length // 6))


def _room(labels: Sequence[str]) -> float:
    """The margin that these labels need on the left."""
    return max(map(_width, labels), default=0) + 10


def _width(text: str) -> float:
    """About how wide a browser sets a label; Chinese, Japanese and Korean letters are twice as wide."""
    return sum(11.5 if ord(letter) > 0x2E7F else 6.4 for letter in text)


def _short(text: str, limit: float = 154, *, keep_end: bool = False) -> str:
    """A label that fits; an ellipsis stands for what does not.

    >>> _short("a group with a very long name"), _short("layer4.1.bn2.weight.of.a.model", keep_end=True)
    ('a group with a very lon…', '…1.bn2.weight.of.a.model')
    """
    if _width(text) <= limit:
        return text
    while _width(text) > limit - 6.4:
        text = text[1:] if keep_end else text[:-1]
    return "…" + text if keep_end else text + "…"
