"""How names and values are shown in messages, and which known name an unknown one is near."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from html import escape

# The figures of a small table, and their names there.
SHOWN = {"roc_auc": "ROC AUC", "true_positive_rate": "TPR", "false_positive_rate": "FPR"}
MOST = 20  # names or problems that one message lists


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not among the `known`, with the nearest one.

    >>> unknown_name("method", "bmtf", ["bmft", "swift"])
    "unknown method 'bmtf': did you mean 'bmft'?"
    """
    hint = did_you_mean(name, known)
    return f"unknown {what} {shown(name)}: {hint[0].lower()}{hint[1:]}"


def one_line(value: object) -> str:
    r"""Text on one line; what a terminal would obey and not show is a replacement character.

    >>> one_line("a\nb\x1b[31mc")
    'a b�[31mc'
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def short(value: object, limit: int = 120) -> str:
    """Text for a message: one line, cut to `limit` characters."""
    text = " ".join(one_line(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: object, limit: int = 80) -> str:
    """A value as Python writes it, for a message: one line, cut to `limit` characters.

    >>> shown("x" * 100, 12), shown(16**5000)
    ("'xxxxxxxx...", 'an int too large to show')
    """
    try:
        return short(repr(value), limit)
    # Python writes out no integer of thousands of digits, and nothing nested thousands deep.
    except (ValueError, RecursionError):
        kind = type(value).__name__
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} too large to show"


def folded(name: str) -> str:
    """A name whatever its case, blanks and underscores.

    >>> folded("Pleural_Effusion ")
    'pleural effusion'
    """
    return " ".join(str(name).replace("_", " ").split()).casefold()


def did_you_mean(name: str, options: Iterable[str], otherwise: str = "") -> str:
    """The nearest option as a sentence; `otherwise`, or the options themselves, where none is near.

    >>> did_you_mean("Sex", ["age", "sex"])
    "Did you mean 'sex'?"
    >>> did_you_mean("colour", ["age", "sex"])
    "There are 'age', 'sex'."
    """
    known = [str(option) for option in options]
    lowered = {option.lower(): option for option in reversed(known)}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    if near:
        return f"Did you mean {lowered[near[0]]!r}?"
    first = ", ".join(repr(short(option, 40)) for option in known[:MOST])
    listing = f"There are {first}{', ...' if len(known) > MOST else ''}." if known else "There are none."
    return otherwise or listing


def listed(problems: Sequence[str], limit: int = MOST) -> str:
    """Up to `limit` problems, one per line, then how many more there are."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A figure with three decimals and its interval, as text; "-" where there is none.

    >>> with_interval(0.8954, (0.861, 0.9234)), with_interval(float("nan"), None)
    ('0.895 [0.861, 0.923]', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    if interval is None or any(bound is None or math.isnan(bound) for bound in interval):
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def humanise(key: str) -> str:
    """A key of a report as words for a reader.

    >>> humanise("worst_group_roc_auc"), humanise("auc_gap")
    ('Worst group ROC AUC', 'AUC gap')
    """
    words = re.sub(r"\b(roc auc|auc)\b", lambda found: found[0].upper(), key.replace("_", " "))
    return words[:1].upper() + words[1:]


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A title and a small table as a notebook shows them; every text is escaped.

    >>> html_table("Sex", [], [["<f>", 7]])
    '<div><p><b>Sex</b></p><table><tbody><tr><td>&lt;f&gt;</td><td>7</td></tr></tbody></table></div>'
    """

    def row(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(one_line(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    head = f"<thead>{row(header, 'th')}</thead>" if header else ""
    return f"<div><p><b>{escape(one_line(title))}</b></p><table>{head}<tbody>{body}</tbody></table></div>"
