"""Figures of several models on the same rows, and on resamples of their patients: what a choice among them rests on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmft.auditing.group_intervals import statistics_of
from bmft.auditing.harm import BOUNDS, worse_by_more
from bmft.auditing.metrics import BINS, ODDS, Column, Floats, defined_mean, worst
from bmft.auditing.predictions import Predictions
from bmft.settings import Limits
from bmft.stats import Statistic, Units, bootstrap

WIDTH = 0.5  # of the smoothing, in standard deviations of the original's margins
RESAMPLES = 1000
# Which rates each gap compares; those of false negatives and of true positives differ by as much.
RATES: Mapping[str, tuple[str, ...]] = {
    "equalized_odds": ODDS,
    "equal_opportunity": ("true_positive_rate",),
    "false_negative_rate": ("true_positive_rate",),
    "false_positive_rate": ("false_positive_rate",),
    "demographic_parity": ("selection_rate",),
    "accuracy": ("accuracy",),
}
_RESAMPLED = (*ODDS, "selection_rate", "accuracy")


@dataclass(frozen=True, eq=False)
class Resampled:
    """Figures of every candidate, the original first; place 0 of the last axis is the sample, the rest are resamples.

    Attributes:
        gap: of decisions, ``(candidates, 1 + resamples)``.
        smooth: the same with decisions near the threshold counted in part, which is less noisy.
        groups: attribute -> figure -> ``(candidates, columns, groups, 1 + resamples)``: ``roc_auc``,
            ``balanced_accuracy`` and ``expected_calibration_error`` of each column.
        odds: attribute -> its equalized odds difference, ``(candidates, 1 + resamples)``, as an audit has it.
        overall_auc: over everybody, ``(candidates, 1 + resamples)``.
    """

    gap: Floats
    smooth: Floats
    groups: Mapping[str, Mapping[str, Floats]]
    odds: Mapping[str, Floats]
    overall_auc: Floats

    def mean_of(self, attribute: str, figure: str) -> Floats:
        """The mean over an attribute's groups of a figure, ``(candidates, 1 + resamples)``."""
        return defined_mean(defined_mean(self.groups[attribute][figure], 1), 1)

    def worst_of(self, attribute: str, figure: str) -> Floats:
        """The worst group's figure, ``(candidates, 1 + resamples)``."""
        return worst(defined_mean(self.groups[attribute][figure], 1), -1 if "error" in figure else 1, 1)

    def leeway(self) -> dict[str, Floats]:
        """Attribute -> standard error of the fall of its groups' mean balanced accuracy, ``(candidates,)``."""
        means = {name: self.mean_of(name, "balanced_accuracy")[:, 1:] for name in self.groups}
        return {name: np.nan_to_num(np.nanstd(mean - mean[:1], axis=1)) for name, mean in means.items()}

    def harmless(self, limits: Limits) -> NDArray[np.bool_]:
        """Which candidates do no harm, ``(candidates, 1 + resamples)``: the `BOUNDS` of every sample at once.

        The mean balanced accuracy may fall by one standard error more than its limit. The original does no harm.
        """
        bad, leeway = np.zeros(self.gap.shape, dtype=bool), self.leeway()
        for bound in BOUNDS:
            limit = getattr(limits, bound.limit)
            if limit is None:
                continue
            if bound.of == "everybody":
                bad |= worse_by_more(bound.figure, self.overall_auc[:1], self.overall_auc, limit)
                continue
            for name, figures in self.groups.items():
                if bound.of == "mean":
                    mean = self.mean_of(name, bound.figure)
                    more = leeway[name][:, None] if bound.leeway else 0.0
                    bad |= worse_by_more(bound.figure, mean[:1], mean, limit + more)
                else:
                    for values in (figures[bound.figure], defined_mean(figures[bound.figure], 1)[:, None]):
                        bad |= worse_by_more(bound.figure, values[:1], values, limit).any((1, 2))
        bad[0] = False
        return ~bad


def margins(predictions: Predictions, threshold: float) -> Floats:
    """How far each score is on the positive side, on the logit scale, ``(n, K)``; of classes, ahead of all others."""
    scores = np.clip(predictions.scores, 1e-7, 1 - 1e-7)
    if predictions.task != "multiclass":
        return np.asarray(np.log(scores / (1 - scores)) - np.log(threshold / (1 - threshold)))
    logs = np.log(scores)
    others = np.stack([np.delete(logs, k, axis=1).max(1) for k in range(logs.shape[1])], axis=1)
    return np.asarray(logs - others)


def smoothed(margin: Floats, width: float) -> Floats:
    """Decisions of which those near the threshold count in part."""
    return np.asarray(1 / (1 + np.exp(-np.clip(margin / width, -500, 500))))


def units_of(predictions: Predictions) -> Units:
    """What is resampled: patients if they are known, else rows, within the combinations of all attributes' groups."""
    strata = np.unique(predictions.groups, axis=0, return_inverse=True)[1].reshape(-1)
    return Units.of(predictions.clusters, strata=strata)


