"""The fairness gate: an audit and a policy in, a verdict with a reason for every check out.

How a bound is held against the data is in `bmft.gate.decisions`; here is what is compared, what is refused, and
what waivers change.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import numpy as np

from bmft._common import as_json, did_you_mean
from bmft.auditing import TURN, AuditReport, Predictions, looks_swapped
from bmft.errors import ConfigError, PolicyError
from bmft.gate.cases import Case, Question, named
from bmft.gate.decisions import explain, judge, settle
from bmft.gate.groups import among_whom
from bmft.gate.policy import Policy, Waiver
from bmft.gate.verdict import Decision, Finding, Result, Verdict


def check(
    report: AuditReport | Predictions,
    policy: Policy,
    baseline: AuditReport | Predictions | None = None,
    *,
    debiased_on: Collection[str] = (),
) -> Verdict:
    """Decide by a policy whether a model passes.

    Args:
        report: an audit with its predictions, or predictions, cut at the policy's threshold, else at 0.5.
        policy: what the model has to show, from `load_policy`.
        baseline: the same of the baseline on the same rows, for the policy's ``[[non_inferiority]]``.
        debiased_on: content hashes of the sets the model was fitted to; a gate on one of them is refused.

    Raises:
        PolicyError: the policy names attributes, classes, checks or groups that the data do not have.
        ConfigError: neither of these, or no predictions; no baseline, or one on other rows; a gate set the model was
            fitted to.

    >>> from bmft.auditing import audit_predictions
    >>> from bmft.tables import Attribute
    >>> scores, sex = np.tile([0.9, 0.8, 0.3, 0.1], 100), np.repeat([0, 1], 200)
    >>> predictions = Predictions(scores, np.tile([1, 1, 0, 0], 100), sex, (Attribute("sex", ("f", "m")),))
    >>> from bmft.gate import parse_policy
    >>> policy = parse_policy('check = [{metric = "roc_auc", sensitive = ["sex"], max_difference = 0.1}]')
    >>> check(audit_predictions(predictions, intervals=False), policy).decision
    'pass'
    """
    own = _predictions(report)
    other = None if baseline is None else _predictions(baseline)
    apart = baseline.threshold if isinstance(baseline, AuditReport) and policy.threshold is None else None
    case = Case(own, policy, _threshold(report, policy), other, apart)
    _refuse(case, debiased_on)
    results, used = [], set[Waiver]()
    for task in case.tasks:
        result, needed = _result(case, task)
        results.append(result)
        used |= needed
    decided = [one.decision for one in results if one.decision != "waived"]
    return Verdict(
        decision=cast(Any, settle(decided) if decided else "pass"),
        checks=tuple(results),
        warnings=tuple(_warnings(case, used)),
        on_inconclusive=policy.on_inconclusive,
        facts=_facts(case),
    )


def _threshold(report: AuditReport | Predictions, policy: Policy) -> float:
    if isinstance(report, AuditReport):
        return report.threshold
    return 0.5 if policy.threshold is None else policy.threshold


def _predictions(report: AuditReport | Predictions) -> Predictions:
    if isinstance(report, Predictions):
        return report
    if not isinstance(report, AuditReport):
        raise ConfigError(
            f"a {type(report).__name__} was given to check: expected an audit, predictions, or a model with data "
            "(bmft.check(model, policy, data=...))"
        )
    if report.predictions is None:
        raise ConfigError("the audit has no predictions (it was read from a file): audit the model again")
    return report.predictions


def _result(case: Case, task: Question) -> tuple[Result, set[Waiver]]:
    """The result of a task, and the waivers that it needed."""
    alpha, among = case.policy.alpha, among_whom(task.metric)
    judgement = judge(case.contrasts(task), task.bound, task.limit, alpha)
    waivers = [waiver for waiver in case.policy.waivers if _covers(waiver, task.id)]
    decision, unwaived, used = _waived(judgement.findings, waivers)
    groups = set() if decision == "waived" else {waiver.group for waiver in used if waiver.group}
    reason = explain(judgement, task.bound, task.limit, alpha, among, groups)
    result = Result(
        id=task.id,
        decision=decision,
        estimate=judgement.estimate,
        interval=judgement.interval,
        reason=reason,
        metric=task.metric,
        bound=task.bound,
        limit=task.limit,
        certifies=judgement.certifies,
        needed=judgement.needed,
        among=among,
        findings=judgement.findings,
        waivers=tuple(f"{w.group}: {w.reason}" if w.group else w.reason for w in waivers if w in used),
        unwaived=unwaived if used else None,
        attribute=task.attribute,
    )
    return result, used


def _waived(findings: Sequence[Finding], waivers: Sequence[Waiver]) -> tuple[Decision, Decision, set[Waiver]]:
    """The decision with waivers, the one without, and the waivers that make the difference."""
    unwaived = settle([one.decision for one in findings])
    if unwaived == "pass":
        return unwaived, unwaived, set()
    bad = [one for one in findings if one.decision != "pass"]
    used = {w for w in waivers if w.group is not None and any(w.group in one.groups for one in bad)}
    groups = {w.group for w in used}
    rest = [one for one in bad if not groups & set(one.groups)]
    whole = {w for w in waivers if w.group is None}
    if not rest and bad:
        return "waived", unwaived, used
    if whole:
        return "waived", unwaived, used | whole
    return settle([one.decision for one in rest]), unwaived, used


def _covers(waiver: Waiver, id: str) -> bool:
    """Whether a waiver's check is this one, or one of which this is a class, an attribute or a bound."""
    (name, _, bound), (base, _, own) = waiver.check.partition(":"), id.partition(":")
    return bound in ("", own) and (base == name or base.startswith(f"{name}/"))


