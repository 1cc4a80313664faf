"""A fairness gate in Python: `check` decides, `assert_fair` is a test, in pytest or any other runner."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmft import gate
from bmft.auditing import AuditReport, Predictions
from bmft.errors import ConfigError
from bmft.gate import Policy, Verdict, load_policy

if TYPE_CHECKING:
    from torch import nn


def check(
    given: AuditReport | Predictions | nn.Module,
    policy: Policy | str | Path,
    baseline: AuditReport | Predictions | nn.Module | None = None,
    *,
    data: Any = None,
    debiased_on: Collection[str] = (),
    **options: Any,
) -> Verdict:
    """Decide by a policy whether a model passes.

    Args:
        given: an audit with its predictions, predictions (cut at the policy's threshold, else at 0.5), or a model.
        policy: what the model has to show, or the path of it.
        baseline: the same of the baseline on the same rows, for the policy's ``[[non_inferiority]]``.
        data: what a model is measured on, as for `bmft.audit`.
        debiased_on: content hashes of the sets the model was fitted to; a gate on one of them is refused.
        **options: for `bmft.predict`, with a model: `batch_size`, `device`, `batch_fn`, `multi_label`.

    Raises:
        PolicyError: the policy names attributes, classes, checks or groups that the data do not have.
        ConfigError: none of these, a model without data, or data without a model; no baseline, or one on other rows;
            a gate set the model was fitted to.

    >>> import torch
    >>> from bmft.data import from_arrays
    >>> from bmft.gate import parse_policy
    >>> policy = parse_policy('check = [{metric = "roc_auc", sensitive = ["sex"], max_difference = 0.1}]')
    >>> x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    >>> data = from_arrays(x, x[:, 0] > 0, torch.arange(400) % 2, attributes={"sex": ("f", "m")})
    >>> model = torch.nn.Linear(1, 1)
    >>> _ = model.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
    >>> check(model, policy, data=data).decision
    'pass'
    """
    if not isinstance(policy, Policy | str | Path):
        raise ConfigError(f"a {type(policy).__name__} was given as the policy: expected one, or the path of one")
    rules = policy if isinstance(policy, Policy) else load_policy(policy)
    models = [one for one in (given, baseline) if not isinstance(one, AuditReport | Predictions | None)]
    if given is not None and not models and (data is not None or options):
        raise ConfigError("what was measured already was given: data and the options of predict go with a model")
    own, other = (_measured(one, data, rules, options) for one in (given, baseline))
    return gate.check(own, rules, other, debiased_on=debiased_on)


def _measured(given: Any, data: Any, policy: Policy, options: Mapping[str, Any]) -> Any:
    if data is None or given is None or isinstance(given, AuditReport | Predictions):
        return given
    # Imported for a model only: what was measured already costs no torch.
    from torch import nn

    from bmft.inference import audit

    if not isinstance(given, nn.Module):
        return given
    threshold = 0.5 if policy.threshold is None else policy.threshold
    return audit(given, data, threshold=threshold, intervals=False, **options)


def assert_fair(
    model_or_predictions: nn.Module | Predictions,
    data: Any,
    policy: Policy | str | Path,
    *,
    baseline: nn.Module | Predictions | None = None,
    **options: Any,
) -> Verdict:
    """Raise unless the model passes the policy; returns the verdict.

    An inconclusive gate raises too, unless the policy's ``on_inconclusive`` is ``warn`` (a UserWarning) or
    ``pass``.

    Args:
        model_or_predictions: a model that gives logits, or the `Predictions` of any model.
        data: what to test a model on, as for `bmft.audit`; None for predictions.
        policy: a policy, or the path of one.
        baseline: a model, or predictions on the same rows, for the policy's ``[[non_inferiority]]``.
        **options: for `bmft.predict`: `batch_size`, `device`, `batch_fn`, `multi_label`.

    Raises:
        AssertionError: the gate failed or could not tell; the message has each check's figures and reason.
        ConfigError: the policy does not fit the data, or data are missing.

    >>> import numpy as np
    >>> from bmft.tables import Attribute
    >>> from bmft.gate import parse_policy
    >>> right, sex = np.tile([1, 1, 0, 0], 100), np.repeat([0, 1], 200)
    >>> predictions = Predictions(np.where(right, 0.9, 0.1), right, sex, (Attribute("sex", ("f", "m")),))
    >>> policy = parse_policy('check = [{metric = "accuracy", sensitive = ["sex"], min_group = 0.9}]')
    >>> assert_fair(predictions, None, policy).decision
    'pass'
    """
    verdict = check(model_or_predictions, policy, baseline, data=data, **options)
    if verdict.exit_code:
        raise AssertionError(f"fairness gate: {verdict.to_text()}")
    if verdict.decision == "inconclusive" and verdict.on_inconclusive == "warn":
        warnings.warn(f"fairness gate: {verdict.to_text()}", stacklevel=2)
    return verdict
