"""Charts of a report as inline SVG: plain numbers in, one `<svg>` element out, the same bytes every time."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bmft.auditing import charts
from bmft.report.svg import AFTER, BEFORE, GRID, INK, MUTED, PAGE, PAPER, SERIES, Caption, inline

Floats = NDArray[np.float64]
WIDTH = 360  # drawing units: one is one CSS pixel on a phone, so that 11 is a readable letter everywhere
_LEFT, _EDGE = 54, 10


def forest(
    rows: Sequence[charts.ForestRow], caption: Caption, *, labels: tuple[str, str], from_zero: bool = False
) -> str:
    """Estimates with intervals, one line per row, before (hollow) above after (filled)."""
    paired, names = any(row.after is not None for row in rows), [charts.short_label(row.label) for row in rows]
    draw = _on_page(charts.forest(rows, labels=labels, from_zero=from_zero))
    return render(draw, caption, plot=10 + 31 * len(rows), left=_room(names), legend=labels if paired else ())


def unit_square(curves: Sequence[charts.Curve], caption: Caption, *, x: str, y: str) -> str:
    """ROC or reliability curves with the diagonal, told apart by colour, dash and marker."""
    draw, names = _on_page(charts.unit_square(curves, x=x, y=y)), [curve.label for curve in curves]
    return render(draw, caption, plot=WIDTH - _LEFT - _EDGE, labelled=True, legend=names)


def tradeoff(points: Sequence[charts.Point], caption: Caption, *, x: str, y: str) -> str:
    """Gap against AUC: one point per epoch; hollow where a condition was not met, ringed where chosen."""
    series = list(dict.fromkeys(point.series for point in points))
    return render(_on_page(charts.tradeoff(points, x=x, y=y)), caption, plot=225, labelled=True, legend=series)


def methods(spots: Sequence[charts.Spot], caption: Caption) -> str:
    """Gap against AUC of every method, with the line of those that no other beats."""
    return render(_on_page(charts.methods(spots)), caption, plot=290, labelled=True)


def _on_page(draw: charts.Draw) -> Callable[[Axes], None]:
    return lambda axes: draw(axes, PAGE)


def bars(labels: Sequence[str], values: Sequence[float], caption: Caption, *, x: str) -> str:
    """One horizontal bar per label, in the order given, its value written at its end."""
    names = [charts.short_label(label, keep_end=True) for label in labels]

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


class Link(NamedTuple):
    """A block of a network: its share of the importance (None if it was not scored), the share of it that moved."""

    name: str
    importance: float | None
    moved: float


def network(chain: Sequence[Link], caption: Caption) -> str:
    """A chain of blocks, the input's first: on the left what each carries of the gap, on the right what moved."""
    carries, wide, reach, room = SERIES[1], 112, 64, WIDTH - 2 * _EDGE
    middle = room / 2
    most = max([link.importance or 0 for link in chain] + [1e-12])
    moved = max([link.moved for link in chain] + [1e-12])

    def draw(axes: Axes) -> None:
        axes.set(xlim=(0, room), ylim=(len(chain) + 0.1, -1.9))
        axes.set_axis_off()
        axes.plot([middle] * 2, [-0.9, len(chain) - 0.4], color=MUTED, linewidth=1, zorder=0)
        words: dict[str, Any] = {"fontsize": 10, "va": "center"}
        axes.text(middle, -1.3, "input", ha="center", color=MUTED, **words)
        axes.text(middle, len(chain) - 0.15, "logits", ha="center", color=MUTED, **words)
        axes.text(middle + wide / 2 + 6, -1.3, "% of it moved", ha="left", color=INK, **words)
        if any(link.importance is not None for link in chain):
            axes.text(middle - wide / 2 - 6, -1.3, "% of importance", ha="right", color=INK, **words)
        for place, link in enumerate(chain):
            box = (middle - wide / 2, place - 0.4), wide, 0.8
            axes.add_patch(Rectangle(*box, facecolor=PAPER, edgecolor="none"))
            axes.add_patch(Rectangle(*box, facecolor=carries, alpha=0.35 * (link.importance or 0) / most, linewidth=0))
            axes.add_patch(Rectangle(*box, fill=False, edgecolor=MUTED, linewidth=0.8))
            axes.text(middle, place, charts.short_label(link.name, wide - 6, keep_end=True), ha="center", **words)
            if link.importance is not None:
                _bar(axes, middle - wide / 2 - 4, place, -reach * link.importance / most, link.importance, carries)
            _bar(axes, middle + wide / 2 + 4, place, reach * link.moved / moved, link.moved, AFTER)

    return render(draw, caption, plot=23 * (len(chain) + 2), left=_EDGE)


def _bar(axes: Axes, start: float, place: float, length: float, share: float, color: str) -> None:
    """A bar to the left or the right, its percentage at its end."""
    axes.barh(place, length, left=start, height=0.5, color=color)
    side = 1 if length > 0 or color == AFTER else -1
    text = f"{100 * share:.0f}" if share == 0 or share >= 0.0995 else f"{100 * share:.2g}"
    axes.text(start + length + 4 * side, place, text, ha="left" if side > 0 else "right", va="center", fontsize=10)


def grid(values: Floats, rows: Sequence[str], columns: Sequence[str], caption: Caption) -> str:
    """A matrix of values in [0, 1] as shaded cells; NaN cells are left out."""
    names = [charts.short_label(name, keep_end=True) for name in rows]

    def draw(axes: Axes) -> None:
        for i, j in np.argwhere(np.isfinite(values)):
            shade = 0.75 * float(np.clip(values[i, j], 0, 1))
            axes.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, facecolor=AFTER, alpha=shade, linewidth=0))
            axes.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, edgecolor=GRID, linewidth=0.6))
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xticks(
            range(len(columns)), [charts.short_label(name, 84) for name in columns], rotation=30, ha="right"
        )
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
        matplotlib.rcParams.update({**charts.style(PAGE), "svg.fonttype": "none", "svg.hashsalt": caption.name})
        figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
        draw(figure.add_axes(place))
        if rows:
            figure.legend(loc="lower center", ncols=columns, handlelength=2.6, columnspacing=1.2, borderaxespad=0)
        buffer = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return inline(buffer.getvalue(), caption, f"0 0 {WIDTH} {height:g}")


def _legend_columns(labels: Sequence[str]) -> int:
    widest = max(map(charts.label_width, map(charts.short_label, labels)), default=0)
    return max(1, min(3, len(labels), int(WIDTH / (widest + 46))))


def _room(labels: Sequence[str]) -> float:
    """The margin that these labels need on the left."""
    return max(map(charts.label_width, labels), default=0) + 10
