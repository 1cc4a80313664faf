r"""One bound held against a set of contrasts: shown, ruled out, or neither, and what would settle it.

With :math:`\alpha` = 0.05 and a tolerance for the difference of any two groups:

- PASS: the 90 % interval of every pair's difference lies within the tolerance: two one-sided tests each, and
  an intersection-union test over the pairs, so there is nothing to correct for.
- FAIL: some pair's interval, at a level corrected for the number of pairs (Bonferroni), lies wholly beyond.
- INCONCLUSIVE: neither.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bmft.gate.contrasts import Contrasts
from bmft.gate.verdict import Decision, Finding, figure
from bmft.stats import Interval, quantile

Floats = NDArray[np.float64]

POWER = 0.8  # of the sample sizes that are suggested
MOST = 10_000_000  # samples; to ask for more is no advice
_WORDS: Mapping[str, str] = {
    "max_difference": "the largest difference",
    "min_ratio": "the smallest ratio",
    "min_group": "the lowest",
    "max_group": "the highest",
    "margin": "the change against the baseline (below 0 is worse)",
}


@dataclass(frozen=True)
class Judgement:
    """What one bound came to.

    Attributes:
        findings: a decision on each contrast.
        worst: the place of the one that is closest to the bound or farthest beyond; None: nothing measured.
        estimate: its value, as the bound means it (a difference without its sign).
        interval: of that value: one end shows that the bound holds, the other that it does not.
        certifies: the tightest bound that the data show; NaN for none.
        needed: samples per group that would settle it; None for no number, or where it is settled.
    """

    findings: tuple[Finding, ...]
    worst: int | None
    estimate: float
    interval: Interval
    certifies: float
    needed: int | None


@dataclass(frozen=True, eq=False)
class _Held:
    """The values that a bound is about, and the two ends that decide, each ``(m,)``."""

    value: Floats
    low: Floats
    high: Floats
    upper: bool  # an upper bound: passes by its high end, fails by its low one
    limit: float

    @property
    def shown(self) -> NDArray[np.bool_]:
        return self.high <= self.limit if self.upper else self.low >= self.limit

    @property
    def ruled_out(self) -> NDArray[np.bool_]:
        return self.low > self.limit if self.upper else self.high < self.limit


def judge(contrasts: Contrasts, bound: str, limit: float, alpha: float) -> Judgement:
    """Hold the contrasts against a bound.

    Args:
        contrasts: estimates with intervals.
        bound: ``max_difference``, ``min_ratio``, ``min_group``, ``max_group`` or ``margin``.
        limit: its value.
        alpha: how often it may be found to hold, or not to hold, wrongly.
    """
    measured = np.array([not reason for reason in contrasts.missing], dtype=bool)
    # A pair's ratio both ways is one comparison: only one way can be beyond.
    compared = max(int(measured.sum()) // (2 if bound == "min_ratio" else 1), 1)
    inner, outer = contrasts.at(1 - 2 * alpha), contrasts.at(1 - 2 * alpha / compared)
    held = _held(contrasts.estimates, inner, outer, bound, limit)
    decisions = [_decision(*each) for each in zip(measured, held.shown, held.ruled_out, strict=True)]
    ends = zip(inner.low, inner.high, strict=True)
    findings = tuple(
        Finding(name, groups, float(estimate), (float(low), float(high)), decision, _reason(missing, low + high))
        for name, groups, estimate, (low, high), decision, missing in zip(
            contrasts.names, contrasts.groups, contrasts.estimates, ends, decisions, contrasts.missing, strict=True
        )
    )
    return _summed_up(contrasts, held, findings, measured, bound, (alpha, compared))


def _decision(measured: bool, shown: bool, ruled_out: bool) -> Decision:
    if not measured or not (shown or ruled_out):
        return "inconclusive"
    return "fail" if ruled_out else "pass"


def _reason(missing: str, ends: float) -> str:
    return missing or ("there is no interval: nothing varies" if math.isnan(ends) else "")


def _held(estimates: Floats, inner: Interval, outer: Interval, bound: str, limit: float) -> _Held:
    if bound == "max_difference":
        low = np.maximum(np.maximum(outer.low, np.negative(outer.high)), 0)
        return _Held(np.abs(estimates), low, np.maximum(np.abs(inner.low), np.abs(inner.high)), True, limit)
    if bound == "max_group":
        return _Held(estimates, outer.low, inner.high, True, limit)
    return _Held(estimates, inner.low, outer.high, False, -limit if bound == "margin" else limit)


def _summed_up(
    contrasts: Contrasts,
    held: _Held,
    findings: tuple[Finding, ...],
    measured: NDArray[np.bool_],
    bound: str,
    precision: tuple[float, int],
) -> Judgement:
    if not measured.any():
        return Judgement(findings, None, math.nan, Interval(math.nan, math.nan), math.nan, None)
    places = np.flatnonzero(measured)
    extreme = np.argmax if held.upper else np.argmin
    worst = int(places[extreme(held.value[places])])
    ends = [float((np.max if held.upper else np.min)(end[places])) for end in (held.low, held.high)]
    # One that was not measured may be the worst: then nothing is shown.
    if not measured.all():
        ends[1 if held.upper else 0] = math.nan
    certifies = ends[1] if held.upper else max(-ends[0], 0.0) if bound == "margin" else ends[0]
    undecided = np.array([one.decision == "inconclusive" for one in findings]) & measured
    settled = not undecided.any() or any(one.decision == "fail" for one in findings)
    needed = None if settled else _needed(held, undecided, contrasts.sizes, *precision)
    return Judgement(findings, worst, float(held.value[worst]), Interval(*ends), certifies, needed)


def _needed(held: _Held, undecided: NDArray[np.bool_], sizes: Floats, alpha: float, compared: int) -> int | None:
    """Samples per group with which the estimates, if they stay, are decided with a power of 80 %.

    The standard error shrinks with the root of the sample size, and has to fit between the estimate and the
    bound as often as the normal quantiles of confidence and power together.
    """
    power = quantile(2 * POWER - 1)
    inside = held.value <= held.limit if held.upper else held.value >= held.limit
    room = np.abs(held.limit - held.value)
    up, down = held.high - held.value, held.value - held.low
    z = np.where(inside, quantile(1 - 2 * alpha), quantile(1 - 2 * alpha / compared))
    error = np.where(inside == held.upper, up, down) / z
    with np.errstate(divide="ignore", invalid="ignore"):
        samples = sizes * ((z + power) * error / room) ** 2
    beyond = undecided & ~inside
    # A single violation that is proven settles the check; otherwise every contrast has to be shown.
    number = samples[beyond].min() if beyond.any() else samples[undecided].max()
    return math.ceil(number) if number < MOST else None


def explain(
    judgement: Judgement, bound: str, limit: float, alpha: float, among: str, waived: Collection[str] = ()
) -> str:
    """The reason for a decision in words; findings about `waived` groups are left to their waiver."""
    considered = [f for f in judgement.findings if not set(f.groups) & set(waived)]
    failed = [f for f in considered if f.decision == "fail"]
    missing = list(dict.fromkeys(f.reason for f in considered if f.reason))
    sure = f"{100 * (1 - alpha):g} % sure"
    if failed:
        few = ", ".join(f"{f.name}: {figure(f.estimate)}" for f in failed[:3])
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        return f"{few}{more}; beyond {bound} {limit:g} ({sure})"
    if missing:
        return "; ".join(missing[:5]) + (f"; and {len(missing) - 5} more" if len(missing) > 5 else "")
    if not considered or judgement.worst is None:
        return "nothing to compare: fewer than two groups" if not judgement.findings else "every group is waived"
    upper = bound.startswith("max")
    end = judgement.interval.high if upper else judgement.interval.low
    worst = judgement.findings[judgement.worst].name
    what = f"{_WORDS[bound]}, {figure(judgement.estimate)} ({worst}),"
    reach = f"{'at most' if upper else 'at least'} {figure(end)}"
    if all(f.decision == "pass" for f in considered):
        return f"{what} is {reach} ({sure}): within {bound} {limit:g}"
    much = "as much" if upper else "as little"
    open_question = f"{what} may be {much} as {figure(end)}: {bound} {limit:g} is neither shown nor ruled out."
    return f"{open_question} {_advice(judgement, among, bound)}"


def _advice(judgement: Judgement, among: str, bound: str) -> str:
    settle = "No number of samples would settle it: the estimate is too close to the bound"
    if judgement.needed is not None:
        settle = f"About {judgement.needed:,} {among} per group would settle it"
    certified = f"; these data certify {bound} {figure(judgement.certifies)}" if judgement.certifies > 0 else ""
    return f"{settle}{certified}"


def settle(decisions: Sequence[Decision]) -> Decision:
    """Several decisions as one: any failure fails, and to pass all have to; of none nothing is known."""
    if "fail" in decisions:
        return "fail"
    return "pass" if decisions and set(decisions) == {"pass"} else "inconclusive"
