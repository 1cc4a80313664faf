"""The options that tell a method how to work; each command receives them as one frozen `How`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import click

from bmft.settings import FACTS, LIMITS, Fact, Limits, Settings

from .config import method_settings
from .options import Assigned, Pair, apply_options, imported, option


@dataclass(frozen=True)
class How:
    """Which method, with which settings, and what of `bmft.Conditions` the options say about it.

    `config` holds only what was asked for: a default is the method's own business.
    """

    method: str
    config: Mapping[str, Any]
    conditions: Mapping[str, Any]


def _toml(text: str) -> Any:
    """The value as in TOML; what is no TOML value is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    # A ValueError that is no TOMLDecodeError is a number of thousands of digits.
    except (ValueError, RecursionError):
        return text


_method = partial(option, section="Method")
_CHOICE = [
    _method("--method", default="bmft", metavar="NAME", help="bmft, swift, or a baseline such as head."),
    _method(
        "--keep",
        type=click.Choice(["best", "last"]),
        default="best",
        help="best: chosen on select, do no harm; last: the final epoch, whatever it is.",
    ),
    _method(
        "--accept",
        type=click.Choice(["likely", "shown"]),
        default="likely",
        help="The least evidence of a smaller gap for which a result is written; shown: its interval excludes 0.",
    ),
    _method(
        "--confidence",
        type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
        default=0.9,
        metavar="P",
        help="One-sided, for that evidence.",
    ),
]
_LIMITS = [
    _method(
        f"--{name.replace('_', '-')}",
        type=click.FloatRange(fact.low, fact.high),
        default=getattr(Limits(), name),
        metavar="D",
        help=f"On select, {fact.help}.",
    )
    for name, fact in LIMITS.items()
]


def _option_of(name: str, kind: Any, fact: Fact) -> Any:
    """The command line's option for a setting, made from what is known of it."""
    names = f": {', '.join(fact.choices)}, or package.module:name" if fact.custom else ""
    attributes: dict[str, Any] = {"help": f"{fact.help[0].upper()}{fact.help[1:]}{names}."}
    if fact.choices and not fact.custom:
        attributes |= {"type": click.Choice(fact.choices), "multiple": isinstance(kind, tuple)}
    elif isinstance(kind, tuple) and kind:
        attributes["type"] = Pair(type(kind[0]))
    elif isinstance(kind, tuple):
        attributes |= {"multiple": True, "metavar": "PATTERN"}
    else:
        attributes |= {"metavar": "NAME"} if fact.choices else {"type": type(kind), "metavar": "N"}
    return _method(f"--{name.replace('_', '-')}", **attributes)


_SHOWN = {name: fact for name, fact in FACTS.items() if fact.option}
_NAMES = ("preset", *_SHOWN)
_SETTINGS = [
    _method(
        "--preset",
        type=click.Choice(["default", "path", "paper"]),
        help="path: one training, then many heads and epochs along its way; paper: the published settings.",
    ),
    *(_option_of(name, getattr(Settings(), name), fact) for name, fact in _SHOWN.items()),
]
_MORE = [
    _method(
        "--beta",
        type=click.FloatRange(0, 1),
        metavar="B",
        help="Step 1 minimises B x task + (1 - B) x gap, step 2 the reverse.",
    ),
    _method(
        "--set",
        "more",
        type=Assigned("NAME=VALUE", "patience=3", _toml),
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other setting of the method. Repeatable.",
    ),
]


def method_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a method; it receives them as one argument, `how`."""
    return _receiving_how(function, [*_CHOICE, *_LIMITS])


def shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a command that runs several methods: all but which one, and which epoch is kept."""
    return _receiving_how(function, _LIMITS)


def _receiving_how(function: Callable[..., Any], limits: list[Any]) -> Callable[..., Any]:

    @wraps(function)
    def command(**values: Any) -> Any:
        given = {name: values.pop(name) for name in _NAMES} | _batch(values["common"].batch_size)
        beta = values.pop("beta")
        more = {name.replace("-", "_"): value for name, value in values.pop("more")}
        asked = {name: value for name, value in given.items() if value not in (None, ())}
        config = method_settings() | _split(beta) | asked | more
        method, keep = values.pop("method", ""), values.pop("keep", "best")
        conditions = {"keep": keep, **{name: values.pop(name) for name in LIMITS}}
        conditions |= {name: values.pop(name) for name in ("accept", "confidence") if name in values}
        return function(how=How(method, {k: _resolved(k, v) for k, v in config.items()}, conditions), **values)

    return apply_options(command, [*limits, *_SETTINGS, *_MORE])


def _batch(size: int | str | None) -> dict[str, Any]:
    return {"on_out_of_memory": "halve"} if size == "auto" else {"batch_size": size}


def _split(beta: float | None) -> dict[str, Any]:
    return {} if beta is None else {"task_weight": [beta, 1 - beta], "bias_weight": [1 - beta, beta]}


def _resolved(name: str, value: Any) -> Any:
    """A callable named ``package.module:name``, where a setting takes one."""
    if name not in FACTS or not FACTS[name].custom or not isinstance(value, str) or ":" not in value:
        return value
    return imported(f"--{name}", value)
