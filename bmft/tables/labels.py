"""Label columns as class numbers: which name is which class, and which one is positive."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from bmft._common import Assumption, did_you_mean, folded, listed, short
from bmft.errors import ConfigError, DataError
from bmft.tables.reading import Ints, Texts, as_number, column
from bmft.tables.unknown import BLANK, BY_DEFAULT, Unknown, counted, is_code, plain_code, reasons, unsure

# The pairs of words that say by themselves which one is positive, in lower case, the positive one last.
WORDS = (("0", "1"), ("false", "true"), ("no", "yes"), ("negative", "positive"), ("neg", "pos"))
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_SAY = "say which is positive (--positive NAME) or the order of the model's outputs (--classes A,B)"


class ClassNames(NamedTuple):
    """The classes in the order of a model's outputs, and who says so, such as the checkpoint's ``class_to_idx``."""

    names: tuple[str, ...]
    source: str


class Labels(NamedTuple):
    """Label columns as numbers.

    Attributes:
        targets: ``(n,)`` class numbers, or ``(n, labels)`` 0/1; -1 where the label is not known. Of two classes 1 is
            the positive one.
        classes: their names in the order of the numbers.
        task: ``binary``, ``multiclass`` or ``multilabel``.
        outputs_reversed: of two classes the model's outputs have the positive one first.
        assumed: which class is which, and where that came from.
        why: label column -> ``(n,)`` the code that its label is not known by, or "".
    """

    targets: Ints
    classes: tuple[str, ...]
    task: str
    outputs_reversed: bool
    assumed: tuple[Assumption, ...]
    why: Mapping[str, Texts] = MappingProxyType({})


def encode_labels(
    table: pd.DataFrame,
    target: str | Sequence[str],
    classes: Sequence[str] | ClassNames | None = None,
    positive: str | None = None,
    unknown: Unknown = BY_DEFAULT,
    multi_label: bool = False,
) -> Labels:
    """Labels as class numbers or 0/1, with the names of the classes and what was assumed about them.

    One column of 0/1 is binary, as are other words that say which one is positive (`WORDS`); other whole numbers are
    class numbers from 0. Names need an order: `classes`, or for two of them `positive`. Several columns are labels of
    0/1 each, unless exactly one of them is 1 in every row: then they are the classes of one label, in their order.
    Empty values and codes for what is not known (`bmft.tables.UNKNOWN`) are no label, unless a class is called so.

    Args:
        table: from `read_table`.
        target: the column or columns.
        classes: every class in the order of the model's outputs. `ClassNames` that a checkpoint says are left aside
            where the labels are others.
        positive: the positive one of two classes; by default the word that says so, else the last of `classes`.
        unknown: what is read as not known, and what -1 and empty values are.
        multi_label: several columns are labels of 0/1 each, also where exactly one is 1 in every row.

    Raises:
        ConfigError: nothing says which name is which class, or `positive` is none of two classes, or every label is
            the same and nothing says what the rows without one are.
        DataError: a value is none of the classes.

    >>> labels = encode_labels(pd.DataFrame({"dx": ["nevus", "melanoma"]}), "dx", positive="melanoma")
    >>> labels.classes, labels.targets
    (('nevus', 'melanoma'), array([0, 1]))
    """
    names = (target,) if isinstance(target, str) else tuple(target)
    unknown.check_columns(table)
    if len(names) == 1:
        own = () if classes is None else classes.names if isinstance(classes, ClassNames) else _checked(classes)
        text, codes = _known(table, names[0], (*own, positive or ""), unknown)
        labels = _one_column(names[0], text, classes, positive)
        targets = _filled(names[0], labels.targets, codes, unknown, labels.task)
        return labels._replace(targets=targets, why={names[0]: codes})
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"label columns {list(names)!r}: name each of them once.")
    known = {name: _known(table, name, (), unknown) for name in names}
    columns = [
        _filled(name, _numbers(name, text, ("0", "1")), why, unknown, "multilabel")
        for name, (text, why) in known.items()
    ]
    targets, why = np.stack(columns, axis=1), {name: why for name, (_, why) in known.items()}
    if not multi_label and _one_hot(targets):
        return _one_of(names, targets, classes, positive)._replace(why=why)
    if positive is not None:
        raise ConfigError("positive: in several label columns 1 is positive; leave it out.")
    if classes is not None and not isinstance(classes, ClassNames) and tuple(classes) != names:
        raise ConfigError("classes: for several label columns their names are the classes; leave it out.")
    said = about_classes(names, "multilabel", "the label columns", "--label")
    return Labels(targets, names, "multilabel", False, (said,), why)


def about_classes(
    classes: Sequence[str],
    task: str,
    source: str,
    option: str = "--positive, --classes",
    *,
    outputs_reversed: bool = False,
    guess: bool = False,
) -> Assumption:
    """Which class is positive, or which number is which class, as every output of bmft says it.

    Args:
        classes: in the order of their numbers.
        task: ``binary``, ``multiclass`` or ``multilabel``.
        source: who says so.
        option: what says otherwise.
        outputs_reversed: of two classes a model's outputs have the positive one first.
        guess: nobody says so.

    >>> print(about_classes(("nevus", "melanoma"), "binary", "--positive"))
    classes: melanoma is positive, nevus is not (from --positive; say otherwise: --positive, --classes)
    """
    shown = [short(name) for name in classes]
    if task == "binary":
        value = f"{shown[1]} is positive, {shown[0]} is not"
        value += f"; the model's outputs are {shown[1]}, {shown[0]}" if outputs_reversed else ""
    else:
        first = shown[:12] if task == "multilabel" else [f"{place} = {name}" for place, name in enumerate(shown[:12])]
        value = ", ".join(first) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
        value = f"1 is positive in {value}" if task == "multilabel" else value
    return Assumption("classes", value, source, option, guess)


def _one_hot(targets: Ints) -> bool:
    """Whether every row that has a label ``(n, labels)`` has all of them, and exactly one is 1."""
    labelled = targets[(targets >= 0).any(1)]
    return len(labelled) > 0 and bool(((labelled >= 0).all(1) & (labelled.sum(1) == 1)).all())


def _one_of(
    names: tuple[str, ...], targets: Ints, classes: Sequence[str] | ClassNames | None, positive: str | None
) -> Labels:
    """One-hot columns as the classes of one label."""
    if classes is None or (isinstance(classes, ClassNames) and len(_by_name(names, classes.names)) < len(names)):
        classes = ClassNames(names, "the order of the label columns")
    text = np.where((targets >= 0).any(1), np.array(names, dtype=object)[targets.argmax(1)], "")
    labels = _one_column(" ".join(names), text, classes, positive)
    value = f"exactly one of the {len(names)} label columns is 1 in every row, so they are classes"
    said = Assumption("classes", value, "the label columns", "--multi-label")
    return labels._replace(assumed=(said, *labels.assumed))


def _known(table: pd.DataFrame, name: str, classes: Sequence[str], unknown: Unknown) -> tuple[Texts, Texts]:
    """A column's labels, "" for those that are not known, and why these are not."""
    text, own = column(table, name, role="label"), {folded(one) for one in classes}
    said, default = unknown.codes_of(table, name, label=True)
    why = reasons(
        text, lambda value: plain_code(value) in said or (default and is_code(value) and folded(value) not in own)
    )
    return np.where(why == "", text, ""), why


