"""Under what a model is debiased, whatever the method: what counts as a decision, what may be lost, which seed."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from bmft._common import unknown_name
from bmft.auditing import Limits
from bmft.errors import ConfigError


@dataclass(frozen=True)
class Conditions:
    """What every run of a debiasing, a search or a comparison has in common, passed on as one value.

    Attributes:
        threshold: probability from which a decision is positive.
        limits: what a result may cost.
        keep: ``"best"`` is chosen on select, ``"last"`` is the final epoch, whatever it is.
        accept: the least evidence with which one of few candidates is kept: ``"likely"`` or ``"shown"``, see
            `bmft.auditing.Claim`.
        confidence: of that evidence, one-sided.
        head: module path of the layer that makes the logits; found by running the model otherwise.
        multi_label: the outputs are labels of yes or no each, not classes.
        seed: of every draw.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        intervals: of the audits before and after; they take seconds, which a search or a study saves.

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
        """Whether evidence of that word is enough."""
        return word in ("shown", self.accept)

    def but(self, **values: Any) -> "Conditions":
        """The same conditions with these values, each a name of this class or of its `limits`.

        Raises:
            ConfigError: a name is not known, or a value is not possible.
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
