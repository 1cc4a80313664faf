"""Tasks that several processes do at once, each with what the tasks share."""

import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from io import BytesIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from threadpoolctl import threadpool_limits

from bmft._common import short
from bmft.compute import distributed
from bmft.errors import ConfigError, WorkerError

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Key = TypeVar("Key")
Result = TypeVar("Result")
Tell = Callable[[Any], None]
OFTEN = 0.1  # seconds between two looks at what the processes told
_HOW = "functions and classes have to be defined in a module, under their own names; or use --jobs 1"


def check_jobs(jobs: int) -> None:
    """Raise an error that says why, unless so many processes may be started from here.

    Raises:
        ConfigError: fewer than one, or more in one of several that work together already.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}: expected at least 1 process (--jobs)")
    if jobs > 1 and (together := distributed.count()) > 1:
        raise ConfigError(f"jobs is {jobs} in one of {together} processes of torchrun, which share the rows: --jobs 1")


class Workers(Generic[Shared]):
    """Up to `jobs` processes that do tasks at once; one job is this process itself.

    They are started with the first tasks, share this process's threads among them, stay until the end of the ``with``
    block, and end with this process, however it ends. What is raised inside the block, Ctrl-C too, ends them at once.

    Args:
        shared: what every task needs. It is put into a file from which the processes have it; its tensors are in memory
            once for all of them, until one writes to its own.
        jobs: how many processes.
        kept: what is kept when a process dies, as a sentence.
        hear: is called here with whatever a task tells on its way.

    Raises:
        ConfigError: see `check_jobs`.

    >>> def times(number, task, tell):
    ...     tell(f"{number} times {task}")
    ...     return number * task
    >>> with Workers(10, 1, kept="Nothing is kept.", hear=print) as workers:
    ...     dict(workers.do(times, {"a": 1, "b": 2}))
    10 times 1
    10 times 2
    {'a': 10, 'b': 20}
    """

    def __init__(self, shared: Shared, jobs: int, *, kept: str, hear: Tell = lambda _: None) -> None:
        check_jobs(jobs)
        self._shared, self._jobs, self._kept, self._hear = shared, jobs, kept, hear
        self._own: set[BaseProcess] = set()
        self._context = multiprocessing.get_context("spawn")
        self._told = self._context.SimpleQueue()
        self._folder: Path | None = None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            # Ctrl-C must not wait minutes for the tasks under way, nor what comes next meet what they still write.
            for child in self._own:
                child.terminate()
            for child in self._own:
                child.join()
        if self._folder is not None:
            shutil.rmtree(self._folder)
        self._told.close()

    def do(
        self, function: Callable[[Shared, Task, Tell], Result], tasks: Mapping[Key, Task]
    ) -> Iterator[tuple[Key, Result]]:
        """Each task's key and ``function(shared, task, tell)``, as they finish; with one job in their order.

        Raises:
            ConfigError: what the tasks share cannot be given to another process.
            WorkerError: a process died, or there is no room for what they share.
        """
        if self._jobs == 1:
            yield from ((key, function(self._shared, task, self._hear)) for key, task in tasks.items())
            return
        pool = self._pool = self._pool or self._started()
        try:
            others = set(multiprocessing.active_children())
            running = {pool.submit(_work, function, task): key for key, task in tasks.items()}
            self._own |= set(multiprocessing.active_children()) - others
            waiting = set(running)
            while waiting:
                done, waiting = wait(waiting, OFTEN, FIRST_COMPLETED)
                while not self._told.empty():
                    self._hear(self._told.get())
                yield from ((running[future], _unpacked(future.result())) for future in done)
        except BrokenProcessPool as error:
            raise WorkerError(
                "a process that worked for this one died (killed, out of memory, or started by a script that does not "
                f'say `if __name__ == "__main__":`). {self._kept} Start again, with --jobs 1 if memory is short.'
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        self._folder = Path(tempfile.mkdtemp(prefix="bmft-"))
        file = self._folder / "shared.pt"
        try:
            with file.open("wb") as target:
                torch.save(self._shared, target, pickle_protocol=pickle.HIGHEST_PROTOCOL)
        except (OSError, RuntimeError, pickle.PicklingError, AttributeError, TypeError) as error:
            # Torch wraps what the disk said in a remark about its own archive.
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(cause, OSError):
                raise WorkerError(
                    f"{file}: {cause.strerror}; the processes of --jobs are given model and images there: name a "
                    "folder with more room (TMPDIR), or use --jobs 1"
                ) from error
            raise ConfigError(f"the processes of --jobs cannot be given this: {short(error)}; {_HOW}") from error
        threads = max(1, torch.get_num_threads() // self._jobs)
        return ProcessPoolExecutor(self._jobs, self._context, _start, (file, self._told.put, threads))


_given: Path
_tell: Tell


def _start(given: Path, tell: Tell, threads: int) -> None:
    global _given, _tell  # a process works for one pool
    _given, _tell = given, tell
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # scikit-learn's, too: more threads than processors slow everybody down


def _end_with_parent() -> None:
    """End this process when the one that it works for was killed: who goes on with the work must not meet it."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        shutil.rmtree(_given.parent, ignore_errors=True)
        os._exit(1)


def _work(function: Callable[[Any, Any, Tell], Any], task: Any) -> bytes:
    # Packed here: a tensor that is sent as it is takes an open file of both processes.
    packed = BytesIO()
    torch.save(function(_shared(), task, _tell), packed, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    return packed.getvalue()


def _unpacked(result: bytes) -> Any:
    return torch.load(BytesIO(result), weights_only=False)


@cache
def _shared() -> Any:
    try:
        return torch.load(_given, mmap=True, weights_only=False)
    except (AttributeError, ImportError, pickle.UnpicklingError) as error:
        raise ConfigError(f"a process of --jobs cannot read what it is given: {short(error)}; {_HOW}") from error
