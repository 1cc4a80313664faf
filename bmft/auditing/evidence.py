"""How far to go along a path of candidates, and what may be claimed of the choice, from their figures alone.

A gap that was smallest among several looks smaller than it is. So the choice itself is resampled: in every resample of
patients the same rule chooses again, and how much better its choice looks there than the same candidates do in any
resample is what the choice on the sample is corrected by. Both sides are of samples of one size, so that what noise
adds to an absolute difference cancels (resampling the choice: Tsamardinos, Greasidou and Borboudakis 2018; optimism as
a covariance of choice and figure: Efron 1983, 2004). It costs no training.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bmft.auditing.metrics import Floats
from bmft.auditing.resampled import Resampled
from bmft.settings import Limits

Word = Literal["shown", "likely", "none"]
POWER = 0.8  # of what would settle it
LEVEL = 0.9  # of the two-sided intervals


@dataclass(frozen=True)
class Corrected:
    """A figure of the original and of the chosen candidate, corrected for the choice; `low`, `high` of its change."""

    attribute: str
    figure: str
    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True)
class Claim:
    """The evidence for a reduction of the gap, from the same rows that the candidate was chosen on.

    Attributes:
        word: ``"shown"``: the one-sided interval of the corrected reduction, at `confidence`, excludes 0;
            ``"likely"``: the corrected reduction is more than 0; ``"none"``.
        before: the original's gap.
        after: the chosen candidate's, corrected for the choice.
        reduction: `before` - `after`.
        low, high: its two-sided 90 % interval, for patients like these.
        error: its standard error, the choice included.
        confidence: one-sided.
        times: how many times as many rows would show a reduction of this size with a power of .8; infinite for none.
        apparent: the reduction before the correction, which is optimistic and no result: no report has it.
        figures: what else a report shows, corrected alike.
    """

    word: Word
    before: float
    after: float
    reduction: float
    low: float
    high: float
    error: float
    confidence: float
    times: float
    apparent: float
    figures: tuple[Corrected, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the figure that is no result."""
        return {name: value for name, value in asdict(self).items() if name != "apparent"}


def smallest_step(gaps: Floats, errors: Floats, eligible: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The first that moves and whose gap is not told apart from the smallest one's, by one standard error of both.

    The original, row 0, is taken where none of the eligible has a smaller gap.

    Args:
        gaps: ``(candidates, resamples)``, the original first, then in the order of how far they go.
        errors: ``(candidates, candidates)``, standard error of each pair's difference (Breiman et al. 1984).
        eligible: the same shape as `gaps`, which may be chosen; NaN gaps are not.

    Returns:
        ``(resamples,)`` numbers of candidates.

    >>> gaps = np.array([[0.2], [0.11], [0.1]])
    >>> smallest_step(gaps, np.full((3, 3), 0.02), np.full((3, 1), True))
    array([1])
    """
    usable = np.where(eligible & np.isfinite(gaps), gaps, np.inf)
    best = usable.argmin(0)
    alike = usable - usable.min(0) <= errors[:, best]
    alike[0] = best == 0
    return np.asarray(np.where(best == 0, 0, alike.argmax(0)))


def weigh(
    figures: Resampled, limits: Limits, eligible: Sequence[bool], *, confidence: float = 0.9
) -> tuple[int, Claim]:
    """Choose among candidates on a path, and say what may be claimed.

    The choice looks at the gap of smoothed decisions, what is claimed is that of the decisions themselves.

    Args:
        figures: the original's first, then those of the candidates in the order of how far they go.
        limits: of harm, which decide who may be chosen in a resample.
        eligible: who may be chosen on the sample; the original always.
        confidence: one-sided, for ``"shown"``.

    Returns:
        The chosen candidate's number, 0 for the original, and the evidence for its reduction.
    """
    drawn, harmless = figures.smooth[:, 1:], figures.harmless(limits)[:, 1:]
    errors = np.nan_to_num(np.nanstd(drawn[:, None] - drawn[None], axis=2))
    chosen = int(smallest_step(figures.smooth[:, :1], errors, np.asarray(eligible)[:, None])[0])
    return chosen, claim_of(figures, chosen, smallest_step(drawn, errors, harmless), confidence)


def claim_of(figures: Resampled, chosen: int, again: NDArray[np.intp], confidence: float) -> Claim:
    """The evidence for the candidate `chosen`, where the rule chose `again` ``(resamples,)`` in the resamples."""
    gap = figures.gap
    after, error = _corrected(gap, chosen, again)
    before = float(gap[0, 0])
    # An optimism below 0 is noise: nothing is claimed beyond what was seen.
    after = max(after, float(gap[chosen, 0]))
    reduction = before - after if chosen else 0.0
    normal = NormalDist()
    needed, reach = normal.inv_cdf(confidence) * error, normal.inv_cdf((1 + LEVEL) / 2)
    word: Word = "none" if not chosen or not reduction > 0 else "shown" if reduction > needed else "likely"
    wanted = (normal.inv_cdf(confidence) + normal.inv_cdf(POWER)) * error
    others = []
    for attribute in figures.groups:
        for name, values in _reported(figures, attribute).items():
            value, spread = _corrected(values, chosen, again)
            old = float(values[0, 0])
            ends = (value - old - reach * spread, value - old + reach * spread)
            others.append(Corrected(attribute, name, old, value, *ends))
    return Claim(
        word,
        before,
        before - reduction,
        reduction,
        reduction - reach * error,
        reduction + reach * error,
        error,
        confidence,
        (wanted / reduction) ** 2 if reduction > 0 else math.inf,
        float(before - gap[chosen, 0]),
        tuple(others),
    )


def _reported(figures: Resampled, attribute: str) -> dict[str, Floats]:
    return {
        "equalized_odds_difference": figures.odds[attribute],
        "mean_group_roc_auc": figures.mean_of(attribute, "roc_auc"),
        "worst_group_roc_auc": figures.worst_of(attribute, "roc_auc"),
        "mean_group_balanced_accuracy": figures.mean_of(attribute, "balanced_accuracy"),
        "worst_group_calibration_error": figures.worst_of(attribute, "expected_calibration_error"),
    }


def _corrected(values: Floats, chosen: int, again: NDArray[np.intp]) -> tuple[float, float]:
    """A figure of the chosen candidate corrected for the choice, and the standard error of its change.

    Args:
        values: ``(candidates, 1 + resamples)``.
        chosen: the candidate.
        again: ``(resamples,)``, whom the rule chose in each.
    """
    own, drawn = float(values[chosen, 0]), values[:, 1:]
    if not chosen or not len(again):
        return own, 0.0
    taken = drawn[again, np.arange(len(again))]
    share = np.bincount(again, minlength=len(values)) / len(again)
    means = np.nanmean(np.where(share[:, None] > 0, drawn, 0.0), axis=1)
    optimism = float(np.nanmean(taken) - share @ means)
    # The choice is among the changes from the original, which no choice made look better or worse.
    change, moved = drawn[chosen] - drawn[0], taken - drawn[0]
    return own - optimism, float(max(np.nanstd(change), np.nanstd(moved)))
