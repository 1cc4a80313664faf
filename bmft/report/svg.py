"""From a Matplotlib drawing to an inline `<svg>` element that takes its colours from the page.

Colours are CSS variables (with a fallback), so one drawing is legible on light, dark and paper. Text stays
text: it can be searched, read aloud and set in the page's own font.
"""

import re
from dataclasses import dataclass
from html import escape

from bmft.auditing import charts

# Matplotlib knows no CSS variables: it draws in these stand-ins, which no chart uses otherwise.
INK, MUTED, GRID, PAPER, BEFORE, AFTER = (f"#0000f{i}" for i in range(1, 7))
SERIES = tuple(f"#0000e{i}" for i in range(8))
PAGE = charts.Paint(INK, MUTED, GRID, PAPER, BEFORE, AFTER, SERIES)
_PAINT = {
    INK: "var(--ink, #1b1f24)",
    MUTED: "var(--muted, #5b6570)",
    GRID: "var(--rule, #d5dae0)",
    PAPER: "var(--paper, #ffffff)",
    BEFORE: "var(--before, #6b7480)",
    AFTER: "var(--after, #0067a5)",
    **{color: f"var(--g{i}, #444)" for i, color in enumerate(SERIES)},
}


@dataclass(frozen=True)
class Caption:
    """A chart's id in the page, its title, and the text for those who cannot see it."""

    name: str
    title: str
    text: str


def inline(svg: str, caption: Caption, view_box: str) -> str:
    """The drawing's element, with ids no other chart of the page has and without Matplotlib's own style."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<[a-zA-Z][^<>]*>", lambda tag: _mend(tag[0], caption.name), body)
    body = re.sub(r"\s+", " ", body.replace("<g/>", ""))
    name = escape(caption.name)
    return (
        f'<svg viewBox="{view_box}" role="img" aria-labelledby="{name}-title {name}-desc" class="chart"'
        f' stroke-linejoin="round"><title id="{name}-title">{escape(caption.title)}</title>'
        f'<desc id="{name}-desc">{escape(caption.text)}</desc>{body.strip()}'
    )


def _mend(tag: str, name: str) -> str:
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag).replace("xlink:href=", "href=")
    tag = tag.replace(' id="', f' id="{name}-')
    tag = re.sub(r"font-family: [^;\"]*; ?", "", tag)
    tag = tag.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    tag = re.sub(r"#0000[ef]\d", lambda color: _PAINT[color[0]], tag)
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), tag)
