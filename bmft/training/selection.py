"""Which epoch is kept: the smallest gap, or the best by a goal, on the select set among those that do no harm."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from bmft.auditing import CONSTANT, GOALS, AuditReport, Claim, Predictions, audit_predictions, violations
from bmft.errors import ConstantPredictorError
from bmft.models import changes, put_back, tensors_of
from bmft.training.choice import Gap, weigh_candidates
from bmft.training.conditions import Conditions

_NAMED = {"gap": "gap", "ROC AUC": "roc_auc"}


@dataclass
class Selection:
    """Sees the select set's predictions after every epoch and keeps what the best one changed.

    An epoch is eligible when `bmft.auditing.violations` finds no harm. The untouched model takes part.

    Attributes:
        original: the untouched model's weights, in the precision and on the device of their own.
        choose: ``"gap"``, or a name in `bmft.auditing.GOALS` of what is best among the eligible.
        history: one entry per epoch, the untouched model first.
        untouched: the audit of the untouched model.
        kept: the audit of what would be kept if this were the end; None where an earlier process chose.
        state: what differs from the original in that choice, as `bmft.models.changes` has it.
        chosen: its place in the history.
        few: there are few candidates, in the order of how far they go: all are kept, and `finish` chooses among them by
            `weigh_candidates`, instead of taking the best as they come.
        candidates: place in the history -> predictions and changes, of those that were kept.
        claim: what may be claimed of the choice among few.
    """

    model: nn.Module
    gap: Gap
    conditions: Conditions
    original: Mapping[str, Tensor]
    choose: str = "gap"
    history: list[dict[str, Any]] = field(default_factory=list)
    untouched: AuditReport | None = None
    kept: AuditReport | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    chosen: int = 0
    few: bool = False
    candidates: dict[int, tuple[Predictions, dict[str, Tensor]]] = field(default_factory=dict)
    claim: Claim | None = None

    def start(self, predictions: Predictions) -> None:
        """The untouched model.

        Raises:
            ConstantPredictorError: it decides the same for everybody, so there is no gap to speak of.
        """
        report = self._add(predictions, step=0, epoch=0, loss=math.nan)
        self.kept, self.candidates[0] = report, (predictions, {})
        if CONSTANT in report.flags:
            raise ConstantPredictorError(
                f"the model is a constant predictor on the select set at threshold {self.conditions.threshold:g}: "
                "every gap is 0 whatever its bias. Check the preprocessing (--normalize, --image-size), "
                "or let --threshold-from select pick the threshold."
            )
        self.history[0]["eligible"] = True

    def consider(self, predictions: Predictions, *, step: int, epoch: int, loss: float) -> dict[str, Any]:
        """Record an epoch and keep what it changed if it is now the best; returns its history entry."""
        report = self._add(predictions, step=step, epoch=epoch, loss=loss)
        entry, place = self.history[-1], len(self.history) - 1
        if self.few:
            self.candidates[place] = predictions, changes(self.original, tensors_of(self.model))
            if self.rank(entry) <= min(map(self.rank, self.history)):
                self.kept = report
        elif self.conditions.keep == "last" or self.rank(entry) < self.rank(self.history[self.chosen]):
            self.chosen, self.kept = place, report
            self.state = changes(self.original, tensors_of(self.model))
        return entry

    def rank(self, entry: Mapping[str, Any]) -> float:
        """How good an epoch is, less being better: its figure; infinite where it does harm."""
        if not entry["eligible"]:
            return math.inf
        return float(entry["gap"]) if self.choose == "gap" else GOALS[self.choose].sign * float(entry[self.choose])

    def load_state(
        self,
        history: list[dict[str, Any]],
        chosen: int,
        state: dict[str, Tensor],
        candidates: Mapping[int, tuple[Predictions, dict[str, Tensor]]],
    ) -> None:
        """Be where a selection was that had this history and these changes of its choice, whose audit is not known."""
        self.history, self.chosen, self.state = history, chosen, state
        self.candidates |= candidates
        self.kept = None if chosen else self.untouched

    def _weigh(self) -> None:
        """Choose among the few: the smallest movement that is as good as the best, if the evidence for it is enough."""
        conditions, places = self.conditions, list(range(len(self.history)))
        if conditions.keep == "last":
            places = [0, places[-1]]
        eligible = [conditions.keep == "last" or bool(self.history[place]["eligible"]) for place in places]
        predictions = [self.candidates[place][0] for place in places]
        number, self.claim = weigh_candidates(
            self.gap, predictions, eligible, confidence=conditions.confidence, seed=conditions.seed
        )
        if conditions.keep == "last":
            self.chosen = places[-1]
        else:
            self.chosen = number if conditions.accepts(self.claim.word) else 0
        self.state = self.candidates[self.chosen][1]

    def finish(self) -> bool:
        """Change the model: to the kept weights, if any epoch was chosen, and tell whether one was."""
        if self.few:
            self._weigh()
        self.history[self.chosen]["chosen"] = True
        if self.chosen:
            weights = tensors_of(self.model)
            for name, tensor in self.original.items():
                weights[name].copy_(tensor)
            put_back(weights, self.state)
        return self.chosen > 0

    def reason(self) -> str:
        """Why this epoch was chosen, or why none was, in one sentence."""
        first, entry = self.history[0], self.history[self.chosen]
        named = _NAMED if self.choose == "gap" else {self._words: self.choose, **_NAMED}
        change = ", ".join(f"{name} {first[key]:.3f} -> {entry[key]:.3f}" for name, key in named.items())
        if self.conditions.keep == "last" and self.chosen:
            return f"the last epoch was kept as asked (select: {change})"
        if self.claim is not None and any(entry["eligible"] for entry in self.history[1:]):
            return self._claimed(self.claim)
        if self.chosen:
            count = sum(e["eligible"] for e in self.history[1:])
            return (
                f"step {entry['step']}, epoch {entry['epoch']} has the {self._better('est')} of the {count} of "
                f"{len(self.history) - 1} epochs that do no harm (select: {change})"
            )
        return self._why_none()

    def _claimed(self, claim: Claim) -> str:
        """What was chosen among few, with the figures that may be claimed."""
        harmless = sum(entry["eligible"] for entry in self.history[1:])
        among = f"of {len(self.history) - 1} candidates {harmless} do no harm"
        if claim.word == "none":
            return f"{among}, and none shows a smaller gap once that is corrected for the choice; the original is kept"
        figures = (
            f"gap {claim.before:.3f} -> {claim.after:.3f}, corrected for the choice; reduction {claim.reduction:.3f}, "
            f"90 % interval {claim.low:.3f} to {claim.high:.3f}"
        )
        if not self.chosen:
            return f"{among}, but a smaller gap is only {claim.word} ({figures}); the original is kept"
        return f"{among}; kept is the smallest movement as good as the best, its effect {claim.word} ({figures})"

    @property
    def _words(self) -> str:
        return self.choose.replace("_", " ").replace("auc", "AUC")

    def _better(self, degree: Literal["er", "est"]) -> str:
        """As "smaller gap" or "highest worst group AUC"."""
        if self.choose == "gap":
            return f"small{degree} gap"
        return f"{'low' if GOALS[self.choose].sign > 0 else 'high'}{degree} {self._words}"

    def _why_none(self) -> str:
        tried = self.history[1:]
        if not tried:
            return "no epoch was trained; the original is kept"
        better = [e for e in tried if self.rank({**e, "eligible": True}) < self.rank(self.history[0])]
        wanted = self._better("er")
        if not better:
            return f"none of {len(tried)} epochs had a {wanted} than the original on select; the original is kept"
        nearest = min(better, key=lambda e: len(e["harm"]))
        return (
            f"{len(better)} of {len(tried)} epochs had a {wanted} on select, but each did harm (nearest: gap "
            f"{nearest['gap']:.3f}, but {'; '.join(nearest['harm'])}); the original is kept"
        )

    def _add(self, predictions: Predictions, *, step: int, epoch: int, loss: float) -> AuditReport:
        report = audit_predictions(predictions, threshold=self.conditions.threshold, intervals=False)
        self.untouched = self.untouched or report
        harm = violations(self.untouched, report, self.conditions.limits)
        entry = {
            "step": step,
            "epoch": epoch,
            "loss": loss,
            "gap": self.gap(predictions),
            "roc_auc": report.overall["roc_auc"],
            "worst_group_roc_auc": _worst(report),
            "balanced_accuracy": report.overall["balanced_accuracy"],
            "eligible": not harm,
            "harm": [str(one) for one in harm],
            "chosen": False,
        }
        if self.choose != "gap":
            entry[self.choose] = GOALS[self.choose].of(report)
        self.history.append(entry)
        return report


def _worst(report: AuditReport) -> float:
    values = [metrics["roc_auc"] for groups in report.by_group.values() for metrics in groups.values()]
    return min((value for value in values if math.isfinite(value)), default=math.nan)
