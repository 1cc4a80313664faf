"""One run in several processes: each takes a share of the rows, and what comes of them is put together exactly.

A gap is no mean over samples, so gradients of the processes' own gaps may not be averaged. Here the logits of all rows
are gathered first, every process computes the same loss from all of them and the share of each logit in its gradient,
and only what follows for the weights is summed: the gradient of one process, however many there are. In a single
process everything here gives back what it is given.
"""

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, distributed


class Rows(Protocol):
    """Data of which some rows can be taken."""

    def subset(self, index: Tensor) -> Self:
        """These rows."""


Data = TypeVar("Data", bound=Rows)


def count() -> int:
    """How many processes run together: those of `torch.distributed`'s default group, 1 without one.

    >>> count()
    1
    """
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if count() > 1 else 0


@dataclass(frozen=True)
class Share:
    """The part of `n` rows that is for this process: the parts follow one another and differ by one row at most.

    Of fewer rows than processes, each takes all.

    >>> Share(5).rows, Share(5).gather(torch.arange(5)).tolist()
    (slice(0, 5, None), [0, 1, 2, 3, 4])
    """

    n: int

    @property
    def whole(self) -> bool:
        """Whether this process has all of the rows."""
        return count() == 1 or self.n < count()

    @property
    def rows(self) -> slice:
        """Where this process's rows are among all."""
        return slice(0, self.n) if self.whole else slice(self._start(number()), self._start(number() + 1))

    def _start(self, process: int) -> int:
        return self.n * process // count()

    def of(self, data: Data) -> Data:
        """The rows of `data` that are for this process; in a single process the very same data."""
        return data if self.whole else data.subset(torch.arange(self.n)[self.rows])

    def gather(self, own: Tensor) -> Tensor:
        """Every process's rows ``(n, ...)``, in order, without gradients, from each one's `own`."""
        own = own.detach()
        if self.whole:
            return own
        sizes = [self._start(k + 1) - self._start(k) for k in range(count())]
        # Of one length, as not every backend gathers unequal parts: the last row fills up.
        padded = torch.cat([own, own[-1:]]) if len(own) < max(sizes) else own
        parts = [torch.empty_like(padded, memory_format=torch.contiguous_format) for _ in sizes]
        distributed.all_gather(parts, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def total(self, own: Tensor) -> Tensor:
        """The sum over the processes of what each found for its own rows; written into `own` as well."""
        if not self.whole:
            distributed.all_reduce(own)
        return own
