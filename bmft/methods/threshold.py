"""Another threshold for everybody, as a shift of the head's bias."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from bmft.auditing import Predictions, audit_predictions, violations
from bmft.errors import ConfigError
from bmft.masks import WeightMask
from bmft.methods.linear_head import Floats, linear_head
from bmft.methods.run import Run

THRESHOLDS = 99  # quantiles of the select scores that are tried


def threshold_shift(run: Run) -> WeightMask:
    """Another threshold for everybody, as a shift of the head's bias: the ranking, and so the ROC AUC, stays.

    Tried are the quantiles of the select scores that do no harm, from the largest gap to the smallest.

    Raises:
        ConfigError: there are several classes or labels, or the head is no linear layer with a bias.
    """
    if run.select.task != "binary":
        raise ConfigError(
            f"method 'threshold' shifts the one threshold of a binary label, and this is {run.select.task}: "
            "take another --method"
        )
    layer = linear_head(run)
    if layer.bias is None:
        raise ConfigError(f"method 'threshold' shifts the head's bias, and {run.head.name!r} has none")
    start = run.predict(run.model, run.select)
    cut = _logit(np.array([run.conditions.threshold]))[0]
    shifts = cut - np.unique(_logit(np.quantile(start.scores, np.linspace(0.01, 0.99, THRESHOLDS))))
    original = layer.bias.detach().clone()
    tried = sorted(_harmless(run, start, shifts), key=lambda item: -run.selection.gap(item[1]))
    for number, (shift, shifted) in enumerate(tried, 1):
        with torch.no_grad():
            layer.bias.copy_(original)
            # Of two outputs the second's: the first is its reference.
            layer.bias[-1 if run.head.output is None else run.head.output] += shift
        run.try_out(number, len(tried), predictions=shifted)
    bias = WeightMask.by_name(run.model, next(n for n, p in run.model.named_parameters() if p is layer.bias))
    return bias & run.head_mask()


def _logit(scores: Floats) -> Floats:
    inside = np.clip(scores, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(inside / (1 - inside)))


def _harmless(run: Run, start: Predictions, shifts: Floats) -> Iterator[tuple[float, Predictions]]:
    """Every shift and what it makes of the predictions, where that does no harm."""
    measure = partial(audit_predictions, threshold=run.conditions.threshold, intervals=False)
    before = measure(start)
    for shift in shifts:
        shifted = replace(start, scores=1 / (1 + np.exp(-(_logit(start.scores) + shift))))
        if not violations(before, measure(shifted), run.conditions.limits):
            yield float(shift), shifted
