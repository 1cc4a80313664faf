"""Which epoch is kept: the smallest gap, or the best by a goal, on the select set among those that do no harm."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from bmft.auditing import CONSTANT, GOALS, AuditReport, Epoch, Predictions, Violation, audit_predictions, violations
from bmft.errors import ConstantPredictorError
from bmft.models import changes, put_back, tensors_of
from bmft.training.conditions import Conditions

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Selection:
    """Sees the select set's predictions after every epoch and keeps what the best one changed.

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
    """

    model: nn.Module
    gap: Callable[[Predictions], float]
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

    def start(self, predictions: Predictions) -> None:
        """The untouched model.

        Raises:
            ConstantPredictorError: it decides the same for everybody, so there is no gap to speak of.
        """
        report = self._add(predictions, step=0, epoch=0, loss=math.nan)
        self.kept = report
        if CONSTANT in report.flags:
            raise ConstantPredictorError(
                f"the model is a constant predictor on the select set at threshold {self.conditions.threshold:g}: "
                "every gap is 0 whatever its bias. Check the preprocessing (--normalize, --image-size), "
                "or let --threshold-from select pick the threshold."
            )

    def consider(self, predictions: Predictions, *, step: int, epoch: int, loss: float) -> Epoch:
        """Record an epoch and keep what it changed if it is now the best."""
        report = self._add(predictions, step=step, epoch=epoch, loss=loss)
        entry, best = self.history[-1], self.history[self.chosen]
        if self.conditions.keep == "last" or self.rank(entry) < self.rank(best):
            entry = self.history[-1] = replace(entry, harm=(*entry.harm, *map(str, self.further())))
        if self.conditions.keep == "last" or self.rank(entry) < self.rank(best):
            self.chosen, self.kept = len(self.history) - 1, report
            self.state = changes(self.original, tensors_of(self.model))
        return entry

    def rank(self, entry: Epoch) -> float:
        """How good an epoch is, less being better: its figure; infinite where it does harm."""
        return self._figure(entry) if entry.eligible else math.inf

    def _figure(self, entry: Epoch) -> float:
        return entry.gap if self.choose == "gap" else GOALS[self.choose].sign * entry.goals[self.choose]

    def load_state(
        self, history: Sequence[Epoch], chosen: int, state: dict[str, Tensor], remarks: Sequence[str] = ()
    ) -> None:
        """Be where a selection was that had this history and these changes of its choice, whose audit is not known."""
        self.history, self.chosen, self.state = list(history), chosen, state
        self.remarks[:] = remarks
        self.kept = None if chosen else self.untouched

    def finish(self) -> bool:
        """Change the model: to the kept weights, if any epoch was chosen, and tell whether one was."""
        self.history[self.chosen] = replace(self.history[self.chosen], chosen=True)
        if self.chosen:
            weights = tensors_of(self.model)
            for name, tensor in self.original.items():
                weights[name].copy_(tensor)
            put_back(weights, self.state)
        return self.chosen > 0

    def reason(self) -> str:
        """Why this epoch was chosen, or why none was, in one sentence; and what else is to be said of it."""
        return "; ".join([self._why(), *self.remarks])

    def _why(self) -> str:
        first, entry = self.history[0], self.history[self.chosen]
        goals = {_words(name): (first.goals[name], entry.goals[name]) for name in entry.goals}
        named = {**goals, "gap": (first.gap, entry.gap), "ROC AUC": (first.roc_auc, entry.roc_auc)}
        change = ", ".join(f"{name} {old:.3f} -> {new:.3f}" for name, (old, new) in named.items())
        if self.conditions.keep == "last" and self.chosen:
            return f"the last epoch was kept as asked (select: {change})"
        if self.chosen:
            count = sum(e.eligible for e in self.history[1:])
            return (
                f"step {entry.step}, epoch {entry.epoch} has the {self._better('est')} of the {count} of "
                f"{len(self.history) - 1} epochs that do no harm (select: {change})"
            )
        return self._why_none()

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
            return f"none of {len(tried)} epochs had a {wanted} than the original on select; the original is kept"
        nearest = min(better, key=lambda e: len(e.harm))
        return (
            f"{len(better)} of {len(tried)} epochs had a {wanted} on select, but each did harm (nearest: gap "
            f"{nearest.gap:.3f}, but {'; '.join(nearest.harm)}); the original is kept"
        )

    def _add(self, predictions: Predictions, *, step: int, epoch: int, loss: float) -> AuditReport:
        report = audit_predictions(predictions, threshold=self.conditions.threshold, intervals=False)
        self.untouched = self.untouched or report
        harm = violations(self.untouched, report, self.conditions.limits)
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
                harm=tuple(map(str, harm)),
                goals=goals,
            )
        )
        return report


def _words(goal: str) -> str:
    return goal.replace("_", " ").replace("auc", "AUC")


def gap_of(objective: Objective, *, threshold: float, on_decisions: bool) -> Callable[[Predictions], float]:
    """The objective as a measure of predictions: of 0/1 decisions at `threshold`, or of the probabilities."""

    def gap(predictions: Predictions) -> float:
        values = predictions.decisions(threshold) if on_decisions else predictions.scores
        scores, targets = torch.as_tensor(values, dtype=torch.float64), torch.from_numpy(predictions.targets)
        return float(objective(scores, targets, torch.from_numpy(predictions.groups)))

    return gap
