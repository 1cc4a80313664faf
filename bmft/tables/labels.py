"""Label columns as class numbers: which name is which class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bmft._common import listed, short
from bmft.errors import ConfigError, DataError
from bmft.tables.reading import Ints, Texts, as_number, column


def encode_labels(
    table: pd.DataFrame, target: str | Sequence[str], classes: Sequence[str] | None = None
) -> tuple[Ints, tuple[str, ...], str]:
    """Labels as ``(n,)`` class numbers or ``(n, labels)`` 0/1, the class names, and the task. Empty is -1.

    One column of 0/1 is binary; other whole numbers are class numbers from 0; names are numbered in
    alphabetical order, or in the order of `classes`. Several columns are labels of 0/1 each.
    """
    names = (target,) if isinstance(target, str) else tuple(target)
    if len(names) == 1:
        codes, known = _encode_classes(names[0], column(table, names[0], role="label"), classes)
        return codes, known, "binary" if len(known) == 2 else "multiclass"
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"label columns {list(names)!r}: name each of them once.")
    if classes is not None and tuple(classes) != names:
        raise ConfigError("classes: for several label columns their names are the classes; leave it out.")
    columns = [_encode_classes(name, column(table, name, role="label"), ("0", "1"))[0] for name in names]
    return np.stack(columns, axis=1), names, "multilabel"


def _encode_classes(name: str, text: Texts, classes: Sequence[str] | None) -> tuple[Ints, tuple[str, ...]]:
    known = tuple(map(str, classes)) if classes is not None else _class_names(name, text[text != ""])
    if len(set(known)) < max(2, len(known)):
        raise ConfigError(f"classes {known!r}: two or more names are needed, each once.")
    code = {"": -1, **{class_name: index for index, class_name in enumerate(known)}}
    bad = [row for row, value in enumerate(text) if value not in code]
    if bad:
        shown = listed([f"row {row}: {short(text[row], 60)!r}" for row in bad])
        raise DataError(f"label column {name!r} has values other than {', '.join(known[:12])}:\n{shown}")
    return np.array([code[value] for value in text], dtype=np.int64), known


def _class_names(name: str, text: Texts) -> tuple[str, ...]:
    distinct = set(text)
    numbers = {value for value in distinct if as_number(value) is not None}
    if not numbers and len(distinct) > 1:
        return tuple(sorted(distinct))
    if not numbers:
        raise DataError(
            f"label column {name!r} holds {'one name only: ' + short(*distinct) if distinct else 'nothing'}. "
            "Labels are 0/1, class numbers from 0, or two or more names (name all classes to allow a part)."
        )
    # No class number has ten digits, and Python turns no text of thousands of them into a number.
    odd = sorted(value for value in distinct if not (value.isascii() and value.isdigit() and len(value) < 10))
    highest = max((int(value) for value in distinct - set(odd)), default=0)
    # a class or two may be missing from a sample, but most being absent means these are no class numbers
    if odd or highest > 4 * len(distinct) + 16 or ("0" not in distinct and distinct != {"1"}):
        raise DataError(
            f"label column {name!r} has {short(', '.join(odd or sorted(distinct)), 80)}: expected 0/1, class "
            "numbers 0, 1, 2, ..., or names for every class. Recode the column, or name its classes."
        )
    return tuple(str(number) for number in range(max(highest, 1) + 1))
