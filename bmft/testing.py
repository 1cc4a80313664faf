"""A fairness gate as a test: `assert_fair`, in pytest or any other runner."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bmft.auditing import AuditReport, Predictions
from bmft.gate import Policy, Verdict, check, load_policy
from bmft.inference import audit


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
    rules = policy if isinstance(policy, Policy) else load_policy(policy)
    other = None if baseline is None else _audited(baseline, data, rules, options)
    verdict = check(_audited(model_or_predictions, data, rules, options), rules, other)
    if verdict.exit_code:
        raise AssertionError(f"fairness gate: {verdict.to_text()}")
    if verdict.decision == "inconclusive" and verdict.on_inconclusive == "warn":
        warnings.warn(f"fairness gate: {verdict.to_text()}", stacklevel=2)
    return verdict


def _audited(given: nn.Module | Predictions, data: Any, policy: Policy, options: Mapping[str, Any]) -> AuditReport:
    threshold = 0.5 if policy.threshold is None else policy.threshold
    if isinstance(given, Predictions):
        return audit(given, threshold=threshold, intervals=False)
    return audit(given, data, threshold=threshold, intervals=False, **options)
