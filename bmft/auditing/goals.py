"""What a search looks for, or an epoch is chosen by: one figure of an audit, and whether more of it is better."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from bmft.auditing.audit import AuditReport
from bmft.auditing.metrics import worst

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Goal:
    """A figure of an `AuditReport`, of pooled predictions; with several attributes the worst of them.

    A group, or an attribute's gap, that cannot be measured (NaN) is left out; the figure is NaN where none can.
    """

    figure: Callable[[AuditReport], float]
    direction: Direction

    @property
    def sign(self) -> int:
        """What a value is multiplied by for less to be better."""
        return 1 if self.direction == "minimize" else -1

    def of(self, report: AuditReport) -> float:
        """The value; what cannot be measured is as bad as can be."""
        value = self.figure(report)
        if math.isnan(value):
            return self.sign * math.inf
        return value


def _worst_group(metric: str) -> Callable[[AuditReport], float]:
    def figure(report: AuditReport) -> float:
        values = [group[metric] for groups in report.by_group.values() for group in groups.values()]
        return float(worst(np.array(values or [math.nan], np.float64), 1))

    return figure


def _largest_gap(name: str) -> Callable[[AuditReport], float]:
    def figure(report: AuditReport) -> float:
        values = [gaps[name] for gaps in report.gaps.values()]
        return float(worst(np.array(values or [math.nan], np.float64), -1))

    return figure


def _overall(metric: str) -> Callable[[AuditReport], float]:
    return lambda report: float(report.overall[metric])


def _largest_group_loss(report: AuditReport) -> float:
    """The largest mean cross-entropy of a group."""
    found = report.predictions
    if found is None:
        return math.nan
    scores, targets = np.clip(found.scores, 1e-7, 1 - 1e-7), found.targets
    if found.task == "multiclass":
        losses = -np.log(scores[targets == 1])
    else:
        known = targets >= 0
        losses = -np.where(targets == 1, np.log(scores), np.where(known, np.log(1 - scores), 0)).sum(1) / known.sum(1)
    means = [losses[column == g].mean() for column in found.groups.T for g in np.unique(column) if g >= 0]
    return float(worst(np.array(means or [math.nan]), -1))


GOALS: Mapping[str, Goal] = {
    "worst_group_auc": Goal(_worst_group("roc_auc"), "maximize"),
    "worst_group_accuracy": Goal(_worst_group("accuracy"), "maximize"),
    "auc_gap": Goal(_largest_gap("roc_auc_difference"), "minimize"),
    "accuracy_gap": Goal(_largest_gap("accuracy_difference"), "minimize"),
    "equalized_odds": Goal(_largest_gap("equalized_odds_difference"), "minimize"),
    "average_odds": Goal(_largest_gap("average_odds_difference"), "minimize"),
    "largest_group_loss": Goal(_largest_group_loss, "minimize"),
    "auc": Goal(_overall("roc_auc"), "maximize"),
    "accuracy": Goal(_overall("accuracy"), "maximize"),
}


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch on the select set, or of one candidate of a method without epochs.

    Attributes:
        step: 1 for the extractor, 2 for the head; 0 is the untouched model.
        epoch: counted from 1 in each step.
        loss: mean over the epoch; NaN where nothing was trained.
        gap: what the method makes smaller.
        worst_group_roc_auc: the lowest of any group.
        harm: every limit that it breaks, in words.
        chosen: whether it was kept.
        goals: goal -> value, where an epoch is chosen by another goal than the gap.
        strength: the gap's weight at its end, where that rises.
    """

    step: int
    epoch: int
    loss: float
    gap: float
    roc_auc: float
    worst_group_roc_auc: float
    balanced_accuracy: float
    harm: tuple[str, ...] = ()
    chosen: bool = False
    goals: Mapping[str, float] = field(default_factory=dict)
    strength: float | None = None

    @property
    def eligible(self) -> bool:
        """Whether it does no harm."""
        return not self.harm

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as reports and journals have them."""
        values = asdict(self)
        goals, harm, chosen = values.pop("goals"), list(values.pop("harm")), values.pop("chosen")
        values |= {} if (strength := values.pop("strength")) is None else {"strength": strength}
        return {**values, "eligible": self.eligible, "harm": harm, "chosen": chosen, **goals}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Epoch":
        """What `to_dict` made into `values`."""
        own = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        goals = {name: values[name] for name in values if name not in (*own, "eligible")}
        return cls(**{**own, "harm": tuple(values["harm"])}, goals=goals)
