"""Several processes started by torchrun: they work together, and the first of them talks and writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from .console import Settings

TOGETHER = ("debias", "audit", "gate")
INSTEAD = {"compare": "use its --workers", "search": "start it several times with one --storage"}


def several() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this process is the one that talks to the user."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def working_together(command: str, settings: Settings) -> Iterator[None]:
    """Inside, the processes that torchrun started are one run; those after the first say nothing."""
    if not several():
        yield
        return
    if command not in TOGETHER:
        hint = INSTEAD.get(command, "start it without torchrun")
        raise click.UsageError(f"{command!r} does not run in several processes under torchrun: {hint}.")
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not first():
        settings.quiet = True
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 for as long as the process lives
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def part_company() -> None:
    """All that needs the other processes is done: the first goes on alone, and the others are finished."""
    if not several():
        return
    from torch import distributed

    distributed.barrier()
    distributed.destroy_process_group()
    if not first():
        click.get_current_context().exit(0)
