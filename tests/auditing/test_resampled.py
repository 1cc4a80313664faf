"""Figures of candidates on resamples: those of audits and of the objectives, patient by patient."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from bmft import fairness
from bmft.auditing import Limits, Predictions, audit_predictions, resampled_figures, units_of, violations
from bmft.auditing.resampled import RATES, margins, smoothed
from bmft.stats import resampled_rows
from bmft.tables import Attribute

SEX, AGE = Attribute("sex", ("f", "m", "x")), Attribute("age", ("young", "old"))


def candidates(task="binary", n=150, how_many=3, seed=0):
    """Predictions of the same rows by several models, each more off than the one before; some groups are unknown."""
    random = np.random.default_rng(seed)
    columns = {"binary": 1, "multiclass": 3, "multilabel": 2}[task]
    groups = np.stack([random.integers(-1, 3, n), random.integers(-1, 2, n)], 1)
    targets = random.integers(0, 3, n) if task == "multiclass" else random.integers(0, 2, (n, columns))
    if task == "multilabel":
        targets[random.random(targets.shape) < 0.1] = -1  # not known
    clusters = random.integers(0, n // 2, n)
    classes = {"binary": ("0", "1"), "multiclass": ("a", "b", "c"), "multilabel": ("p", "q")}[task]
    found = []
    for number in range(how_many):
        logits = random.normal(size=(n, columns)) + 0.5 * number * (groups[:, :1] == 1)
        scores = 1 / (1 + np.exp(-logits))
        if task == "multiclass":
            scores = scores / scores.sum(1, keepdims=True)
        found.append(Predictions(scores, targets, groups, (SEX, AGE), task, classes, clusters))
    return found


def drawn_again(one, rows):
    parts = {name: getattr(one, name)[rows] for name in ("scores", "targets", "groups", "clusters")}
    return replace(one, **parts, rows=np.empty(0, np.int64))


@pytest.mark.parametrize("combine", ["mean", "worst"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("gap", RATES)
def test_the_gap_is_that_of_the_objective_on_every_resample(gap, task, combine):
    models = candidates(task)
    found = resampled_figures(models, threshold=0.5, gap=gap, combine=combine, resamples=4, seed=1)
    objective = fairness.over_attributes(fairness.OBJECTIVES[gap], combine=combine)
    samples = [slice(None), *resampled_rows(units_of(models[0]), resamples=4, seed=1)]
    for c, model in enumerate(models):
        for b, rows in enumerate(samples):
            one = drawn_again(model, rows)
            parts = (one.decisions(0.5).astype(float), one.targets, one.groups)
            assert found.gap[c, b] == pytest.approx(float(objective(*map(torch.from_numpy, parts))), abs=1e-5)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_the_groups_figures_are_an_audit_s_on_every_resample(task):
    models = candidates(task)
    found = resampled_figures(models, threshold=0.5, resamples=3, seed=2)
    for b, rows in enumerate([slice(None), *resampled_rows(units_of(models[0]), resamples=3, seed=2)]):
        audits = [audit_predictions(drawn_again(one, rows), threshold=0.5, intervals=False) for one in models]
        for name in ("sex", "age"):
            for figure in ("roc_auc", "balanced_accuracy", "expected_calibration_error"):
                wanted = [[group[figure] for group in audit.by_group[name].values()] for audit in audits]
                np.testing.assert_allclose(found.groups[name][figure].mean(1)[..., b], wanted, atol=1e-5)
            odds = [audit.gaps[name]["equalized_odds_difference"] for audit in audits]
            np.testing.assert_allclose(found.odds[name][:, b], odds, atol=1e-5)
        np.testing.assert_allclose(found.overall_auc[:, b], [a.overall["roc_auc"] for a in audits], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["binary", "multiclass", "multilabel"]),
    st.floats(0, 0.2),
    st.floats(0, 0.3),
    st.one_of(st.none(), st.floats(0, 0.1)),
)
def test_harm_on_the_sample_is_the_one_rule_of_harm(seed, task, drop, rise, overall):
    models = candidates(task, n=60, seed=seed)
    limits = Limits(drop, 1.5 * drop if drop < 0.6 else 1, rise, overall)
    found = resampled_figures(models, threshold=0.5, resamples=20, seed=0)
    leeway = found.leeway()
    audits = [audit_predictions(one, threshold=0.5, intervals=False) for one in models]
    for c, audit in enumerate(audits[1:], 1):
        own = {name: float(errors[c]) for name, errors in leeway.items()}
        assert found.harmless(limits)[c, 0] == (not violations(audits[0], audit, limits, own))


def test_only_the_balanced_accuracy_has_leeway():
    before, after = (audit_predictions(one, threshold=0.5, intervals=False) for one in candidates(how_many=2, seed=4))
    limits = Limits(0, 0, 0)
    broken = {one.what for one in violations(before, after, limits)}
    freed = {one.what for one in violations(before, after, limits, {"sex": 1.0, "age": 1.0})}
    assert {what for what in broken if "balanced" not in what} == freed


def test_smoothed_decisions_become_the_decisions_as_the_width_shrinks():
    (one,) = candidates(how_many=1)
    np.testing.assert_allclose(smoothed(margins(one, 0.5), 1e-9), one.decisions(0.5), atol=1e-9)
    blurred = resampled_figures(candidates(), threshold=0.5, resamples=2)
    assert not np.allclose(blurred.smooth, blurred.gap, atol=1e-3)


def test_the_margin_of_a_class_is_positive_where_it_is_decided():
    (found,) = candidates("multiclass", how_many=1)
    assert ((margins(found, 0.5) > 0) == (found.decisions() == 1)).all()
