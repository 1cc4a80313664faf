"""What a person sees in the terminal (remarks, progress, tables), files put down whole, the exit codes."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bmft._common import Bar

if TYPE_CHECKING:
    from bmft._common import Assumption

DONE, REJECTED, USAGE, INCONCLUSIVE, RUNTIME, INTERRUPTED = 0, 1, 2, 3, 4, 130


class Terminal:
    """How this call talks to its user; the root context's ``obj``."""

    def __init__(self) -> None:
        self.debug = False
        self.quiet = False
        self.told = False  # whether another process says what went wrong

    def say(self, text: str) -> None:
        """A remark, on standard error."""
        if not self.quiet:
            # What was printed before stands before it, also where both streams go to one pipe.
            sys.stdout.flush()
            click.echo(f"bmft: {visible(text)}", err=True)

    def announce(self, assumed: Iterable[Assumption]) -> None:
        """What was inferred, in one short block on standard error."""
        alike: dict[Assumption, dict[str, None]] = {}
        for one in assumed:
            alike.setdefault(replace(one, value=""), {})[one.value] = None
        for key, values in alike.items():
            self.say(f"{'warning: ' if key.guess else ''}{replace(key, value='; '.join(values))}")

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Inside, Python's warnings and the library's log are remarks of one line each."""
        handler = _Remarks(self)
        logger = logging.getLogger("bmft")
        logger.addHandler(handler)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = self._warn
                yield
        finally:
            logger.removeHandler(handler)

    def _warn(self, message: Warning | str, *_: Any, **__: Any) -> None:
        self.say(f"warning: {_one_line(message)}")


class _Remarks(logging.Handler):
    def __init__(self, settings: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._settings = settings

    def emit(self, record: logging.LogRecord) -> None:
        self._settings.say(f"{record.levelname.lower()}: {_one_line(record.getMessage())}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def settings() -> Terminal:
    """The settings of the running command."""
    return click.get_current_context().ensure_object(Terminal)


class ProgressBar(Bar):
    """A bar with the time left on standard error; silent under ``--quiet`` and where nobody watches."""

    def __init__(self) -> None:
        super().__init__(shown=sys.stderr.isatty() and not settings().quiet)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def visible(text: object) -> str:
    r"""Text as a terminal may have it: what it would obey and not show (an escape, a bell, a change of the reading
    direction) is a replacement character, and line ends stay.

    >>> visible("a\x1b[31mb")
    'a�[31mb'
    """
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Rows of text in columns as wide as they need; the first `left` are flush left, the others right.

    >>> print(table([["group", "n"], ["female", "7"]]))
    group   n
    female  7
    """
    # Names come from files, and a line of a CI log that begins with :: is a command.
    rows = [[visible(cell.replace("\n", " ")) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def put(content: str | bytes, path: str | Path) -> None:
    """Write a file whole or not at all; ``-`` is standard output."""
    if str(path) == "-":
        click.echo(content, nl=False)
        return
    from bmft import _common as files

    files.put(content, path)