def _warnings(case: Case, used: set[Waiver]) -> Iterator[str]:
    for predictions, whose in ((case.predictions, ""), (case.baseline, "of the baseline ")):
        if predictions is not None and (swapped := looks_swapped(predictions)):
            yield f"{whose}{swapped}: {TURN}"
    for waiver in case.policy.waivers:
        if waiver not in used:
            group = f", group {waiver.group}," if waiver.group else ""
            yield f"the waiver for {waiver.check}{group} was not needed: remove it ({waiver.reason})"
    if case.baseline is not None and not case.policy.non_inferiority:
        yield "a baseline was given, but the policy has no [[non_inferiority]]"


def _facts(case: Case) -> dict[str, Any]:
    policy, clusters = case.policy, case.predictions.clusters
    named = {name: ids for name, (_, ids) in case.attributes.items() if name}
    return {
        "n": len(case.predictions),
        "unknown": {name: int((ids < 0).sum()) for name, ids in named.items()},
        "clusters": None if clusters is None else len(np.unique(clusters)),
        "threshold": case.threshold,
        "alpha": policy.alpha,
        "min_positives": policy.min_positives,
        "resamples": policy.resamples,
        "seed": policy.seed,
        "hashes": {"policy": policy.hash, "data": case.predictions.content_hash},
        "assumed": as_json(case.predictions.assumed),
    }


def _refuse(case: Case, debiased_on: Collection[str]) -> None:
    """Raise where the policy and the data do not fit, or where a decision would mean nothing."""
    policy, own, baseline = case.policy, case.predictions, case.baseline
    if problems := list(_unfit(case)):
        raise PolicyError(f"the policy does not fit the data: {'; '.join(problems)}")
    if policy.non_inferiority and baseline is None:
        raise ConfigError("the policy has [[non_inferiority]]: give the baseline (--baseline CHECKPOINT)")
    if baseline is not None and not (
        np.array_equal(own.rows, baseline.rows) and np.array_equal(own.targets, baseline.targets)
    ):
        raise ConfigError("the baseline was measured on other rows: audit both models on the same data")
    if own.content_hash is not None and own.content_hash in debiased_on:
        raise ConfigError(
            "the gate set is the set this model was debiased on "
            f"(content hash {own.content_hash[:12]}): gate on a set that was kept apart"
        )


def _unfit(case: Case) -> Iterator[str]:
    """What the policy names that the data do not have."""
    own = [attribute.name for attribute in case.predictions.attributes]
    names = dict.fromkeys(name for rule in named(case.policy) for name in rule)
    for name in names:
        unknown = [] if name in case.attributes else [f for f in name.split("*") if f not in own]
        yield from (f"no sensitive attribute {factor!r}. {did_you_mean(factor, own)}" for factor in unknown)
    classes = case.predictions.columns
    rules = [(rule.id, rule.classes) for rule in case.policy.checks]
    rules += [(rule.id, rule.classes) for rule in case.policy.non_inferiority]
    for id, wanted in rules if len(classes) > 1 else ():
        absent = [name for name in wanted or () if name not in classes]
        yield from (f"{id}: no class {name!r}. {did_you_mean(name, classes)}" for name in absent)
    if case.policy.cluster is not None and case.predictions.clusters is None:
        yield f"cluster is {case.policy.cluster!r}, but the predictions have no clusters"
    if all(name in case.attributes for name in names):
        yield from _unfit_waivers(case)


def _unfit_waivers(case: Case) -> Iterator[str]:
    ids = [task.id for task in case.tasks]
    for waiver in case.policy.waivers:
        covered = [task for task in case.tasks if _covers(waiver, task.id)]
        groups = dict.fromkeys(g for task in covered for g in case.attributes[task.attribute][0].groups)
        if not covered:
            yield f"waiver: no check {waiver.check!r}. {did_you_mean(waiver.check, ids)}"
        elif waiver.group is not None and waiver.group not in groups:
            hint = did_you_mean(waiver.group, groups)
            yield f"waiver for {waiver.check}: no group {waiver.group!r}. {hint}"