def _filled(name: str, targets: Ints, why: Texts, unknown: Unknown, task: str) -> Ints:
    """The targets, with a 0 or 1 for what is not known where somebody said that it is one."""
    said = {"uncertain": unsure(why), "blank": why == BLANK}
    if task == "multiclass":
        if any(unknown.meaning(one, name) in ("positive", "negative") for one in said):
            raise ConfigError(f"--uncertain and --blank are for yes or no; label column {name!r} has several classes.")
        return targets
    known = np.unique(targets[targets >= 0])
    for option, rows in said.items():
        meaning = unknown.meaning(option, name)
        if rows.any() and meaning is None and len(known) == 1:
            raise ConfigError(
                f"label column {name!r} is {known[0]} wherever it is known, and {counted(why[rows])} in the other "
                f"rows: say what that means (--{option} negative), or --{option} unknown to leave these rows out."
            )
        if meaning in ("positive", "negative"):
            targets = np.where(rows, int(meaning == "positive"), targets)
    return targets


class _Order(NamedTuple):
    names: tuple[str, ...]
    source: str


def _one_column(name: str, text: Texts, classes: Sequence[str] | ClassNames | None, positive: str | None) -> Labels:
    found = set(text) - {""}
    order = _order(name, found, classes, positive)
    spelled = _spelled(found, order.names)
    text = np.array([spelled.get(value, value) for value in text], dtype=object)
    if len(order.names) > 2:
        if positive is not None:
            raise ConfigError(
                f"--positive {short(positive)!r} is for two classes; label column {name!r} has {len(order.names)}."
            )
        said = about_classes(order.names, "multiclass", order.source, "--classes")
        return Labels(_numbers(name, text, order.names), order.names, "multiclass", False, (said,))
    chosen = _positive(order.names, positive)
    known = (order.names[1 - order.names.index(chosen)], chosen)
    turned = known != order.names
    source = order.source if positive is None or "--positive" in order.source else f"--positive, {order.source}"
    said = about_classes(known, "binary", source, outputs_reversed=turned)
    return Labels(_numbers(name, text, known), known, "binary", turned, (said,))


