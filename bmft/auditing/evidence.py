"""How far to go along a path of candidates, and what may be claimed of the choice, from their gaps alone.

A gap that was smallest among several looks smaller than it is. So the choice itself is resampled: in every resample of
patients the same rule chooses again, and how much better its choice looks there than on the sample is what the choice
on the sample is corrected by (bootstrap bias correction of a selected figure: Tsamardinos, Greasidou and Borboudakis
2018; Efron 1983). It costs no training.
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bmft.errors import ConfigError

Floats = NDArray[np.float64]
Word = Literal["shown", "likely", "none"]
POWER = 0.8  # of what would settle it
LEVEL = 0.9  # of the two-sided interval


@dataclass(frozen=True)
class Claim:
    """What is known of a reduction on the rows that chose.

    Attributes:
        word: ``"shown"``: the one-sided interval of the corrected reduction, at `confidence`, excludes 0;
            ``"likely"``: the corrected reduction is more than 0; ``"none"``.
        before: the original's gap.
        after: the chosen candidate's, corrected for the choice.
        reduction: `before` - `after`.
        low, high: its two-sided 90 % interval, for patients like these.
        error: its standard error.
        apparent: the reduction before the correction, which is optimistic and no result.
        confidence: one-sided.
        times: how many times as many rows would show a reduction of this size with a power of .8; infinite for none.
    """

    word: Word
    before: float
    after: float
    reduction: float
    low: float
    high: float
    error: float
    apparent: float
    confidence: float
    times: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def smallest_step(gaps: Floats, errors: Floats, eligible: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The first that moves and whose gap is not told apart from the smallest one's, by one standard error of both.

    The original, row 0, is taken where none of the eligible has a smaller gap.

    Args:
        gaps: ``(candidates, resamples)``, the original first, then in the order of how far they go.
        errors: ``(candidates, candidates)``, standard error of each pair's difference (Breiman et al. 1984).
        eligible: ``(candidates,)``, which may be chosen; NaN gaps are not.

    Returns:
        ``(resamples,)`` numbers of candidates.

    >>> gaps = np.array([[0.2], [0.11], [0.1]])
    >>> smallest_step(gaps, np.full((3, 3), 0.02), np.array([True] * 3))
    array([1])
    """
    usable = np.where(eligible[:, None] & np.isfinite(gaps), gaps, np.inf)
    best = usable.argmin(0)
    alike = usable - usable.min(0) <= errors[:, best]
    alike[0] = best == 0
    return np.asarray(np.where(best == 0, 0, alike.argmax(0)))


def weigh(
    gaps: Floats, chooses_by: Floats, eligible: NDArray[np.bool_], *, confidence: float = 0.9
) -> tuple[int, Claim]:
    """Choose among candidates on a path, and say what may be claimed.

    Args:
        gaps: ``(candidates, 1 + resamples)`` the figure to be claimed: column 0 on the sample, then on resamples of
            its patients, the same for every candidate. Row 0 is the original.
        chooses_by: the same of what the choice looks at, such as the gap of smoothed decisions.
        eligible: ``(candidates,)`` which do no harm; the original always is.
        confidence: one-sided, for ``"shown"``.

    Returns:
        The chosen candidate's number, 0 for the original, and the evidence for its reduction.

    Raises:
        ConfigError: `confidence` is not between .5 and 1.

    >>> noise = np.random.default_rng(0).normal(0, 0.01, 200)
    >>> gaps = np.stack([np.r_[0.2, 0.2 + noise], np.r_[0.1, 0.1 - noise]])
    >>> chosen, evidence = weigh(gaps, gaps, np.array([True, True]))
    >>> chosen, evidence.word, round(evidence.reduction, 2)
    (1, 'shown', 0.1)
    """
    if not 0.5 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}: expected more than 0.5 and less than 1, such as 0.9")
    drawn = chooses_by[:, 1:]
    errors = np.nanstd(drawn[:, None] - drawn[None], axis=2) if drawn.shape[1] else np.zeros((len(gaps),) * 2)
    chosen = int(smallest_step(chooses_by[:, :1], errors, eligible)[0])
    again, resamples = smallest_step(drawn, errors, eligible), np.arange(drawn.shape[1])
    inside, outside = gaps[0, 1:] - gaps[again, 1 + resamples], gaps[0, 0] - gaps[again, 0]
    optimism = max(float(np.nanmean(inside - outside)), 0.0) if len(resamples) else 0.0
    apparent = float(gaps[0, 0] - gaps[chosen, 0])
    reduction = apparent - optimism if chosen else 0.0
    error = float(np.nanstd(gaps[0, 1:] - gaps[chosen, 1:])) if chosen else 0.0
    normal = NormalDist()
    needed, reach = normal.inv_cdf(confidence) * error, normal.inv_cdf((1 + LEVEL) / 2) * error
    word: Word = "none" if not chosen or not reduction > 0 else "shown" if reduction > needed else "likely"
    wanted = (normal.inv_cdf(confidence) + normal.inv_cdf(POWER)) * error
    times = (wanted / reduction) ** 2 if reduction > 0 else math.inf
    before = float(gaps[0, 0])
    return chosen, Claim(
        word,
        before,
        before - reduction,
        reduction,
        reduction - reach,
        reduction + reach,
        error,
        apparent,
        confidence,
        times,
    )
