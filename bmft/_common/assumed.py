"""What was inferred and not said: every choice bmft makes about a model, its classes, its pixels or its rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Assumption:
    """One choice, where it came from, and how to say otherwise.

    Attributes:
        subject: what it is about: ``classes``, ``output``, ``inputs``, ``answer``, ``pixels``, ``weights``,
            ``unknown``, ``paths``, ``splits`` or ``views``.
        value: what is taken, in a few words.
        source: where that came from, such as ``the checkpoint's class_to_idx``.
        option: the option that says otherwise, such as ``--positive``.
        guess: nothing said so: it is what most would mean, and worth a look.

    >>> print(Assumption("classes", "1 = melanoma is positive", "the checkpoint's classes", "--positive"))
    classes: 1 = melanoma is positive (from the checkpoint's classes; say otherwise: --positive)
    """

    subject: str
    value: str
    source: str
    option: str
    guess: bool = False

    def __str__(self) -> str:
        said = f"a guess: {self.source}" if self.guess else f"from {self.source}"
        return f"{self.subject}: {self.value} ({said}; say otherwise: {self.option})"


def as_json(assumed: Iterable[Assumption]) -> dict[str, list[dict[str, str | bool]]]:
    """Subject -> its choices, as every JSON that bmft writes has them under ``assumed``."""
    found: dict[str, list[dict[str, str | bool]]] = {}
    for one in dict.fromkeys(assumed):
        entry: dict[str, str | bool] = {"value": one.value, "from": one.source}
        found.setdefault(one.subject, []).append(entry | {"option": one.option, "guess": one.guess})
    return found


def in_words(assumed: Mapping[str, Any], *subjects: str) -> list[str]:
    """What an `as_json` has about these subjects, a sentence each; by default about what every figure is of.

    >>> in_words(as_json([Assumption("classes", "yes is positive", "the labels", "--positive")]), "classes")
    ['Classes: yes is positive (from the labels).']
    """
    return [
        f"{subject.capitalize()}: {one['value']} ({'a guess: ' if one['guess'] else 'from '}{one['from']})."
        for subject in subjects or ("output", "classes", "inputs")
        for one in assumed.get(subject, ())
    ]
