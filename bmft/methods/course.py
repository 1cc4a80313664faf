"""How far a run has come, and where its time went."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bmft.auditing import AuditReport, Epoch


@dataclass(frozen=True)
class Progress:
    """How far a run has come, as `debias` reports it after every epoch.

    Attributes:
        phase: ``"step 1"``, ``"step 2"``, or ``"candidates"`` for methods without epochs.
        done: The number of epochs (or candidates) of this phase that are finished.
        total: The number of epochs (or candidates) that this phase has at most.
        figures: What the select set showed of the latest one.
        kept: The audit on the select set of the epoch that would be kept if this were the last; None where an earlier
            process chose it, and in a fold, which chooses nothing.
        finished: The number of epochs of the whole run that are finished.
        expected: The number of epochs that the whole run has at most.
    """

    phase: str
    done: int
    total: int
    figures: Epoch | None = None
    kept: AuditReport | None = None
    finished: int = 0
    expected: int = 0

    @property
    def place(self) -> tuple[int, int, str]:
        """How far the whole run is, and in which phase, for a bar."""
        return self.finished, self.expected, self.phase


@dataclass
class Course:
    """Counts the epochs of a run and its seconds, and tells who asked.

    Attributes:
        listener: is called with a `Progress`.
        seconds: the time spent on each part of the run.
        begun: epochs of the trainings that were begun.
        expected: epochs of the whole run, as far as they are known.
    """

    listener: Callable[[Progress], None]
    seconds: dict[str, float] = field(default_factory=dict)
    begun: int = 0
    expected: int = 0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time spent inside to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def expect(self, epochs: int) -> int:
        """Expect so many epochs after those that were begun; gives the number of the last."""
        end = self.begun + epochs
        self.expected = max(self.expected, end)
        return end

    def tell(
        self, phase: str, done: int, total: int, figures: Epoch | None, kept: AuditReport | None, before: int = 0
    ) -> None:
        """Say how far `phase` is, which began after `before` epochs."""
        finished = before + done
        self.listener(Progress(phase, done, total, figures, kept, finished, max(self.expected, finished)))
