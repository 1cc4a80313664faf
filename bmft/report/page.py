"""A report as plain values (sections of text, tables and charts), written out as HTML or as Markdown.

Both renderers walk the same values, so the two files cannot say different things.
"""

import base64
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from bmft._common import put


@dataclass(frozen=True)
class Number:
    """A figure and, in smaller print, its interval, count or judgement."""

    text: str
    note: str = ""


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """Rows under a caption; the first `text_columns` columns hold words, the others numbers."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    text_columns: int = 1
    kind = "table"


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    text: str
    kind = "paragraph"


@dataclass(frozen=True)
class Heading:
    """A heading below the section's own."""

    text: str
    kind = "heading"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]
    kind = "bullets"


@dataclass(frozen=True)
class Card:
    """One measure: what it is, a chart of it (drawn when the HTML is written), and its numbers as a table."""

    title: str
    text: str
    chart: Callable[[], str] | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Cards:
    """Cards side by side where the page is wide, below each other where it is not."""

    items: tuple[Card, ...]
    kind = "cards"


@dataclass(frozen=True)
class Picture:
    """A PNG with the words that stand for it."""

    png: bytes
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        """The picture as text inside the page, so that the file needs no other."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Gallery:
    """Pictures that are read together."""

    items: tuple[Picture, ...]
    kind = "gallery"


@dataclass(frozen=True)
class Folded:
    """Detail kept closed on the screen until asked for, open on paper."""

    title: str
    blocks: tuple["Block", ...]
    kind = "folded"


Block = Table | Paragraph | Heading | Bullets | Cards | Gallery | Folded


@dataclass(frozen=True)
class Section:
    """A titled part of the page; `id` is its anchor."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """The whole report; `status` is "accepted", "asked" (the last epoch), "kept" (the original), "audit"."""

    title: str
    status: str
    status_words: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]
    date: str = ""


def html(page: Page) -> str:
    """One self-contained file: no script, no network, every text escaped."""
    return _templates().get_template("report.html.j2").render(page=page)


def markdown(page: Page) -> str:
    """The same text and tables; charts are left to the HTML, their numbers are here."""
    lines = [f"# {_escape(page.title)}", "", f"**{_escape(page.status_words)}**"]
    if page.date:
        lines += ["", _escape(page.date)]
    for text in page.lead:
        lines += ["", _escape(text)]
    for section in page.sections:
        lines += ["", f"## {_escape(section.title)}"]
        lines += _blocks(section.blocks)
    return "\n".join(lines) + "\n"


def write_pages(page: Page, folder: str | Path, name: str, data: str, *, front: str = "") -> Path:
    """Write ``NAME.html``, ``NAME.md`` after its `front` matter, and ``NAME.json``; gives the first's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in (("json", data), ("md", front + markdown(page)), ("html", html(page))):
        put(text, folder / f"{name}.{ending}")
    return folder / f"{name}.html"


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("bmft.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _blocks(blocks: Iterable[Block]) -> list[str]:
    return [line for block in blocks for line in ["", *_block(block)]]


def _block(block: Block) -> list[str]:
    match block:
        case Paragraph(text):
            return [_escape(text)]
        case Heading(text):
            return [f"### {_escape(text)}"]
        case Bullets(items):
            return [f"- {_escape(item)}" for item in items]
        case Table():
            return _table(block)
        case Cards(items):
            return [line for card in items for line in _card(card)][:-1]
        case Gallery(pictures):
            return [f"- {_escape(picture.caption)}" for picture in pictures]
        case Folded(title, inner):
            return [f"#### {_escape(title)}", *_blocks(inner)]


def _card(card: Card) -> list[str]:
    lines = [f"#### {_escape(card.title)}", ""]
    lines += [_escape(card.text), ""] if card.text else []
    return lines + ([*_table(card.table), ""] if card.table else [])


def _table(table: Table) -> list[str]:
    aligned = ["---" if column < table.text_columns else "---:" for column in range(len(table.header))]
    rows = [table.header, *(tuple(map(_plain, row)) for row in table.rows)]
    header, *body = ("| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows)
    return [f"*{_escape(table.caption)}*", "", header, "| " + " | ".join(aligned) + " |", *body]


def _plain(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell.text} ({cell.note})" if cell.note else cell.text


def _escape(text: str) -> str:
    r"""Text that Markdown and the HTML inside it show as it is.

    >>> _escape("a|b <i> *x*")
    'a\\|b &lt;i&gt; \\*x\\*'
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~#$])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
