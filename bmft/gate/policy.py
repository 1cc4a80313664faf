"""A gate's policy: TOML in, one frozen value out, everything wrong with it in one message.

``policy.schema.json`` beside this file is the grammar; what it cannot say (which bound suits which metric)
is said here.
"""

import hashlib
import json
import operator
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from bmft._common import did_you_mean, short, shown
from bmft.auditing import DIRECTION
from bmft.errors import PolicyError

BOUNDS = ("max_difference", "min_ratio", "min_group", "max_group")


@dataclass(frozen=True)
class Check:
    """One bound on one metric in the groups of one attribute."""

    id: str
    metric: str
    attribute: str
    bound: str
    limit: float
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class NonInferiority:
    """How much worse than the baseline one metric may be, overall and in the groups of these attributes."""

    id: str
    metric: str
    margin: float
    attributes: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Waiver:
    """A check, or one group in it, that may fail for a known reason."""

    check: str
    reason: str
    group: str | None = None


@dataclass(frozen=True)
class Policy:
    """The bounds that a model has to keep, and how sure that has to be; made by `load_policy` or `parse_policy`.

    Attributes:
        checks: one for each bound and attribute of the ``[[check]]`` tables.
        non_inferiority: against the baseline.
        waivers: failures that do not stop the gate.
        alpha: how often a model may pass at a true gap equal to the tolerance.
        on_inconclusive: ``fail``, ``warn`` or ``pass``: what the command does then.
        min_positives: fewer in a group make a check inconclusive.
        cluster: column of the patient, if intervals are to allow for several samples of one.
        threshold: probability from which a case counts as positive; None where the policy does not say.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        sensitive: the attributes as the policy writes them, with cuts: what the data are to be read with.
        hash: SHA-256 of the policy's text.
    """

    checks: tuple[Check, ...]
    non_inferiority: tuple[NonInferiority, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    alpha: float = 0.05
    on_inconclusive: Literal["fail", "warn", "pass"] = "fail"
    min_positives: int = 30
    cluster: str | None = None
    threshold: float | None = None
    resamples: int = 2000
    seed: int = 0
    sensitive: tuple[str, ...] = ()
    hash: str = field(default="", compare=False)


def load_policy(path: str | Path) -> Policy:
    """Read a policy from a TOML file.

    Raises:
        PolicyError: it is no file, no TOML, or says something that is not allowed; all problems are listed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "fairness.toml")
    ...     _ = path.write_text('check = [{metric = "roc_auc", sensitive = ["sex"], max_difference = 0.1}]')
    ...     load_policy(path).checks[0].id
    'roc_auc/sex'
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    # A ValueError is a path with a NUL in it, or text that is not UTF-8.
    except (OSError, ValueError) as error:
        raise PolicyError(f"the policy {path} cannot be read: {error}") from error
    return parse_policy(text, name=str(path))


def parse_policy(text: str, *, name: str = "policy") -> Policy:
    """A policy from its TOML text; `name` is what errors call it.

    >>> policy = parse_policy('''
    ... [[check]]
    ... metric = "true_positive_rate"
    ... sensitive = ["sex"]
    ... max_difference = 0.1
    ... ''')
    >>> policy.checks[0].id, policy.alpha
    ('true_positive_rate/sex', 0.05)
    """
    try:
        content, digest = tomllib.loads(text), hashlib.sha256(text.encode()).hexdigest()
    # A ValueError that is no TOMLDecodeError: a number of thousands of digits, or half a surrogate pair.
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{name} is no TOML file: {short(error)}") from error
    problems = list(_violations(content, schema(), ""))
    if not problems:
        problems = [*_unsuitable(content), *_repeated(content)]
    if problems:
        many = f"{len(problems)} problems: " if len(problems) > 1 else ""
        raise PolicyError(f"{name}: {many}{'; '.join(short(problem, 300) for problem in problems[:20])}")
    return _policy(content, digest)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a policy."""
    content: dict[str, Any] = json.loads((files("bmft.gate") / "policy.schema.json").read_text(encoding="utf-8"))
    return content


def attribute_name(spec: str) -> str:
    """The name of an attribute without its cuts.

    >>> attribute_name("sex*age:40,60")
    'sex*age'
    """
    return "*".join(part.partition(":")[0].strip() for part in spec.split("*"))


def _violations(value: Any, rule: Mapping[str, Any], where: str) -> Iterator[str]:
    """Where `value` breaks a JSON schema, of the keywords that ours uses."""
    at, kind = f"{where}: " if where else "", rule.get("type", "enum")
    # To Python true and false are integers, to a schema they are not.
    right = kind == "enum" or (isinstance(value, bool) == (kind == "boolean") and isinstance(value, _TYPES[kind]))
    if not right:
        yield f"{at}{shown(value)} is no {kind}"
    elif kind == "enum":
        if value not in rule["enum"]:
            yield f"{at}unknown {shown(value)}. {_near(value, rule['enum'])}"
    elif kind == "object":
        yield from _table(value, rule, where)
    elif kind in ("array", "string"):
        if len(value) < rule.get("minItems" if kind == "array" else "minLength", 0):
            yield f"{at}is empty"
        for number, item in enumerate(value if kind == "array" else (), 1):
            yield from _violations(item, rule["items"], f"{where} {number}")
    elif not abs(value) < _BEYOND:
        yield f"{at}{shown(value)} is no finite number below 2**63"
    else:
        for key, words, holds in _LIMITS:
            if key in rule and not holds(value, rule[key]):
                yield f"{at}{value} is not {words} {rule[key]}"


_TYPES: Mapping[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
# Infinity, NaN, and integers that no float or array index holds.
_BEYOND = 2**63
_LIMITS: tuple[tuple[str, str, Callable[[Any, Any], bool]], ...] = (
    ("minimum", "at least", operator.ge),
    ("maximum", "at most", operator.le),
    ("exclusiveMinimum", "above", operator.gt),
    ("exclusiveMaximum", "below", operator.lt),
)


def _near(word: object, known: Iterable[str]) -> str:
    return did_you_mean(word if isinstance(word, str) else shown(word), known).rstrip(".")


def _table(value: Mapping[str, Any], rule: Mapping[str, Any], where: str) -> Iterator[str]:
    at, known = f"{where}: " if where else "", rule["properties"]
    for key, item in value.items():
        if key in known:
            yield from _violations(item, known[key], f"{where} {key}".strip())
        else:
            yield f"{at}unknown key {shown(key)}. {_near(key, known)}"
    yield from (f"{at}{key!r} is missing" for key in rule.get("required", ()) if key not in value)
    choices = [option["required"][0] for option in rule.get("anyOf", ())]
    if choices and not set(choices) & set(value):
        yield f"{at}expected at least one of {', '.join(choices)}"


def _unsuitable(content: Mapping[str, Any]) -> Iterator[str]:
    """Bounds that do not suit their metric."""
    for number, check in enumerate(content.get("check", ()), 1):
        metric, at = check["metric"], f"check {number}"
        better = DIRECTION.get(metric, 0)
        if "min_group" in check and better < 0:
            yield f"{at}: min_group is a floor, but less {metric} is better: write max_group, a ceiling"
        if "max_group" in check and better > 0:
            yield f"{at}: max_group is a ceiling, but more {metric} is better: write min_group, a floor"
        if metric == "equalized_odds" and any(bound in check for bound in BOUNDS[1:]):
            yield f"{at}: equalized_odds takes max_difference only: it is two rates, so bound each by itself"
        if check.get("intersect") and len(check["sensitive"]) < 2:
            yield f"{at}: intersect needs at least two attributes in sensitive"
    tables = content.get("non_inferiority", ())
    if "check" not in content and any(t.get("per_group") and "sensitive" not in t for t in tables):
        yield "non_inferiority: per_group means the checks' attributes; without checks name some in sensitive"


def _repeated(content: Mapping[str, Any]) -> Iterator[str]:
    """The same bound twice, and an attribute cut in two ways."""
    checks, others = content.get("check", ()), content.get("non_inferiority", ())
    bounds = [
        f"{base}{of_class} has {bound}"
        for check in checks
        for base in _bases(check)
        for of_class in [f"/{name}" for name in check.get("classes", ())] or [""]
        for bound in BOUNDS
        if bound in check
    ]
    bounds += [f"non_inferiority has {table['metric']}" for table in others]
    yield from (f"{bound} twice" for bound in sorted({bound for bound in bounds if bounds.count(bound) > 1}))
    written: dict[str, str] = {}
    for spec in [spec for check in checks for spec in _specs(check)] + _own_specs(others):
        if written.setdefault(attribute_name(spec), spec) != spec:
            yield f"one attribute is cut in two ways: {written[attribute_name(spec)]!r} and {spec!r}"


def _bases(check: Mapping[str, Any]) -> list[str]:
    return [f"{check['metric']}/{attribute_name(spec)}" for spec in _specs(check)]


def _specs(check: Mapping[str, Any]) -> list[str]:
    return ["*".join(check["sensitive"])] if check.get("intersect") else list(check["sensitive"])


def _policy(content: Mapping[str, Any], digest: str) -> Policy:
    checks = [
        Check(base, check["metric"], attribute_name(spec), bound, float(check[bound]), _classes(check))
        for check in content.get("check", ())
        for base, spec in zip(_bases(check), _specs(check), strict=True)
        for bound in BOUNDS
        if bound in check
    ]
    tables = content.get("non_inferiority", ())
    specs = [spec for check in content.get("check", ()) for spec in _specs(check)]
    others = [
        NonInferiority(f"{t['metric']}/baseline", t["metric"], float(t["margin"]), _groups(t, specs), _classes(t))
        for t in tables
    ]
    specs += _own_specs(tables)
    waivers = [Waiver(w["check"], w["reason"], w.get("group")) for w in content.get("waiver", ())]
    return Policy(
        tuple(_told_apart(checks)),
        tuple(others),
        tuple(waivers),
        **content.get("gate", {}),
        sensitive=tuple(dict.fromkeys(specs)),
        hash=digest,
    )


def _own_specs(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    return [spec for table in tables for spec in table.get("sensitive", ())]


def _groups(table: Mapping[str, Any], specs: list[str]) -> tuple[str, ...]:
    named = table.get("sensitive", specs) if table.get("per_group") else ()
    return tuple(dict.fromkeys(map(attribute_name, named)))


def _classes(table: Mapping[str, Any]) -> tuple[str, ...] | None:
    return tuple(table["classes"]) if "classes" in table else None


def _told_apart(checks: list[Check]) -> Iterator[Check]:
    """Two bounds on the same metric and attribute have the bound in their ids."""
    bounds: dict[str, set[str]] = {}
    for check in checks:
        bounds.setdefault(check.id, set()).add(check.bound)
    for check in checks:
        unique = check.id if len(bounds[check.id]) == 1 else f"{check.id}:{check.bound}"
        yield Check(unique, check.metric, check.attribute, check.bound, check.limit, check.classes)
