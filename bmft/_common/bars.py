"""A bar that fills once, with the time left: in a notebook, a terminal, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Bar:
    """tqdm's bar of one piece of work whose size is known; made when it is first drawn, gone when the work is done."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._bar: Any = None

    def __call__(self, done: float, total: float, work: str = "", seconds: float | None = None) -> None:
        """Draw what is `done` of `total`, the name of the `work`, and the seconds left where they are known."""
        if not self._shown:
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            layout = "{desc} {percentage:3.0f}%|{bar:24}| {elapsed}, {remaining} left"
            self._bar = tqdm(total=total, leave=False, bar_format=layout)
            # In a terminal that does not know its size tqdm draws nothing.
            if isinstance(self._bar.ncols, int) and self._bar.ncols < 1:
                self._bar.ncols = self._bar.nrows = None
        bar = self._bar
        left = "{remaining}" if seconds is None else bar.format_interval(seconds)
        bar.bar_format = f"{{desc}} {{percentage:3.0f}}%|{{bar:24}}| {{elapsed}}, {left} left"
        bar.total = total
        bar.set_description_str(work, refresh=False)
        # Work that grows, as where a training is begun again, takes nothing back.
        bar.update(max(done - bar.n, 0))
        if done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def watched(progress: bool | Callable[..., None], place: Callable[..., tuple[Any, ...]]) -> Callable[..., None]:
    """What to call with the progress: `progress` itself, or a `Bar` (True) or nothing (False).

    Args:
        progress: the caller's choice.
        place: turns what the call is given into the arguments of a `Bar`.
    """
    if not isinstance(progress, bool):
        return progress
    bar = Bar(shown=progress)
    return lambda *now: bar(*place(*now))
