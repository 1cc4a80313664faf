"""Under what a model is debiased, whatever the method: what counts as a decision, what may be lost, which seed."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from bmft._common import unknown_name
from bmft.auditing import Limits
from bmft.errors import ConfigError


@dataclass(frozen=True)
class Conditions:
    """The conditions under which a model is debiased, searched or compared, whatever the method; a frozen value.

    `bmft.debias`, `bmft.cross_fit` and `bmft.search` take it as ``conditions=``, and take each of its values, and each
    of its limits, by name as well: ``debias(model, fit, select, seed=1, max_auc_drop=0.02)``.

    Attributes:
        threshold: The probability, between 0 and 1, from which a decision is positive. For several classes the largest
            probability decides.
        limits: How much worse than the original a result may be, on the same rows.
        keep: ``"best"`` keeps the candidate that is best on the select set, and the original where none does better
            without harm; ``"last"`` keeps the last epoch, whatever it is.
        accept: How strong the evidence for a smaller gap has to be where a method has few candidates: ``"likely"`` or
            ``"shown"``, see `bmft.auditing.Claim`.
        confidence: The one-sided confidence of ``"shown"``, above 0.5 and below 1.
        head: The module path of the layer that makes the logits, such as ``"fc"``; None finds it by running the model.
        multi_label: True where every output is a label of its own, answered with yes or no; False for classes.
        seed: The seed of every random draw: the same seed gives the same result.
        device: ``"auto"`` (a CUDA device if there is one), ``"cpu"`` or ``"cuda"``.
        intervals: Whether the audits before and after have confidence intervals, which take seconds.

    Raises:
        ConfigError: `keep`, `accept` or `confidence` has a value that it cannot have.

    >>> found = Conditions().but(seed=3, max_auc_drop=0.02)
    >>> found.seed, found.limits.max_auc_drop
    (3, 0.02)
    """

    threshold: float = 0.5
    limits: Limits = field(default_factory=Limits)
    keep: Literal["best", "last"] = "best"
    accept: Literal["likely", "shown"] = "likely"
    confidence: float = 0.9
    head: str | None = None
    multi_label: bool = False
    seed: int = 0
    device: str = "auto"
    intervals: bool = True

    def __post_init__(self) -> None:
        if self.keep not in ("best", "last"):
            raise ConfigError(f"keep is {self.keep!r}: expected 'best' or 'last'")
        if self.accept not in ("likely", "shown"):
            raise ConfigError(f"accept is {self.accept!r}: expected 'likely' or 'shown'")
        if not 0.5 < self.confidence < 1:
            raise ConfigError(f"confidence is {self.confidence}: expected more than 0.5 and less than 1, such as 0.9")

    def accepts(self, word: str) -> bool:
        """Whether evidence of this word (``Claim.word``) is strong enough for a result to be kept."""
        return word in ("shown", self.accept)

    def but(self, **values: Any) -> "Conditions":
        """A copy of the conditions with other values, each named as a field of this class or of its `limits`.

        Raises:
            ConfigError: There is no field of that name, or it cannot have that value.
        """
        own, inside = _names(self), _names(self.limits)
        for name in values:
            if name not in {*own, *inside}:
                raise ConfigError(unknown_name("condition", name, dict.fromkeys([*own, *inside])))
        limits = replace(self.limits, **{name: value for name, value in values.items() if name in inside})
        return replace(self, **{"limits": limits, **{n: value for n, value in values.items() if n in own}})

    def to_dict(self) -> dict[str, Any]:
        """What of them decides the result, as plain values for a report."""
        own = {"keep": self.keep, "accept": self.accept, "confidence": self.confidence}
        return {"seed": self.seed, "threshold": self.threshold, **asdict(self.limits), **own}


def _names(value: Any) -> Iterable[str]:
    return [f.name for f in fields(value)]
