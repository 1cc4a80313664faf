"""What to expect of debiasing from so many rows: the curve that was measured, and what a gap's standard error says.

The curve was measured on one checkpoint and one kind of image (`benchmarks/small_sets.py`). Nothing is said of sizes
outside the measured range.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from statistics import NormalDist
from typing import Any

from bmft.auditing import POWER
from bmft.errors import ConfigError
from bmft.gate.sample_size import outside

IN_PROPORTION = "in proportion"  # to the rows to fit, in the study: rows to choose by
WORDS = ("shown", "likely", "none")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Expected:
    """What debiasing gave, on rows that chose nothing, for one attribute.

    Attributes:
        attribute: as the study calls it.
        between: rows of the smallest cell at the measured sizes on either side; the same twice at a measured size.
        trainings: on different cuts of the patients, at the smaller one of these.
        divisions: of the other rows into rows that chose and rows that measured, over which the figures are means.
        removed: mean share of the gap that was removed; below 0 where it grew.
        spread: standard deviation of that over divisions, which share their trainings.
        words: ``shown``, ``likely`` and ``none`` -> share of divisions that claimed so.
        accepted: share of divisions whose result was written.
        larger: share of divisions after which the gap was larger.
    """

    attribute: str
    between: tuple[int, int]
    trainings: int
    divisions: int
    removed: float
    spread: float
    words: Mapping[str, float]
    accepted: float
    larger: float


@dataclass(frozen=True)
class DebiasPlan:
    """What to expect of debiasing from `per_cell` rows of each group and label.

    Attributes:
        per_cell: rows of the smallest cell of group and label.
        study: where the curve comes from.
        ranges: attribute -> the smallest and the largest number of rows per cell that was measured.
        expected: of each attribute in whose range `per_cell` lies.
        gap_error: standard error of the mean of the differences in true and in false positive rate between two groups.
        reduction: of that mean, which is to be shown.
        rows_to_show: of each group and label, among those that choose, that show it with a power of .8; at least so
            many, as the choice itself adds noise.
        change_error: standard error of the change of that mean, with `per_cell` rows that choose.
    """

    per_cell: int
    study: str
    ranges: Mapping[str, tuple[int, int]]
    expected: tuple[Expected, ...]
    gap_error: float
    reduction: float
    rows_to_show: int
    change_error: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def plan_debias(
    per_cell: int,
    *,
    reduction: float = 0.05,
    rate: float = 0.8,
    changed: float = 0.1,
    confidence: float = 0.9,
    study: Mapping[str, Any] | None = None,
) -> DebiasPlan:
    r"""What to expect of debiasing from so many rows of each group and label.

    A difference of a rate p between two groups of n rows each has the standard error :math:`\sqrt{2p(1-p)/n}`, and its
    change between two models that differ in a share d of their decisions :math:`\sqrt{2d/n}` at most; the mean of two
    such differences, of true and of false positive rates, has :math:`1/\sqrt 2` of it.

    Args:
        per_cell: n, of the smallest cell.
        reduction: of the gap, that is to be shown.
        rate: p, or as far from a half as it.
        changed: d; .04 to .19 in the cells of the study's runs.
        confidence: one-sided, of the word ``shown``.
        study: what `benchmarks/small_sets.py` wrote; by default what comes with the package.

    Raises:
        ConfigError: a value is out of its range.

    >>> plan_debias(100, reduction=0.1).rows_to_show
    46
    """
    _check(per_cell, reduction, rate, changed, confidence)
    found = json.loads((files(__package__) / "small_sets.json").read_text("utf-8")) if study is None else study
    rows: dict[str, list[Row]] = {}
    for row in sorted(found["curve"], key=lambda row: int(row["smallest_cell"])):
        # Who has few rows has few to choose by; with all rows both are the same.
        same = (row["attribute"], row["smallest_cell"], IN_PROPORTION)
        if row["rows_to_choose"] == IN_PROPORTION or same not in map(_place, found["curve"]):
            rows.setdefault(row["attribute"], []).append(row)
    ranges = {name: (own[0]["smallest_cell"], own[-1]["smallest_cell"]) for name, own in rows.items()}
    normal = NormalDist()
    wanted = (normal.inv_cdf(confidence) + normal.inv_cdf(POWER)) / reduction
    return DebiasPlan(
        per_cell,
        f"{found['data']}, {found['model']}, with the default of commit {found['commit']}",
        ranges,
        tuple(_expected(name, own, per_cell) for name, own in rows.items() if _inside(per_cell, ranges[name])),
        gap_error=math.sqrt(rate * (1 - rate) / per_cell),
        reduction=reduction,
        rows_to_show=math.ceil(changed * wanted**2),
        change_error=math.sqrt(changed / per_cell),
    )


def _place(row: Row) -> tuple[str, int, str]:
    return row["attribute"], row["smallest_cell"], row["rows_to_choose"]


def _inside(value: int, ends: tuple[int, int]) -> bool:
    return ends[0] <= value <= ends[1]


def _expected(attribute: str, rows: Sequence[Row], per_cell: int) -> Expected:
    """Between the measured sizes, linear in the logarithm of the rows."""
    low = max((row for row in rows if row["smallest_cell"] <= per_cell), key=lambda row: int(row["smallest_cell"]))
    high = min((row for row in rows if row["smallest_cell"] >= per_cell), key=lambda row: int(row["smallest_cell"]))
    ends = low["smallest_cell"], high["smallest_cell"]
    way = 0.0 if ends[0] == ends[1] else math.log(per_cell / ends[0]) / math.log(ends[1] / ends[0])

    def at(old: float, new: float) -> float:
        return (1 - way) * old + way * new

    one, other = (_shares(row) for row in (low, high))
    return Expected(
        attribute,
        ends,
        len(low["cuts"]),
        low["divisions"],
        removed=at(one["removed"], other["removed"]),
        spread=at(one["spread"], other["spread"]),
        words={word: at(one[word], other[word]) for word in WORDS},
        accepted=at(one["accepted"], other["accepted"]),
        larger=at(one["larger"], other["larger"]),
    )


def _shares(row: Row) -> dict[str, float]:
    return {
        "removed": row["reduction"] / row["before"],
        "spread": row["reduction_sd"] / row["before"],
        "accepted": row["accepted"],
        "larger": row["larger_gap"],
        **{word: row["words"][word] for word in WORDS},
    }


def _check(per_cell: int, reduction: float, rate: float, changed: float, confidence: float) -> None:
    problems = [] if per_cell >= 1 else [f"per_cell is {per_cell}: expected at least 1"]
    problems += outside(
        reduction=(reduction, 0.0, 1), rate=(rate, 0.0, 1), changed=(changed, 0.0, 1), confidence=(confidence, 0.5, 1)
    )
    if problems:
        raise ConfigError("; ".join(problems))
