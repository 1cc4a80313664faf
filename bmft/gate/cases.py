"""What a policy asks of a set of predictions: tasks by bound, attribute and class, with contrasts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bmft.auditing import METRICS, ODDS, Column, Predictions, Sample
from bmft.gate.contrasts import Contrasts, against, differences, each_group, ratios
from bmft.gate.groups import Side
from bmft.gate.policy import Check, NonInferiority, Policy
from bmft.tables import Attribute, product

OVERALL = Attribute("overall", ("overall",))


@dataclass(frozen=True)
class Question:
    """One bound on one metric, in one column of scores and the groups of one attribute."""

    id: str
    metric: str
    bound: str
    limit: float
    column: int  # of several classes together: -1
    attribute: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """What has to be measured for it."""
        return ODDS if self.metric == "equalized_odds" else (self.metric,)


@dataclass(frozen=True, eq=False)
class Case:
    """What there is to decide, and on what."""

    predictions: Predictions
    policy: Policy
    audited_at: float
    baseline: Predictions | None
    baseline_at: float | None = None  # where the baseline decides, if elsewhere

    @property
    def threshold(self) -> float:
        """The policy's, else the audit's."""
        return self.audited_at if self.policy.threshold is None else self.policy.threshold

    @cached_property
    def attributes(self) -> dict[str, tuple[Attribute, NDArray[np.int64]]]:
        """Every attribute the policy names that the data have or can combine, with the rows' groups."""
        own = {a.name: (a, ids) for a, ids in zip(self.predictions.attributes, self.predictions.groups.T, strict=True)}
        found = {"": (OVERALL, np.zeros(len(self.predictions), dtype=np.int64))}
        for name in dict.fromkeys(name for rule in named(self.policy) for name in rule):
            factors = [own[factor] for factor in name.split("*") if factor in own]
            if name in own:
                found[name] = own[name]
            elif len(factors) == name.count("*") + 1:
                found[name] = product([attribute for attribute, _ in factors], [ids for _, ids in factors])
        return found

    @cached_property
    def tasks(self) -> list[Question]:
        """The policy's checks, one for each class and attribute."""
        found = []
        for rule in self.policy.checks:
            base, colon, bound = rule.id.partition(":")
            for suffix, k in self._columns(rule):
                id = f"{base}{suffix}{colon}{bound}"
                found.append(Question(id, rule.metric, rule.bound, rule.limit, k, rule.attribute))
        for other in self.policy.non_inferiority:
            for name in ("", *other.attributes):
                for suffix, k in self._columns(other):
                    id = f"{other.id}{f'/{name}' if name else ''}{suffix}"
                    found.append(Question(id, other.metric, "margin", other.margin, k, name))
        return found

    def _columns(self, rule: Check | NonInferiority) -> list[tuple[str, int]]:
        names = self.predictions.columns
        # Accuracy is of all classes together.
        if len(names) == 1 or (rule.metric == "accuracy" and self.predictions.task == "multiclass"):
            return [("", 0 if len(names) == 1 else -1)]
        return [(f"/{name}", k) for k, name in enumerate(names) if rule.classes is None or name in rule.classes]

    def column(self, predictions: Predictions, k: int, at: float | None = None) -> Column:
        """One column of scores with its decisions and targets."""
        at = self.threshold if at is None else at
        decisions, targets = predictions.decisions(at) == 1, predictions.targets == 1
        if k < 0:
            right = (decisions & targets).any(1)
            return Column(right.astype(np.float64), right, np.ones_like(right))
        return Column(predictions.scores[:, k], decisions[:, k], targets[:, k])

    def side(self, task: Question) -> Side:
        """The groups that a task is about; made once for all tasks on them."""
        key = (task.attribute, task.column)
        if key not in self._sides:
            (attribute, ids), policy = self.attributes[task.attribute], self.policy
            wanted = {m for one in self.tasks if (one.attribute, one.column) == key for m in one.metrics}
            column = self.column(self.predictions, task.column)
            ids = ids if task.column < 0 else np.where(self.predictions.targets[:, task.column] < 0, -1, ids)
            sample = Sample(ids, len(attribute.groups), self.predictions.clusters, policy.resamples, policy.seed)
            self._sides[key] = Side(attribute.groups, column, sample, policy.min_positives, frozenset(wanted))
        return self._sides[key]

    @cached_property
    def _sides(self) -> dict[tuple[str, int], Side]:
        return {}

    def contrasts(self, task: Question) -> Contrasts:
        """What a task holds against its bound; where the model's answers mean nothing, without a decision."""
        side, empty = self.side(task), self._empty(task)
        found = _contrasts(
            side, task, None if self.baseline is None else self.column(self.baseline, task.column, self.baseline_at)
        )
        return replace(found, missing=(empty,) * len(found.names)) if empty else found

    def _empty(self, task: Question) -> str:
        column = self.side(task).column
        if task.column >= 0 and np.ptp(column.scores) == 0:
            return "constant predictor: the model gives every sample the same score"
        decided = task.metric not in METRICS or METRICS[task.metric].decided
        if task.column >= 0 and decided and len(np.unique(column.decisions)) == 1:
            return "constant predictor: the model decides the same for every sample"
        if task.bound == "margin" and self.baseline is not None:
            same = np.array_equal(self.predictions.scores, self.baseline.scores)
            return "the baseline gives the same scores: a model compared with itself shows nothing" if same else ""
        return ""


def _contrasts(side: Side, task: Question, baseline: Column | None) -> Contrasts:
    if task.bound == "margin" and baseline is not None:
        return against(side, baseline, task.metric)
    if task.bound == "min_ratio":
        return ratios(side, task.metric)
    if task.bound != "max_difference":
        return each_group(side, task.metric)
    if task.metric == "equalized_odds":
        first, second = (differences(side, metric, label=f"{metric}: ") for metric in ODDS)
        return first + second
    return differences(side, task.metric)


def named(policy: Policy) -> Iterator[tuple[str, ...]]:
    """The attributes that each rule of a policy names."""
    yield from ((rule.attribute,) for rule in policy.checks)
    yield from (rule.attributes for rule in policy.non_inferiority)
