"""How a report says things: measures in plain words, numbers, and the sentences that state the outcome."""

from collections.abc import Mapping, Sequence
from math import isfinite
from types import MappingProxyType
from typing import Any

from bmft._common import humanise
from bmft.auditing import CONSTANT, HEADLINE, METRICS, SWAPPED, TURN, Metric

Json = Mapping[str, Any]

MAIN = ("true_positive_rate", "false_positive_rate", "roc_auc", "selection_rate")

GAPS: Mapping[str, tuple[str, str]] = {
    "equalized_odds_difference": ("Equalized odds", "larger of the true and the false positive rate's"),
    "true_positive_rate_difference": ("True positive rate", "largest difference between two groups"),
    "false_positive_rate_difference": ("False positive rate", "largest difference between two groups"),
    "demographic_parity_difference": ("Predicted-positive rate", "largest difference between two groups"),
    "roc_auc_difference": ("ROC AUC", "largest difference between two groups"),
}


def measure(key: str) -> Metric:
    """The measure called `key`; one without an entry is named by its key, without a direction."""
    return METRICS.get(key) or Metric(humanise(key), "")


def short_name(key: str) -> str:
    """The measure without its explanation in brackets."""
    return measure(key).name.split(" (")[0]


def gap_name(key: str) -> str:
    """What a gap is called in a table."""
    return GAPS[key][0] if key in GAPS else humanise(key.removesuffix("_difference"))


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A figure with a true minus sign; a dash where it could not be measured.

    >>> number(0.5), number(None), number(-0.02, signed=True), number(-0.0001, signed=True)
    ('0.500', '–', '−0.020', '0.000')
    """
    if value is None or not isfinite(value):
        return "–"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def span(interval: Sequence[float | None] | None, *, signed: bool = False) -> str:
    """An interval in words; empty where there is none.

    >>> span([0.1, 0.25]), span(None), span([-0.1, 0.2], signed=True)
    ('0.100 to 0.250', '', '−0.100 to +0.200')
    """
    if interval is None or any(end is None or not isfinite(end) for end in interval):
        return ""
    return f"{number(interval[0], signed=signed)} to {number(interval[1], signed=signed)}"


def with_span(audit: Json, path: Sequence[str]) -> str:
    """The figure at a path of an audit, and its interval in brackets where there is one."""
    figure, found = number(value_of(audit, path)), span(interval_of(audit, *path))
    return f"{figure} ({found})" if found else figure


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands.

    >>> count(20000).split(), count(7)
    (['20', '000'], '7')
    """
    return "–" if value is None else f"{int(value):,}".replace(",", "\u202f")


def value_of(audit: Json, path: Sequence[str]) -> Any:
    """What is at a path of an audit's JSON; None where there is nothing."""
    here: Any = audit
    for key in path:
        here = here.get(key) if isinstance(here, Mapping) else None
    return here


def interval_of(audit: Json, *keys: str) -> Sequence[float | None] | None:
    """The interval at a path such as ``"gaps", "sex", HEADLINE`` of an audit; None where absent."""
    found: Sequence[float | None] | None = value_of(audit, ("intervals", *keys))
    return found


def counted(group: Json, about: Metric) -> int:
    """How many cases of a group a measure is a share of: all but for a rate among positives or negatives.

    A mean over several classes is a share of no one count: all cases.
    """
    n, positives = int(group["n"]), int(group["n_positive"])
    if not about.rate or about.among == "samples" or several(group):
        return n
    return positives if about.among == "positives" else n - positives


def several(figures: Json) -> bool:
    """Whether these are means over several classes or labels."""
    return "by_class" in figures


def percent(level: float) -> str:
    """A level in words.

    >>> percent(0.95), percent(0.999)
    ('95 %', '99.9 %')
    """
    return f"{100 * level:g} %"


def joined(items: Sequence[str]) -> str:
    """A list as a reader would say it.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def gap_sentence(attribute: str, before: Json, after: Json | None) -> str:
    """How far apart the groups' error rates are, before and after, with intervals."""
    path = ("gaps", attribute, HEADLINE)
    old = with_span(before, path)
    if after is None:
        return f"Between the groups of {attribute}, error rates differ by up to {old}."
    moved = _moved(value_of(before, path), value_of(after, path))
    return (
        f"Between the groups of {attribute}, the largest difference in error rates {moved} from {old} "
        f"to {with_span(after, path)}."
    )


def auc_sentence(before: Json, after: Json | None) -> str:
    """ROC AUC over everyone, before and after."""
    path = ("overall", "roc_auc")
    if after is None:
        return f"ROC AUC over everyone is {with_span(before, path)}."
    return f"ROC AUC over everyone was {with_span(before, path)} and is now {with_span(after, path)}."


def caveats(audit: Json) -> list[str]:
    """What a reader has to know before any figure."""
    little = "Figures of a model that does not tell cases apart mean little."
    turn = f"{TURN[0].upper()}{TURN[1:]}."
    return [f"Careful: {flag}. {turn if flag.startswith(SWAPPED) else little}" for flag in audit["flags"]]


def headline(
    before: Json, after: Json | None, *, status: str, corrected: Mapping[str, float] = MappingProxyType({})
) -> str:
    """The page's title: what happened to the largest gap, or that the original was kept.

    `corrected` are attributes' gaps after, corrected for the choice.
    """
    if status == "kept":
        return "The original model was kept"
    found = {name: gaps.get(HEADLINE) for name, gaps in before["gaps"].items()}
    known = {name: value for name, value in found.items() if value is not None}
    if CONSTANT in before["flags"]:
        return "The model answers the same for every case: no gap can be read from it"
    if not known:
        return "No gap between groups could be measured"
    name = max(known, key=lambda name: known[name])
    old = number(known[name])
    if after is None:
        return f"Error rates differ by up to {old} between groups of {name}"
    new = corrected.get(name, after["gaps"][name].get(HEADLINE))
    return f"The gap between groups of {name} {_moved(known[name], new)} from {old} to {number(new)}"


def _moved(old: float | None, new: float | None) -> str:
    if old is None or new is None or round(new, 3) == round(old, 3):
        return "went"
    return "fell" if new < old else "rose"
