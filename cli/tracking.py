"""``--log``: the run is told to a tracker, which is opened before the work begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import DONE, REJECTED
from .distributed import first
from .options import option

if TYPE_CHECKING:
    from bmft.report import Log, Report

_LOG = "bmft.log"


def log_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--log``; inside, `watching` and `tell` reach what it names."""

    @wraps(function)
    def command(*args: Any, log: str | None, **values: Any) -> Any:
        if log is None or not first():
            return function(*args, **values)
        from bmft.report import log_to

        # A server that is not there is to be known at once, not after minutes of trying.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        context, failed = click.get_current_context(), True
        opened = context.meta[_LOG] = log_to(log)
        try:
            result = function(*args, **values)
            failed = False
            return result
        except click.exceptions.Exit as left:
            failed = left.exit_code not in (DONE, REJECTED)
            raise
        finally:
            opened.close(failed=failed)

    said = option(
        "--log",
        metavar="TRACKER[:DIR]",
        help="Tell mlflow, wandb or tensorboard of the run: figures, settings, report, checkpoint; never images or "
        "rows. Where: as the library's environment variables say, or DIR.",
    )
    return said(command)


def _opened() -> Log | None:
    found: Log | None = click.get_current_context().meta.get(_LOG)
    return found


def watching(look: Callable[..., None]) -> Callable[..., None]:
    """A progress callback that tells the tracker, too."""
    log = _opened()
    if log is None:
        return look

    def both(*now: Any) -> None:
        look(*now)
        log(*now)

    return both


def tell(
    report: Report | None,
    *,
    config: Mapping[str, Any] | None = None,
    figures: Mapping[str, float] | None = None,
    files: Iterable[Path] = (),
) -> None:
    """The results, for the tracker where there is one."""
    if (log := _opened()) is None:
        return
    log.config(config or {})
    if report is not None:
        log.report(report)
    log.figures(figures or {})
    log.files(files)