def resampled_figures(
    candidates: Sequence[Predictions],
    *,
    threshold: float,
    gap: str | Callable[[Predictions], Floats] = "equalized_odds",
    combine: str = "mean",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Resampled:
    """Every figure that a choice among candidates needs, on the same resamples for all of them.

    Args:
        candidates: predictions of the same rows, the original's first.
        threshold: probability from which a decision is positive.
        gap: a name in `RATES`; or a function that gives the gap of a candidate on the sample and on each resample,
            ``(1 + resamples,)``, drawn as `bmft.stats.resampled_rows` does from `units_of` and the seed.
        combine: what several attributes' gaps count as, ``"mean"`` or ``"worst"``.
        resamples: how many.
        seed: of their draw.
    """
    first, units = candidates[0], units_of(candidates[0])
    width = WIDTH * float(margins(first, threshold).std())
    statistics: dict[str, Statistic] = {}
    for c, one in enumerate(candidates):
        decided = {"hard": one.decisions(threshold).astype(np.float64)}
        decided["soft"] = smoothed(margins(one, threshold), width) if width > 0 else decided["hard"]
        for k in range(one.scores.shape[1]):
            for a, attribute in enumerate(first.attributes):
                known = first.targets[:, k] >= 0
                where = [cell & known for cell in bootstrap.cells(one.groups[:, a], len(attribute.groups))]
                for kind, decisions in decided.items():
                    soft: Any = decisions[:, k]  # between 0 and 1, where a column has true or false
                    column = Column(one.scores[:, k], soft, first.targets[:, k] == 1)
                    needed = {*_RESAMPLED, *(("roc_auc", "surplus") if kind == "hard" else ())}
                    found = statistics_of(column, where, units, needed)
                    statistics |= {f"{c}/{k}/{a}/{kind} {name}": statistic for name, statistic in found.items()}
            whole_set = [first.targets[:, k] >= 0]
            statistics[f"{c}/{k}/all"] = bootstrap.roc_auc(one.scores[:, k], first.targets[:, k] == 1, whole_set, units)
    drawn = bootstrap.bootstrap(statistics, units, resamples=resamples, seed=seed)
    whole = {n: np.concatenate([bootstrap.point(s, units)[:, None], drawn[n].T], 1) for n, s in statistics.items()}
    columns = range(first.scores.shape[1])

    def table(a: int, name: str) -> Floats:
        """(candidates, columns, groups, 1 + resamples)"""
        rows = range(len(candidates))
        return np.stack([np.stack([whole[f"{c}/{k}/{a}/{name}"] for k in columns]) for c in rows])

    attributes = [attribute.name for attribute in first.attributes]
    rates = {kind: [_rates(table, kind, a) for a in range(len(attributes))] for kind in ("hard", "soft")}
    if callable(gap):
        plain = smooth = np.stack([gap(one) for one in candidates])
    else:
        plain, smooth = (_gap(rates[kind], RATES[gap], combine) for kind in ("hard", "soft"))
    everyone = np.stack([np.stack([whole[f"{c}/{k}/all"][0] for k in columns]) for c in range(len(candidates))])
    return Resampled(
        plain,
        smooth,
        {n: _group_figures(partial(table, a), rates["hard"][a], first.task) for a, n in enumerate(attributes)},
        {n: _odds(rates["hard"][a]) for a, n in enumerate(attributes)},
        defined_mean(everyone, 1),
    )


def _rates(table: Callable[[int, str], Floats], kind: str, a: int) -> dict[str, Floats]:
    return {name: table(a, f"{kind} {name}") for name in _RESAMPLED}


def _gap(rates: Sequence[Mapping[str, Floats]], names: Sequence[str], combine: str) -> Floats:
    """As `bmft.fairness` has it: mean over pairs of groups, over the rates, over columns; then over attributes."""
    each = []
    for one in rates:
        means = []
        for name in names:
            values = one[name]
            pairs = [np.abs(values[:, :, i] - values[:, :, j]) for i, j in combinations(range(values.shape[2]), 2)]
            means.append(defined_mean(np.stack(pairs), 0) if pairs else np.full(values[:, :, 0].shape, np.nan))
        each.append(defined_mean(defined_mean(np.stack(means), 0), 1))
    stacked = np.stack(each)
    return worst(stacked, -1) if combine == "worst" else defined_mean(stacked, 0)


def _odds(rates: Mapping[str, Floats]) -> Floats:
    """The larger of the largest differences in true and in false positive rate, the mean over columns."""
    ranges = []
    for name in ODDS:
        high, low = worst(rates[name], -1, 2), worst(rates[name], 1, 2)
        ranges.append(np.where((~np.isnan(rates[name])).sum(2) > 1, high - low, np.nan))
    return defined_mean(np.max(ranges, axis=0), 1)


def _group_figures(table: Callable[[str], Floats], rates: Mapping[str, Floats], task: str) -> dict[str, Floats]:
    accuracy = (rates["true_positive_rate"] + 1 - rates["false_positive_rate"]) / 2
    return {
        "roc_auc": table("hard roc_auc"),
        # Of several classes it is the mean recall, as an audit has it.
        "balanced_accuracy": rates["true_positive_rate"] if task == "multiclass" else accuracy,
        "expected_calibration_error": sum((np.abs(table(f"hard surplus {b}")) for b in range(BINS)), np.zeros(1)),
    }
