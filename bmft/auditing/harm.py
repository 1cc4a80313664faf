"""What a change may not cost: one rule of harm, of two audits of the same rows; and what a pooled fall consists of."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bmft.auditing.audit import CONSTANT, AuditReport
from bmft.auditing.metrics import METRICS
from bmft.auditing.others import other_drifts
from bmft.auditing.predictions import Predictions
from bmft.settings import Limits
from bmft.stats import placements

Figures = Mapping[str, Any]


class Bound(NamedTuple):
    """How far one figure may get worse, and whose.

    Attributes:
        of: ``"mean"`` of an attribute's groups, ``"each"`` group and class of one, or ``"everybody"``.
        figure: a name in `METRICS`, which says in which direction it gets worse.
        limit: the field of `Limits` that says by how much; None there is no limit.
        words: for a reader, with a place for the name of whom it is about.
        leeway: whether the limit grows by what chance alone can do, where that is known.
    """

    of: Literal["mean", "each", "everybody"]
    figure: str
    limit: str
    words: str
    leeway: bool = False


BOUNDS = (
    Bound("mean", "roc_auc", "max_auc_drop", "mean of the groups' ROC AUCs of {}"),
    Bound("mean", "balanced_accuracy", "max_auc_drop", "mean of the groups' balanced accuracies of {}", leeway=True),
    Bound("each", "roc_auc", "max_group_auc_drop", "ROC AUC of {}"),
    Bound("each", "expected_calibration_error", "max_calibration_rise", "calibration error of {}"),
    Bound("everybody", "roc_auc", "max_overall_auc_drop", "ROC AUC over everybody"),
)


def worse_by_more(figure: str, before: Any, after: Any, limit: Any) -> NDArray[np.bool_]:
    """Whether a figure got worse by more than the limit, or is not there any more; of numbers or arrays.

    What was not there before (NaN) cannot get worse.

    >>> worse_by_more("roc_auc", [0.8, 0.8, np.nan, 0.8], [0.75, 0.7, 0.1, np.nan], 0.06)
    array([False,  True, False,  True])
    """
    old, new = (METRICS[figure].better * np.asarray(values) for values in (before, after))
    # Written so that NaN after a number is worse; the last digits are rounding.
    return np.asarray(~(np.isnan(old) | (new >= old - limit - 1e-12)))


@dataclass(frozen=True)
class Violation:
    """One limit that a change breaks: whose figure, before and after, and by how much it may be worse."""

    what: str
    before: float
    after: float
    limit: float

    @property
    def excess(self) -> float:
        """How far beyond the limit; infinite where there is no figure any more."""
        beyond = abs(self.before - self.after) - self.limit
        return math.inf if math.isnan(beyond) else beyond

    def __str__(self) -> str:
        return f"{self.what} {self.before:.3f} -> {self.after:.3f} (limit {self.limit:.3g})"


def violations(
    before: AuditReport, after: AuditReport, limits: Limits, leeway: Mapping[str, float] = MappingProxyType({})
) -> tuple[Violation, ...]:
    """Every limit that `after` breaks, in the order of `Limits`; none means no harm.

    `leeway` is, for an attribute, by how much more than its limit the mean balanced accuracy may fall: one standard
    error, where it is known. On a few hundred rows that is more than the limit, and chance alone would break it.

    A figure that was not measured before (NaN) is not counted; one that was and is not any more is harm. A model that
    says the same of everybody is harm. For several classes or labels a group's figure is their mean, and each class
    of a group is looked at, too.

    >>> from bmft.auditing import Predictions, audit_predictions
    >>> from bmft.tables import Attribute
    >>> sex, targets, groups = Attribute("sex", ("female", "male")), [0, 1, 0, 1], [0, 0, 1, 1]
    >>> good, bad = (
    ...     audit_predictions(Predictions(scores, targets, groups, (sex,)), intervals=False)
    ...     for scores in ([0.1, 0.9, 0.1, 0.9], [0.1, 0.9, 0.9, 0.1])
    ... )
    >>> [one.what for one in violations(good, bad, Limits(max_calibration_rise=1.0))][-1]
    'ROC AUC of sex=male'
    """
    return tuple(_violations(before, after, limits, leeway))


def _violations(
    before: AuditReport, after: AuditReport, limits: Limits, leeway: Mapping[str, float]
) -> Iterator[Violation]:
    if CONSTANT in after.flags and CONSTANT not in before.flags:
        yield Violation("one answer for everybody: ROC AUC", before.overall["roc_auc"], math.nan, limits.max_auc_drop)
    for of, name, old, new in _compared(before, after):
        for bound in BOUNDS:
            limit = getattr(limits, bound.limit)
            if bound.of != of or limit is None:
                continue
            limit += leeway.get(name, 0.0) if bound.leeway else 0.0
            if worse_by_more(bound.figure, old[bound.figure], new[bound.figure], limit):
                yield Violation(bound.words.format(name), old[bound.figure], new[bound.figure], limit)
    yield from moved_others(before.predictions, after.predictions, limits)


def moved_others(before: Predictions | None, after: Predictions | None, limits: Limits) -> Iterator[Violation]:
    """The limit on the other outputs where one of many is debiased: it also holds on the rows that were fitted."""
    for name, found in other_drifts(before, after).items():
        if not found.drift <= limits.max_other_drift:
            yield Violation(f"drift of another output, {name},", 0.0, found.drift, limits.max_other_drift)


def _compared(before: AuditReport, after: AuditReport) -> Iterator[tuple[str, str, Figures, Figures]]:
    """Whom `BOUNDS` are about, by name, with the figures before and after."""
    for attribute, groups in before.by_group.items():
        found = after.by_group[attribute]
        figures = [bound.figure for bound in BOUNDS if bound.of == "mean"]
        means = {name: _means([(old[name], found[group][name]) for group, old in groups.items()]) for name in figures}
        old_means, new_means = ({name: pair[place] for name, pair in means.items()} for place in (0, 1))
        yield "mean", attribute, old_means, new_means
    for attribute, groups in before.by_group.items():
        for group, old in groups.items():
            new, name = after.by_group[attribute][group], f"{attribute}={group}"
            yield "each", name, old, new
            for label, class_figures in old.get("by_class", {}).items():
                yield "each", f"{name}, class {label}", class_figures, new["by_class"][label]
    yield "everybody", "", before.overall, after.overall


def _means(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """The means before and after over the groups that had a figure before."""
    known = [pair for pair in pairs if not math.isnan(pair[0])]
    return [float(mean) for mean in np.mean(known, axis=0)] if known else [math.nan, math.nan]


class Split(NamedTuple):
    """A ROC AUC over everybody, by its pairs of a positive and a negative.

    Attributes:
        within: share of the pairs within one group that are ranked right; NaN where there are none.
        between: the same of the other pairs.
        share: how many of all pairs lie within one group.
    """

    within: float
    between: float
    share: float

    @property
    def pooled(self) -> float:
        """The ROC AUC over everybody."""
        parts = ((self.share, self.within), (1 - self.share, self.between))
        return sum(weight * value for weight, value in parts if weight)


def split_auc(scores: NDArray[Any], targets: NDArray[Any], groups: NDArray[Any]) -> Split:
    r"""The ROC AUC over everybody as its part within and its part between groups, an exact identity over pairs.

    .. math:: AUC = \sum_g w_{gg} AUC_{gg} + \sum_{g \ne h} w_{gh} xAUC_{gh}

    where :math:`w_{gh}` is the share of all pairs of a positive of g and a negative of h, and :math:`xAUC_{gh}` how
    many of those are ranked right, ties counting half (Kallus and Zhou 2019, arXiv 1902.05826). A pair with a sample
    of unknown group (-1) is not known to lie within one, and counts as between.

    Args:
        scores: ``(n,)``.
        targets: ``(n,)`` 0/1; without both there is no pair, and all is NaN.
        groups: ``(n,)`` ids.

    >>> split = split_auc(np.array([0.9, 0.2, 0.6, 0.7]), np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1]))
    >>> split, split.pooled
    (Split(within=0.5, between=1.0, share=0.5), 0.75)
    """
    positive = np.asarray(targets) == 1
    pairs = positive.sum() * (~positive).sum()
    if not pairs:
        return Split(math.nan, math.nan, math.nan)
    won, inside = 0.0, 0
    for group in np.unique(groups[groups >= 0]):
        own = groups == group
        hits, alarms = placements(scores[own], positive[own])
        if len(hits) and len(alarms):
            won, inside = won + float(hits.sum() * len(alarms)), inside + len(hits) * len(alarms)
    hits, alarms = placements(scores, positive)
    total, outside = float(hits.sum() * len(alarms)), int(pairs) - inside
    within = won / inside if inside else math.nan
    return Split(within, (total - won) / outside if outside else math.nan, inside / int(pairs))


def auc_splits(report: AuditReport) -> dict[str, Split]:
    """Attribute -> the ROC AUC over everybody, split; nothing without predictions, or for several columns of scores."""
    found = report.predictions
    if found is None or found.scores.shape[1] != 1:
        return {}
    splits = {
        attribute.name: split_auc(found.scores[:, 0], found.targets[:, 0], ids)
        for attribute, ids in zip(found.attributes, found.groups.T, strict=True)
    }
    return {name: split for name, split in splits.items() if all(map(math.isfinite, split))}


def changes_in_words(before: AuditReport, after: AuditReport) -> list[str]:
    """Per attribute, what the change of the ROC AUC over everybody consists of."""
    old, new = auc_splits(before), auc_splits(after)
    return [_in_words(name, old[name], new[name]) for name in old if name in new]


def _in_words(attribute: str, old: Split, new: Split) -> str:
    why = ", which equal error rates take away where groups differ in their share of positives"
    return (
        f"ROC AUC over everyone {old.pooled:.3f} → {new.pooled:.3f}: pairs within a group of {attribute} "
        f"({old.share:.0%} of them) {old.within:.3f} → {new.within:.3f}, pairs between groups {old.between:.3f} → "
        f"{new.between:.3f}{why if new.between < old.between else ''}."
    )
