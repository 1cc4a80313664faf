"""Which epoch is kept: the smallest gap, or the best by a goal, on the select set among those that do no harm."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from torch import Tensor, nn

from bmft.auditing import (
    CONSTANT,
    GOALS,
    AuditReport,
    Claim,
    Epoch,
    Predictions,
    Violation,
    audit_predictions,
    claim_of,
    violations,
    weigh,
)
from bmft.errors import ConstantPredictorError
from bmft.models import changes, put_back, tensors_of
from bmft.training.choice import Gap, figures_of
from bmft.training.conditions import Conditions


@dataclass
class Selection:
    """The choice among epochs: it is shown the predictions on select after each, and keeps the weights of the best.

    An epoch is eligible when `bmft.auditing.violations` finds no harm. The untouched model takes part.

    Attributes:
        original: the untouched model's weights, in the precision and on the device of their own.
        further: what harm the model as it is does elsewhere than on select; asked of candidates that would be kept.
        choose: ``"gap"``, or a name in `bmft.auditing.GOALS` of what is best among the eligible.
        history: one entry per epoch, the untouched model first.
        untouched: the audit of the untouched model.
        kept: the audit of what would be kept if this were the end; None where an earlier process chose.
        state: what differs from the original in that choice, as `bmft.models.changes` has it.
        chosen: its place in the history.
        remarks: what else is to be said of how it came about, such as a training that was set back.
        few: there are few candidates: all are kept, and `finish` chooses among them, from the weakest strength on, by
            `bmft.auditing.weigh`, instead of taking the best as they come.
        candidates: place in the history -> predictions and changes, of those that were kept.
        claim: what may be claimed of the choice among few.
        rows: what the predictions are called in words.
        told: the place that `prefer` takes, where somebody else chooses: of the models of several folds together.
    """

    model: nn.Module
    gap: Gap
    conditions: Conditions
    original: Mapping[str, Tensor]
    choose: str = "gap"
    history: list[Epoch] = field(default_factory=list)
    untouched: AuditReport | None = None
    kept: AuditReport | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    chosen: int = 0
    remarks: list[str] = field(default_factory=list)
    further: Callable[[], Iterable[Violation]] = tuple
    few: bool = False
    candidates: dict[int, tuple[Predictions, dict[str, Tensor]]] = field(default_factory=dict)
    claim: Claim | None = None
    rows: str = "on select"
    told: int | None = None

    def begin(self, predictions: Predictions) -> AuditReport:
        """The untouched model, whatever it says."""
        report = self._add(predictions, step=0, epoch=0, loss=math.nan)
        self.kept, self.candidates[0] = report, (predictions, {})
        return report

    def start(self, predictions: Predictions) -> None:
        """The untouched model.

        Raises:
            ConstantPredictorError: it decides the same for everybody, so there is no gap to speak of.
        """
        if CONSTANT in self.begin(predictions).flags:
            raise ConstantPredictorError(
                f"the model is a constant predictor {self.rows} at threshold {self.conditions.threshold:g}: "
                "every gap is 0 whatever its bias. Check the preprocessing (--normalize, --image-size), "
                "or let --threshold-from select pick the threshold."
            )

    def consider(
        self, predictions: Predictions, *, step: int, epoch: int, loss: float, strength: float | None = None
    ) -> Epoch:
        """Record an epoch and keep what it changed if it is now the best."""
        report = self._add(predictions, step=step, epoch=epoch, loss=loss, strength=strength)
        entry, place = self.history[-1], len(self.history) - 1
        if self.few or self.conditions.keep == "last" or self.rank(entry) < self.rank(self.history[self.chosen]):
            entry = self.history[-1] = replace(entry, harm=(*entry.harm, *map(str, self.further())))
        if self.few:
            self.candidates[place] = predictions, changes(self.original, tensors_of(self.model))
            if self.rank(entry) <= min(map(self.rank, self.history)):
                self.kept = report
        elif self.conditions.keep == "last" or self.rank(entry) < self.rank(self.history[self.chosen]):
            self.chosen, self.kept = place, report
            self.state = changes(self.original, tensors_of(self.model))
        return entry

    def rank(self, entry: Epoch) -> float:
        """How good an epoch is, less being better: its figure; infinite where it does harm."""
        return self._figure(entry) if entry.eligible else math.inf

    def _figure(self, entry: Epoch) -> float:
        return entry.gap if self.choose == "gap" else GOALS[self.choose].sign * entry.goals[self.choose]

    def load_state(
        self,
        history: Sequence[Epoch],
        chosen: int,
        state: dict[str, Tensor],
        remarks: Sequence[str] = (),
        candidates: Mapping[int, tuple[Predictions, dict[str, Tensor]]] = MappingProxyType({}),
    ) -> None:
        """Be where a selection was that had this history and these changes of its choice, whose audit is not known."""
        self.history, self.chosen, self.state = list(history), chosen, state
        self.remarks[:] = remarks
        self.candidates |= candidates
        self.kept = None if chosen else self.untouched

    def prefer(self) -> int:
        """Change the model: to what would be chosen if this were the end; returns its place in the history."""
        if self.told is not None:
            place = self.told if self.told < len(self.history) else 0
        else:
            place = self.weighed()[0] if self.few else self.chosen
        self.turn_into(self.candidates[place][1] if self.few else self.state)
        return place

    def too_far(self) -> bool:
        """Whether the two latest of few candidates do harm, and this is who chooses: going further does more.

        One alone may be the noise of the rows that choose.
        """
        if self.told is not None or self.conditions.keep == "last" or any(one.eligible for one in self.history[-2:]):
            return False
        if self.few:
            self.weighed()  # which grants the leeway that only resamples tell
        return not any(entry.eligible for entry in self.history[-2:])

    def weighed(self) -> tuple[int, Claim]:
        """The place of the smallest movement that is as good as the best, and what may be claimed of it."""
        conditions = self.conditions
        way = sorted(self.candidates, key=lambda place: (self.history[place].strength or 0.0, place))
        if conditions.keep == "last":
            way = [0, *way[1:][-1:]]
        figures = figures_of(self.gap, [self.candidates[place][0] for place in way], conditions.seed)
        if conditions.keep == "last":
            last = len(way) - 1
            return way[last], claim_of(figures, last, np.full(figures.gap.shape[1] - 1, last), conditions.confidence)
        leeway = figures.leeway()
        for number, place in enumerate(way[1:], 1):
            report = self._audited(self.candidates[place][0])
            own = {attribute: float(errors[number]) for attribute, errors in leeway.items()}
            harm = self._harm(report, own)
            self.history[place] = replace(self.history[place], harm=harm + self.harm_elsewhere(place, report, harm))
        eligible = [self.history[place].eligible for place in way]
        number, claim = weigh(figures, conditions.limits, eligible, confidence=conditions.confidence)
        return way[number], claim

    def harm_elsewhere(
        self, place: int, report: AuditReport | None = None, own: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        """The harm of a candidate that `own` and the audit of its predictions, `report`, do not show."""
        known = {*own, *self._harm(report or self._audited(self.candidates[place][0]), {})}
        return tuple(one for one in self.history[place].harm if one not in known)

    def rows_that_settle(self) -> dict[str, dict[str, int]]:
        """Attribute -> group -> rows that would show what is only likely; empty where nothing is to settle."""
        if self.claim is None or self.untouched is None or self.claim.word != "likely":
            return {}
        times = self.claim.times
        return {
            attribute: {group: math.ceil(times * figures["n"]) for group, figures in groups.items()}
            for attribute, groups in self.untouched.by_group.items()
        }

    def finish(self) -> bool:
        """Change the model: to the kept weights, if any epoch was chosen, and tell whether one was."""
        if self.few:
            place, self.claim = self.weighed()
            enough = self.conditions.keep == "last" or self.conditions.accepts(self.claim.word)
            self.chosen = place if enough else 0
            self.state = self.candidates[self.chosen][1]
        self.history[self.chosen] = replace(self.history[self.chosen], chosen=True)
        if self.chosen:
            self.turn_into(self.state)
        return self.chosen > 0

    def turn_into(self, changed: Mapping[str, Tensor]) -> None:
        """Change the model: to the original with these changes."""
        weights = tensors_of(self.model)
        for name, tensor in self.original.items():
            weights[name].copy_(tensor)
        put_back(weights, changed)

    def reason(self) -> str:
        """Why this epoch was chosen, or why none was, in one sentence; and what else is to be said of it."""
        return "; ".join([self._why(), *self.remarks])

    def _why(self) -> str:
        first, entry = self.history[0], self.history[self.chosen]
        goals = {_words(name): (first.goals[name], entry.goals[name]) for name in entry.goals}
        named = {**goals, "gap": (first.gap, entry.gap), "ROC AUC": (first.roc_auc, entry.roc_auc)}
        change = ", ".join(f"{name} {old:.3f} -> {new:.3f}" for name, (old, new) in named.items())
        if self.conditions.keep == "last" and self.chosen:
            return f"the last epoch was kept as asked ({self.rows}: {change})"
        if self.claim is not None and any(entry.eligible for entry in self.history[1:]):
            return self._claimed(self.claim)
        if self.chosen:
            count = sum(e.eligible for e in self.history[1:])
            return (
                f"step {entry.step}, epoch {entry.epoch} has the {self._better('est')} of the {count} of "
                f"{len(self.history) - 1} epochs that do no harm ({self.rows}: {change})"
            )
        return self._why_none()

    def _claimed(self, claim: Claim) -> str:
        """What was chosen among few, with the figures that may be claimed."""
        harmless = sum(entry.eligible for entry in self.history[1:])
        among = f"of {len(self.history) - 1} candidates {harmless} do no harm"
        if claim.word == "none":
            return f"{among}, and none has a smaller gap once that is corrected for the choice; the original is kept"
        # As an audit calls it: its equalized odds difference is another figure, the larger of the two rates'.
        gap = "average odds gap" if self.gap.name == "equalized_odds" else "gap"
        figures = (
            f"{claim.word}: {gap} {claim.before:.3f} -> {claim.after:.3f} {self.rows}, corrected for the choice; "
            f"smaller by {claim.reduction:.3f}, 90 % interval {claim.low:.3f} to {claim.high:.3f}"
        )
        if claim.word == "likely":
            figures += f"; {claim.times:.1f} times as many rows would show it"
        if not self.chosen:
            return f"{among}, but a smaller gap is not shown ({figures}); the original is kept"
        entry = self.history[self.chosen]
        which = f"strength {entry.strength:g}" + (", with a head of its own" if entry.step == 2 else "")
        return f"{which}, the smallest movement that is as good as the best: {among} ({figures})"

    def _better(self, degree: Literal["er", "est"]) -> str:
        """As "smaller gap" or "highest worst group AUC"."""
        if self.choose == "gap":
            return f"small{degree} gap"
        return f"{'low' if GOALS[self.choose].sign > 0 else 'high'}{degree} {_words(self.choose)}"

    def _why_none(self) -> str:
        tried = self.history[1:]
        if not tried:
            return "no epoch was trained; the original is kept"
        better = [e for e in tried if self._figure(e) < self.rank(self.history[0])]
        wanted = self._better("er")
        if not better:
            return f"none of {len(tried)} epochs had a {wanted} than the original {self.rows}; the original is kept"
        nearest = min(better, key=lambda e: len(e.harm))
        return (
            f"{len(better)} of {len(tried)} epochs had a {wanted} {self.rows}, but each did harm (nearest: gap "
            f"{nearest.gap:.3f}, but {'; '.join(nearest.harm)}); the original is kept"
        )

    def _audited(self, predictions: Predictions) -> AuditReport:
        return audit_predictions(predictions, threshold=self.conditions.threshold, intervals=False)

    def _harm(self, report: AuditReport, leeway: Mapping[str, float]) -> tuple[str, ...]:
        return tuple(map(str, violations(self.untouched or report, report, self.conditions.limits, leeway)))

    def _add(
        self, predictions: Predictions, *, step: int, epoch: int, loss: float, strength: float | None = None
    ) -> AuditReport:
        report = self._audited(predictions)
        self.untouched = self.untouched or report
        goals = {} if self.choose == "gap" else {self.choose: GOALS[self.choose].of(report)}
        self.history.append(
            Epoch(
                step=step,
                epoch=epoch,
                loss=loss,
                gap=self.gap(predictions),
                roc_auc=report.overall["roc_auc"],
                worst_group_roc_auc=GOALS["worst_group_auc"].figure(report),
                balanced_accuracy=report.overall["balanced_accuracy"],
                harm=self._harm(report, {}),
                goals=goals,
                strength=strength,
            )
        )
        return report


def _words(goal: str) -> str:
    return goal.replace("_", " ").replace("auc", "AUC")
