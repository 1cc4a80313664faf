"""What a gate says: the decision, and for every check the figures and the reason behind it.

As JSON values, JUnit XML, Markdown, and the lines GitHub shows beside a commit.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree as ET

from bmft._common import html_table, in_words, one_line, plain, short

if TYPE_CHECKING:
    import pandas as pd

Decision = Literal["pass", "fail", "inconclusive", "waived"]
SCHEMA = 1
_MARKS: Mapping[str, str] = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "waived": "⚠️"}


@dataclass(frozen=True)
class Finding:
    """One pair, group or comparison within a check.

    Attributes:
        name: such as ``"female - male"``.
        groups: the groups it is about.
        estimate: difference, ratio or value.
        interval: both ends at the level that decides on passing.
        decision: of this one by itself.
        reason: why it cannot be judged; "" where it can.
    """

    name: str
    groups: tuple[str, ...]
    estimate: float
    interval: tuple[float, float]
    decision: Decision
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """One check.

    Attributes:
        id: such as ``"true_positive_rate/sex"``.
        decision: ``pass``, ``fail``, ``inconclusive`` or ``waived``.
        estimate: the largest difference, or the worst group's or pair's figure.
        interval: its ends. Under an upper bound the check passes where the high end is within it and fails
            where the low end is beyond; under a lower bound the other way round.
        reason: in words.
        bound: ``max_difference``, ``min_ratio``, ``min_group``, ``max_group`` or ``margin``.
        limit: its value.
        certifies: the tightest bound of this kind that the data do show; NaN where they show none.
        needed: samples per group that would settle an inconclusive check; None where no number would.
        among: the samples meant: positives, negatives, ...
        findings: what it is made of.
        waivers: the reasons of the waivers that were used.
        unwaived: the decision without them.
        attribute: whose groups it is about; "" is everybody.
    """

    id: str
    decision: Decision
    estimate: float
    interval: tuple[float, float]
    reason: str
    metric: str
    bound: str
    limit: float
    certifies: float
    needed: int | None
    among: str
    findings: tuple[Finding, ...]
    waivers: tuple[str, ...] = ()
    unwaived: Decision | None = None
    attribute: str = ""


@dataclass(frozen=True, repr=False)
class Verdict:
    """The result of `bmft.check`.

    Attributes:
        decision: ``pass``, ``fail`` or ``inconclusive``.
        checks: one result for each check, attribute and class.
        warnings: such as a waiver that nothing needed.
        on_inconclusive: what the policy does with an inconclusive gate.
        facts: what was looked at: samples, unknown groups, patients, threshold, hashes, seed, versions.
    """

    decision: Literal["pass", "fail", "inconclusive"]
    checks: tuple[Result, ...]
    warnings: tuple[str, ...] = ()
    on_inconclusive: str = "fail"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return short(f"Verdict({self.headline}; {'; '.join(one.reason for one in self.checks)})", 240)

    def _repr_html_(self) -> str:
        header = ("check", "decision", "estimate", "interval", "bound")
        caption = ". ".join([self.headline, *in_words(self.facts.get("assumed", {}))])
        return html_table(caption, header, [_cells(one) for one in self.checks])

    def to_frame(self) -> "pd.DataFrame":
        """One row per check: ``check, attribute, metric, value, low, high``, the bound, the decision and why."""
        import pandas as pd

        rows = [
            {
                "check": one.id,
                "attribute": one.attribute,
                "metric": one.metric,
                "value": one.estimate,
                "low": one.interval[0],
                "high": one.interval[1],
                "bound": one.bound,
                "limit": one.limit,
                "decision": one.decision,
                "certifies": one.certifies,
                "needed": one.needed,
                "reason": one.reason,
            }
            for one in self.checks
        ]
        return pd.DataFrame(rows)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive unless the policy only warns of that or lets it pass."""
        lenient = 3 if self.on_inconclusive == "fail" else 0
        return {"pass": 0, "fail": 1, "inconclusive": lenient}[self.decision]

    @property
    def headline(self) -> str:
        """The decision in a sentence."""
        counts = {word: sum(one.decision == word for one in self.checks) for word in _MARKS}
        words = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive", "waived": "waived"}
        parts = [f"{n} {words[word]}" for word, n in counts.items() if n]
        return f"{self.decision.upper()}: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """The content of ``gate.json``: plain values, None for what could not be measured."""
        checks = plain(self.checks)
        head = {"schema": SCHEMA, "decision": self.decision, "on_inconclusive": self.on_inconclusive}
        return {**head, "checks": checks, "warnings": list(self.warnings), **plain(self.facts)}

    def to_text(self) -> str:
        """The decision and each check with its figures and reason, for a terminal, which no name can make obey."""
        lines = [self.headline]
        for one in self.checks:
            between = f"{figure(one.estimate)} ({figure(one.interval[0])} to {figure(one.interval[1])})"
            lines += [f"{one.decision:<12}  {one.id}: {between}, {one.bound} {one.limit:g}", f"    {one.reason}"]
            lines += [f"    waiver: {why}" for why in one.waivers]
        lines += in_words(self.facts.get("assumed", {}))
        return "\n".join(map(one_line, [*lines, *(f"warning: {text}" for text in self.warnings)]))

    def to_markdown(self) -> str:
        """A summary for a pull request or ``$GITHUB_STEP_SUMMARY``."""
        lines = [f"## Fairness gate: {_MARKS[self.decision]} {self.headline}", ""]
        lines += ["| check | decision | estimate | interval | bound |", "|---|---|---|---|---|"]
        lines += [_row(one) for one in self.checks]
        lines += ["", *(f"- **{_cell(one.id)}**: {_cell(one.reason)}" for one in self.checks)]
        lines += [f"- Waiver for **{_cell(one.id)}**: {_cell(why)}" for one in self.checks for why in one.waivers]
        lines += [f"- {_cell(said)}" for said in in_words(self.facts.get("assumed", {}))]
        lines += [f"- Warning: {_cell(warning)}" for warning in self.warnings]
        return "\n".join(lines) + "\n"

    def to_junit(self) -> str:
        """JUnit XML, one case per check; inconclusive is an error where it stops the gate, else skipped."""
        counts = {kind: sum(_kind(self, one) == kind for one in self.checks) for kind in _KINDS}
        numbers = {"tests": len(self.checks), **counts}
        root = ET.Element(
            "testsuites", {"name": "bmft gate", **{k: str(v) for k, v in numbers.items() if k != "skipped"}}
        )
        suite = ET.SubElement(root, "testsuite", {"name": "fairness", **{k: str(v) for k, v in numbers.items()}})
        for one in self.checks:
            case = ET.SubElement(
                suite, "testcase", {"classname": f"fairness.{one.metric}", "name": _xml(one.id), "time": "0"}
            )
            kind = _kind(self, one)
            if kind:
                mark = ET.SubElement(case, _KINDS[kind], {"message": _xml(one.reason)})
                if kind != "skipped":
                    mark.set("type", one.decision)
                    mark.text = _xml("\n".join(_lines(one)))
            if one.waivers:
                ET.SubElement(case, "system-out").text = _xml("\n".join(f"waiver: {why}" for why in one.waivers))
        notes = [*in_words(self.facts.get("assumed", {})), *(f"warning: {one}" for one in self.warnings)]
        if notes:
            ET.SubElement(suite, "system-out").text = _xml("\n".join(notes))
        ET.indent(root)
        return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"

    def annotations(self) -> Iterator[str]:
        """Workflow commands of GitHub Actions: ``::error``, ``::warning`` and ``::notice`` lines."""
        stops = "error" if self.on_inconclusive == "fail" else "warning"
        kinds = {"fail": "error", "inconclusive": stops, "waived": "warning"}
        for one in self.checks:
            if one.decision in kinds:
                waived = f" Waived: {'; '.join(one.waivers)}" if one.waivers else ""
                title = _command(f"fairness gate {one.decision}: {one.id}", key=True)
                yield f"::{kinds[one.decision]} title={title}::{_command(one.reason + waived)}"
        yield from (f"::warning title=fairness gate::{_command(warning)}" for warning in self.warnings)


_KINDS: Mapping[str, str] = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def _kind(verdict: Verdict, one: Result) -> str:
    if one.decision == "inconclusive":
        return "errors" if verdict.on_inconclusive == "fail" else "skipped"
    return {"fail": "failures", "waived": "skipped"}.get(one.decision, "")


def _lines(one: Result) -> list[str]:
    rows = [
        f"{f.name}: {figure(f.estimate)} ({figure(f.interval[0])} to {figure(f.interval[1])}), {f.decision}"
        for f in one.findings
    ]
    return [one.reason, *rows]


def _row(one: Result) -> str:
    return f"| {' | '.join(map(_cell, _cells(one)))} |"


def _cells(one: Result) -> tuple[str, ...]:
    between = f"{figure(one.interval[0])} to {figure(one.interval[1])}"
    decision = f"{_MARKS[one.decision]} {one.decision}"
    return one.id, decision, figure(one.estimate), between, f"{one.bound} {one.limit:g}"


def figure(value: float) -> str:
    """A figure with three decimals; a dash where there is none.

    >>> figure(0.12345), figure(float("nan"))
    ('0.123', '–')
    """
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _cell(text: str) -> str:
    # Group names come from a file: none may end a table cell or open a tag.
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _command(text: str, *, key: bool = False) -> str:
    # https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    escapes = {"%": "%25", "\r": "%0D", "\n": "%0A", **({":": "%3A", ",": "%2C"} if key else {})}
    for character, escaped in escapes.items():
        text = text.replace(character, escaped)
    return text


def _xml(text: str) -> str:
    # XML 1.0 has no way to write control characters.
    return "".join(
        c if c in "\t\n" or (c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff") else "?"
        for c in text
    )