def _order(name: str, found: set[str], classes: Sequence[str] | ClassNames | None, positive: str | None) -> _Order:
    """The classes in the order of the model's outputs."""
    if classes is not None and not isinstance(classes, ClassNames):
        return _Order(_checked(classes), "--classes")
    told = classes if classes is not None and len(classes.names) > 1 else None
    if told is not None:
        named = _by_name(found, told.names)
        # Of two labels of which one is said to be positive the names of more outputs say nothing.
        one_of_two = positive is not None and len(found) == 2 < len(told.names)
        if named and found <= set(named) and not one_of_two:
            return _Order(told.names, told.source)
        if named and not one_of_two and not found <= set(named):
            raise ConfigError(
                f"label column {name!r} has {_shown(sorted(found - set(named)))}, which {told.source} does not have: "
                f"that is {_shown(told.names)}. Recode the column, or name its classes in the order of the model's "
                "outputs (--classes A,B,...)."
            )
        if len(told.names) == 2 and positive is not None and _by_name([positive], told.names):
            # Labels of 0 and 1, and a name for one of them that only the checkpoint knows.
            return _Order(told.names, told.source)
    beside = "" if told is None else f"{told.source} has {_shown(told.names)}"
    two = beside if told is not None and len(told.names) == 2 else ""
    words = next((pair for pair in WORDS if found and {value.casefold() for value in found} <= set(pair)), None)
    if words is not None:
        spelling = {value.casefold(): value for value in found}
        pair = tuple(spelling.get(word, word) for word in words)
        return _Order(pair, "; ".join(filter(None, (f"the labels {pair[0]} and {pair[1]}", two))))
    if _are_class_numbers(found, positive):
        return _Order(_class_numbers(name, found), "the labels, which are class numbers")
    if len(found) < 2:
        raise DataError(
            f"label column {name!r} holds {'one name only: ' + short(next(iter(found))) if found else 'nothing'}. "
            "Labels are 0/1, class numbers from 0, or two or more names (name all classes to allow a part)."
        )
    shown = ", ".join(short(value) for value in sorted(found)[:12])
    beside = f" {beside[:1].upper()}{beside[1:]}." if beside else ""
    if len(found) > 2:
        raise ConfigError(
            f"label column {name!r} has {len(found)} names ({shown}), and nothing says which output of the model is "
            f"which: give them in the order of the outputs (--classes A,B,...).{beside}"
        )
    if positive is None:
        raise ConfigError(f"label column {name!r} has {shown}, and nothing says which is positive: {_SAY}.{beside}")
    chosen = _positive(tuple(sorted(found)), positive)
    other = next(iter(found - {chosen}))
    return _Order((other, chosen), "--positive; of two outputs the second is taken to be its own")


def _are_class_numbers(found: set[str], positive: str | None) -> bool:
    """Whether labels are numbers that count from 0; two others, such as 1 and 2, are names like any two."""
    coded = len(found) == 2 and all(_WHOLE.fullmatch(value) for value in found)
    return any(as_number(value) is not None for value in found) and not (coded and ("0" not in found or positive))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(short(one) for one in names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _checked(classes: Sequence[str]) -> tuple[str, ...]:
    names = tuple(str(name).strip() for name in ([classes] if isinstance(classes, str) else classes))
    if len({folded(name) for name in names}) < max(2, len(names)) or "" in names:
        raise ConfigError(f"classes {names!r}: two or more names are needed, each once.")
    return names


def _positive(names: tuple[str, ...], positive: str | None) -> str:
    """The one of two names that is positive: as said, the word that says so, else the last."""
    if positive is not None:
        value = next(iter(_by_name([positive], names).values()), None)
        if value is None:
            hint = did_you_mean(positive, names)
            raise ConfigError(f"--positive {short(positive)!r} is none of the classes {', '.join(names)}. {hint}")
        return value
    return names[0] if tells_positive(names[::-1]) else names[-1]


def tells_positive(names: Sequence[str]) -> bool:
    """Whether two names say by themselves that the second is positive, such as no and yes."""
    return tuple(map(folded, names)) in WORDS


def _spelled(values: Iterable[str], names: Sequence[str]) -> Mapping[str, str]:
    """Each value that is a class -> the class: by its name, else by its number where no class is called by one."""
    values = list(values)
    if not any(as_number(name) is not None for name in names):
        digits = {value: int(value) for value in values if value.isascii() and value.isdigit() and len(value) < 10}
        if len(digits) == len(values) and max(digits.values(), default=0) < len(names):
            return {value: names[number] for value, number in digits.items()}
    return _by_name(values, names)


def _by_name(values: Iterable[str], names: Sequence[str]) -> Mapping[str, str]:
    """Each value that is a class -> the class, whatever the case and the blanks where that tells them apart."""
    by_key = {folded(name): name for name in names}
    if len(by_key) < len(names):
        return {value: value for value in values if value in names}
    return {value: by_key[folded(value)] for value in values if folded(value) in by_key}


def _numbers(name: str, text: Texts, known: Sequence[str]) -> Ints:
    code = {"": -1, **{class_name: index for index, class_name in enumerate(known)}}
    bad = [row for row, value in enumerate(text) if value not in code]
    if bad:
        shown = listed([f"row {row}: {short(text[row], 60)!r}" for row in bad])
        raise DataError(f"label column {name!r} has values other than {', '.join(known[:12])}:\n{shown}")
    return np.array([code[value] for value in text], dtype=np.int64)


def _class_numbers(name: str, distinct: set[str]) -> tuple[str, ...]:
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
