"""What is read as not known: the codes for it in attributes and labels, and how many rows hold each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from bmft._common import Assumption, did_you_mean, short
from bmft.errors import ConfigError
from bmft.tables.reading import Ints, Texts, as_number, column

_CODES = (
    "? | . | - | -- | -1 | na | n/a | #n/a | nan | nat | null | unk | unknown | missing | unspecified | "
    "undisclosed | undetermined | not known | not reported | not specified | not stated | not recorded | not given | "
    "not provided | not available | declined | declined to answer | patient declined to answer | patient refused | "
    "prefer not to answer | prefer not to say | unable to obtain"
)
UNKNOWN = frozenset(_CODES.split(" | "))
"""Codes read as not known in every attribute and label, beside an empty value, whatever their case and their blanks."""
DOUBTFUL = frozenset({"none", "nil", "u", "x", "99", "999", "9999"})
"""Codes that are groups unless somebody says otherwise, with a remark: they often stand for not known, not always."""
UNCERTAIN = frozenset({"-1", "uncertain"})
"""Codes of a label that somebody looked for and could not tell, as CheXpert has them."""
BLANK = "blank"
MEANINGS = {"uncertain": ("unknown", "positive", "negative"), "blank": ("unknown", "negative")}


@dataclass(frozen=True)
class Unknown:
    """The values that mean "not known" in a table, beside those of the default list `UNKNOWN`.

    Attributes:
        codes: each ``"CODE"`` (of every attribute), ``"COLUMN=CODE"`` (of one attribute or label), or ``"COLUMN="``:
            of this column only an empty value, and what is named for it, is not known.
        uncertain: what labels of -1 are: ``unknown`` (by default), ``positive`` or ``negative``; of one label
            ``"COLUMN=positive"``.
        blank: what empty labels are, likewise: ``unknown`` (by default) or ``negative``.

    Raises:
        ConfigError: `uncertain` or `blank` is none of these.
    """

    codes: str | Sequence[str] = ()
    uncertain: str | Sequence[str] | None = None
    blank: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        for option, known in MEANINGS.items():
            for _, meaning in self._meanings(option):
                if meaning not in known:
                    words = f"{', '.join(known[:-1])} or {known[-1]}, or COLUMN= before one of these"
                    raise ConfigError(f"--{option} {short(meaning)!r}: expected {words}.")

    def _meanings(self, option: str) -> list[tuple[str, str]]:
        """What is said, each the column ("" of all) and the meaning."""
        said = getattr(self, option)
        parts = [str(one).rpartition("=") for one in ([said] if isinstance(said, str) else said or ())]
        return [(name.strip(), meaning.strip()) for name, _, meaning in parts]

    def meaning(self, option: str, column: str) -> str | None:
        """What a label of -1 (`option` ``uncertain``), or an empty one (``blank``), is in a column; None: not said.

        >>> Unknown(uncertain=["edema=negative", "positive"]).meaning("uncertain", "edema")
        'negative'
        """
        said = dict(self._meanings(option))
        return said.get(column, said.get(""))

    def check_columns(self, table: pd.DataFrame) -> None:
        """Refuse what is said of labels that are not in the table.

        Raises:
            ConfigError: there is no such column; the message names the nearest.
        """
        columns = [str(one) for one in table.columns]
        for option in MEANINGS:
            for name, meaning in self._meanings(option):
                if name and name not in columns:
                    hint = did_you_mean(name, columns)
                    raise ConfigError(f"--{option} {short(name)}={meaning}: the table has no such column. {hint}")

    def codes_of(self, table: pd.DataFrame, name: str, *, label: bool = False) -> tuple[frozenset[str], bool]:
        """What is said of a column, folded, and whether the default list holds for it.

        A code of every attribute is none of a label's, where it may be a class.

        Raises:
            ConfigError: a code is said of a column that the table does not have.

        >>> Unknown(["9", "race="]).codes_of(pd.DataFrame({"sex": ["f"], "race": ["white"]}), "race")
        (frozenset({'9'}), False)
        """
        found, default = set[str](), True
        for said in [self.codes] if isinstance(self.codes, str) else self.codes:
            own, code = _split(str(said), [str(one) for one in table.columns])
            if own == name and not code:
                default = False
            elif own == name or (own is None and not label):
                found.add(plain_code(code))
        return frozenset(found), default

    def unmet(self, table: pd.DataFrame, names: Iterable[str]) -> list[Assumption]:
        """What is said of codes that no row holds: in their column, or in any of those of these `names`."""
        columns, found = [str(one) for one in table.columns], []
        for said in [self.codes] if isinstance(self.codes, str) else self.codes:
            own, code = _split(str(said), columns)
            looked = names if own is None else (own,)
            held = {plain_code(value) for name in looked for value in set(column(table, name, role="sensitive"))}
            if code and plain_code(code) not in held:
                value = f"no row holds the code {short(code, 40)!r}{f' in {own}' if own else ''}"
                found.append(Assumption("unknown", value, "the rows", f"--unknown {short(said, 40)}", guess=True))
        return found

    def why_not(self, table: pd.DataFrame, name: str, text: Texts) -> Texts:
        """``(n,)`` the code by which each id of a column is not known, `BLANK` of an empty one, else ""."""
        said, default = self.codes_of(table, name)
        return reasons(text, lambda value: plain_code(value) in said or (default and is_listed(value)))


BY_DEFAULT = Unknown()


def _split(said: str, columns: Sequence[str]) -> tuple[str | None, str]:
    """The column, None for all, and the code."""
    ends = [place for place, character in enumerate(said) if character == "="]
    if not ends:
        return None, said
    end = next((place for place in ends if said[:place].strip() in columns), None)
    if end is None:
        name = said.partition("=")[0].strip()
        raise ConfigError(
            f"--unknown {short(said)!r}: the table has no column {short(name)!r}. {did_you_mean(name, columns)}"
        )
    return said[:end].strip(), said[end + 1 :].strip()


def plain_code(text: str) -> str:
    """A code whatever its case, its blanks, the brackets around it and the way a number is written.

    >>> plain_code(" [Not_Reported] "), plain_code("-1.0")
    ('not reported', '-1')
    """
    number = as_number(text)
    if number is not None and abs(number) < 2**53:
        return f"{number:.15g}"
    return " ".join(_JOINED.sub(" ", text.casefold().strip(" []()<>{}\"'")).split())


_JOINED = re.compile(r"(?<=[a-z])[-_](?=[a-z])")


def is_listed(text: str) -> bool:
    """Whether a value is on the default list, or several on it that are joined.

    >>> is_listed("Unknown or Not Reported"), is_listed("NA/unknown"), is_listed("Other/Unknown")
    (True, True, False)
    """
    code = plain_code(text)
    return code in UNKNOWN or all(part in UNKNOWN for part in _OR.split(code))


_OR = re.compile(r" *[/,;] *| or ")


def is_code(text: str) -> bool:
    """Whether a label of this text means that the label is not known (if no class is called so)."""
    return is_listed(text) or plain_code(text) in UNCERTAIN


def reasons(text: Texts, is_unknown: Callable[[str], bool]) -> Texts:
    """``(n,)`` the code of each value that is not known, `BLANK` of an empty one, and "" of what is known."""
    found = {value: BLANK if value == "" else value if is_unknown(value) else "" for value in set(text)}
    return np.array([found[value] for value in text], dtype=object)


def counted(why: Iterable[str]) -> str:
    """The codes with their rows, most rows first, as ``-1: 9, unknown: 3``."""
    counts = sorted(Counter(one for one in why if one).items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    return ", ".join(f"{short(code, 40)}: {count:,}" for code, count in counts[:8]) + more


def said_of_groups(name: str, why: Texts, doubtful: Texts, rows: Ints, where: str) -> list[Assumption]:
    """What is said of an attribute's values that are not known, and of groups that may not be, in these rows."""
    found = []
    if number := int((why[rows] != "").sum()):
        value = f"{name}: {_rows(number)} unknown ({counted(why[rows])}){where}"
        found.append(Assumption("unknown", value, "the codes for unknown, docs/assumptions.md", "--unknown"))
    if odd := counted(doubtful[rows]):
        value = f"{name}: taken as they are, rows of {odd}{where}"
        found.append(
            Assumption("unknown", value, "such a code may mean not known", f"--unknown {name}=CODE", guess=True)
        )
    return found


def said_of_label(name: str, why: Texts, rows: Ints, where: str, unknown: Unknown) -> list[Assumption]:
    """What is said of a label's values that say nothing, in these rows."""
    found, here = [], why[rows]
    uncertain, blank = unsure(here), here == BLANK
    for which, option in ((uncertain, "uncertain"), (blank, "blank")):
        meaning = unknown.meaning(option, name)
        if which.any() and meaning in ("positive", "negative"):
            value = f"{name}: {_rows(which.sum())} ({counted(here[which])}) read as {meaning}{where}"
            found.append(Assumption("unknown", value, f"--{option}", f"--{option}"))
            here = np.where(which, "", here)
    if (here != "").any():
        value = f"{name}: {_rows((here != '').sum())} without a label ({counted(here)}){where}"
        found.append(Assumption("unknown", value, "the codes for unknown", "--uncertain, --blank, --unknown"))
    return found


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def unsure(why: Texts) -> npt.NDArray[np.bool_]:
    """Which of the codes say that somebody looked and could not tell."""
    return np.array([plain_code(one) in UNCERTAIN for one in why], dtype=bool)
