"""What a search ends with: its winner, short and at full length, and the method by itself; the best is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bmft.auditing import Goal, violations
from bmft.data import GroupedData
from bmft.errors import ConfigError, NonFiniteError
from bmft.methods import Outcome, Progress, debias, remeasured
from bmft.models import Activations
from bmft.settings import Settings
from bmft.training import Conditions


class BehindError(Exception):
    """Ends a run that has fallen behind; says so in words, and how many images it has looked at."""

    def __init__(self, reason: str, image_passes: int) -> None:
        super().__init__(reason)
        self.image_passes = image_passes


@dataclass(frozen=True)
class Final:
    """One of the runs at a search's end, measured on select.

    Attributes:
        name: whose settings these are.
        method: of `bmft.METHODS`.
        value: the search's goal on select.
        harmless: whether it keeps the limits there.
        image_passes: what it cost; 0 for a trial's run that was at hand.
    """

    name: str
    method: str
    settings: Settings
    outcome: Outcome
    value: float
    harmless: bool
    image_passes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {"name": self.name, "value": self.value, "harmless": self.harmless, "image_passes": self.image_passes}


def run_finals(
    named: Sequence[tuple[str, str, Settings]],
    model: nn.Module,
    fit: GroupedData,
    select: GroupedData,
    *,
    goal: Goal,
    conditions: Conditions,
    known: Mapping[str, Outcome],
    progress: Callable[[int, int, Progress], None],
    activations: Activations,
) -> tuple[list[Final], dict[str, str], int]:
    """Run each of the `named` methods and settings once as `debias` would; of equal ones only the first.

    Gives the runs, and for each that came to nothing why: a rate that served a short run may be too high for a long
    one, LoRA finds no layer in some networks, and `progress` may stop one that falls behind. The last figure is
    how many images such runs have looked at.

    Args:
        named: what to call it, the method, its settings.
        known: the outcomes of those that need not be run again, by their names.
        progress: is told which run of how many this is, and where it is.

    Raises:
        NonFiniteError: no run came to an end.
    """
    different = [run for place, run in enumerate(named) if run[1:] not in [earlier[1:] for earlier in named[:place]]]
    finals: list[Final] = []
    failed: dict[str, str] = {}
    lost = 0
    left = [name for name, _, _ in different if name not in known]
    for name, method, settings in different:
        try:
            outcome = known.get(name) or debias(
                model,
                fit,
                select,
                method=method,
                config=settings,
                conditions=conditions.but(intervals=False),
                activations=activations,
                progress=lambda now, name=name: progress(left.index(name), len(left), now),  # type: ignore[misc]
            )
        except (BehindError, ConfigError, NonFiniteError) as error:
            failed[name] = str(error)
            lost += error.image_passes if isinstance(error, BehindError) else 0
            continue
        harmless = not violations(outcome.before, outcome.after, conditions.limits)
        cost = 0 if name in known else passes(outcome, fit)
        finals.append(Final(name, method, settings, outcome, goal.of(outcome.after), harmless, cost))
    if not finals:
        raise NonFiniteError(f"no run at the search's end came to an end: {'; '.join(failed.values())}")
    return finals, failed, lost


def best_of(finals: Sequence[Final], goal: Goal) -> Final:
    """The best by the goal among those that do no harm, or among all where each does some; of equals the first."""
    return min(finals, key=lambda final: (not final.harmless, goal.sign * final.value))


def measured_at_last(
    final: Final, model: nn.Module, select: GroupedData, test: GroupedData | None, conditions: Conditions
) -> Outcome:
    """The outcome as `debias` gives it: with intervals, and on the test set where there is one, which only it sees."""
    if test is None:
        return remeasured(final.outcome, model, select, "select", conditions)
    return remeasured(final.outcome, model, test, "test", conditions)


def passes(outcome: Outcome, fit: GroupedData) -> int:
    """Images that a run looked at for training: importance, epochs of step 1, features per point of the path."""
    epochs = max((entry.epoch for entry in outcome.report.history if entry.step == 1), default=0)
    return len(fit) * (2 + int(epochs) + len(list(outcome.report.config["path"])))
