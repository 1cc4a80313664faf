"""The metadata block that opens ``report.md``: what Hugging Face's hub reads off a model card."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from bmft.report.claim import corrected_metrics
from bmft.report.values import DebiasReport
from bmft.report.wording import GAPS, Json, gap_name, interval_of, measure, percent, span, value_of

_OVERALL = ("roc_auc", "accuracy", "balanced_accuracy", "true_positive_rate", "false_positive_rate")


def front_matter(audit: Json, *, name: str, data: str, split: str, debiased: DebiasReport | None = None) -> str:
    """YAML between two ``---`` lines: tags, and a model index with the figures of `audit`.

    Where `debiased` has figures corrected for the choice, they are the ones; its evidence and kind stand beside them.

    Every scalar is written as JSON, which YAML reads as it is: no name can break out of its place.
    """
    metrics = [*_metrics(audit)]
    if debiased is not None and debiased.corrected:
        metrics = corrected_metrics(debiased.corrected)
    task = {"type": "image-classification", "name": f"{audit['task'].capitalize()} classification"}
    dataset = {"type": _identifier(data), "name": data, "split": split}
    results = [{"task": task, "dataset": dataset, "metrics": metrics}]
    card: dict[str, Any] = {"tags": ["bmft", "fairness", "image-classification"]}
    if metrics:  # the hub refuses a result without figures
        card["model-index"] = [{"name": name, "results": results}]
    if debiased is not None:
        card["bmft-figures"] = f"measured on {debiased.kind_in_words}"
        card |= {} if debiased.claim is None else {"bmft-evidence": debiased.claim["word"]}
        card |= {"bmft-folds": debiased.config["folds"]} if "folds" in debiased.config else {}
        if debiased.calibration is not None:
            card["bmft-calibration"] = {name: debiased.calibration[name] for name in ("temperature", "shift")}
    if audit["threshold"] != 0.5 and audit["task"] != "multiclass":
        card["bmft-threshold"] = audit["threshold"]
    return "\n".join(["---", *_yaml(card), "---", "", ""])


def _metrics(audit: Json) -> Iterator[dict[str, Any]]:
    """Overall figures, gaps and every group's AUC, as far as they could be measured."""
    paths: list[tuple[str, tuple[str, ...]]] = [(measure(key).name, ("overall", key)) for key in _OVERALL]
    for attribute, groups in audit["by_group"].items():
        paths += [
            (f"{gap_name(key)}, difference between groups of {attribute}", ("gaps", attribute, key)) for key in GAPS
        ]
        for group, figures in groups.items():
            paths.append(
                (f"ROC AUC, {attribute} {group}, n = {figures['n']}", ("by_group", attribute, group, "roc_auc"))
            )
    for name, path in paths:
        value = value_of(audit, path)
        if value is not None and isfinite(value):
            yield {"type": path[-1], "value": round(value, 6), "name": name + _interval(audit, path)}


def _interval(audit: Json, path: Sequence[str]) -> str:
    found = span(interval_of(audit, *path))
    return f" ({percent(audit['level'])} interval {found})" if found else ""


def _identifier(name: str) -> str:
    """A name as the hub's identifiers are written.

    >>> _identifier("HAM 10000 <test>")
    'ham-10000-test'
    """
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split()) or "data"


def _yaml(value: Any) -> list[str]:
    """Block style for maps and lists, JSON for scalars.

    >>> _yaml({"a": [{"b": 1, "c": "x: y"}], "d": {"e": 0.5}})
    ['a:', '- b: 1', '  c: "x: y"', 'd:', '  e: 0.5']
    """
    if isinstance(value, Mapping):
        return [line for key, item in value.items() for line in _entry(key, item)]
    if isinstance(value, list):
        return [("- " if number == 0 else "  ") + line for item in value for number, line in enumerate(_yaml(item))]
    if isinstance(value, str):  # YAML refuses control characters that JSON lets through
        value = "".join(letter if letter.isprintable() else " " for letter in value)
    return [json.dumps(value, ensure_ascii=False)]


def _entry(key: str, value: Any) -> list[str]:
    lines = _yaml(value)
    if isinstance(value, Mapping):
        return [f"{key}:", *("  " + line for line in lines)]
    return [f"{key}:", *lines] if isinstance(value, list) else [f"{key}: {lines[0]}"]
