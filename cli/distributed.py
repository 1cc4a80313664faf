"""Several processes started by torchrun: they work together, and the first of them talks and writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from .console import Terminal

if TYPE_CHECKING:
    from torch.distributed import Store

TOGETHER = ("debias", "audit", "gate")
INSTEAD = {"compare": "use its --jobs", "search": "start it several times with one --storage"}
# A process that waits longer for another's rows takes it for stuck.
PATIENCE = timedelta(minutes=10)


def several() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this process is the one that talks to the user."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def working_together(command: str, settings: Terminal) -> Iterator[None]:
    """Inside, the processes that torchrun started are one run; those after the first say nothing."""
    if not several():
        yield
        return
    if command not in TOGETHER:
        hint = INSTEAD.get(command, "start it without torchrun")
        raise click.UsageError(f"{command!r} does not run in several processes under torchrun: {hint}.")
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not first():
        settings.quiet = True
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 for as long as the process lives
    store, rank, size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        with _first_to_fail_speaks(store, settings):
            yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def _first_to_fail_speaks(store: Store, settings: Terminal) -> Iterator[None]:
    """What went wrong may be known to one process alone, and then ends the others too: only that one says it."""
    from torch import distributed

    try:
        yield
    except click.exceptions.Exit:
        raise
    except Exception as error:
        try:
            settings.told = store.add("failed", 1) > 1
        except distributed.DistError:
            settings.told = False  # torchrun, which keeps the count, is gone
        # Gloo raises a plain RuntimeError, which only its text tells from others.
        if isinstance(error, distributed.DistError) or "gloo/transport" in str(error):
            raise click.ClickException(
                "another of the processes was killed or is stuck: see torchrun's lines on it, and start over"
            ) from error
        raise


def part_company() -> None:
    """All that needs the other processes is done: the first goes on alone, and the others are finished."""
    if not several():
        return
    from torch import distributed

    distributed.barrier()
    distributed.destroy_process_group()
    if not first():
        click.get_current_context().exit(0)
