"""One rule of harm, and what a pooled ROC AUC consists of."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from bmft.auditing import Limits, Predictions, audit_predictions, changes_in_words, split_auc, violations
from bmft.auditing.harm import BOUNDS
from bmft.tables import Attribute

SEX = Attribute("sex", ("female", "male"))
NUMBER = np.random.default_rng(0)
TARGETS, GROUPS = NUMBER.integers(0, 2, 400), NUMBER.integers(0, 2, 400)
SCORES = 1 / (1 + np.exp(-(2 * TARGETS - 1 + NUMBER.normal(size=400))))


def report(scores, targets=TARGETS):
    return audit_predictions(Predictions(scores, targets, GROUPS, (SEX,)), intervals=False)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(-1, 2)), min_size=2, max_size=40))
def test_the_parts_are_the_naive_count_over_pairs_and_sum_to_the_pooled_auc(rows):
    scores, targets, groups = (np.array(column) for column in zip(*rows, strict=True))
    pairs = [(i, j) for i in np.flatnonzero(targets == 1) for j in np.flatnonzero(targets == 0)]
    found = split_auc(scores / 5, targets, groups)
    if not pairs:
        assert math.isnan(found.share)
        return
    won = {pair: (scores[pair[0]] > scores[pair[1]]) + (scores[pair[0]] == scores[pair[1]]) / 2 for pair in pairs}
    inside = [won[i, j] for i, j in pairs if groups[i] == groups[j] >= 0]
    outside = [won[i, j] for i, j in pairs if not groups[i] == groups[j] >= 0]
    expected = [np.mean(part) if part else math.nan for part in (inside, outside)]
    assert [found.within, found.between] == pytest.approx(expected, nan_ok=True)
    assert found.share == pytest.approx(len(inside) / len(pairs))
    assert found.pooled == pytest.approx(np.mean(list(won.values())))


def test_every_limit_is_in_the_one_table_but_that_on_other_outputs():
    assert {bound.limit for bound in BOUNDS} == {entry.name for entry in fields(Limits)} - {"max_other_drift"}


def test_nothing_changed_is_no_harm():
    assert not violations(report(SCORES), report(SCORES), Limits(0, 0, 0, 0))


def test_moving_a_group_as_a_whole_costs_the_pooled_auc_only():
    logits = np.log(SCORES / (1 - SCORES)) + 1.5 * GROUPS
    moved, limits = report(1 / (1 + np.exp(-logits))), Limits(max_auc_drop=0.2, max_calibration_rise=1)
    assert not violations(report(SCORES), moved, limits)
    (one,) = violations(report(SCORES), moved, replace(limits, max_overall_auc_drop=0.001))
    assert one.what == "ROC AUC over everybody"


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(0.01, 1, 1), "mean of the groups' ROC AUCs of sex"),
        (Limits(1, 0.02, 1), "ROC AUC of sex=male"),
        (Limits(1, 1, 0.05), "calibration error of sex=male"),
    ],
)
def test_each_limit_names_what_breaks_it(limits, what):
    reversed_ = np.where(GROUPS == 1, 1 - SCORES, SCORES)
    found = violations(report(SCORES), report(reversed_), limits)
    assert what in {one.what for one in found}
    assert all(one.excess > 0 for one in found)


def test_one_answer_for_everybody_is_harm():
    assert violations(report(SCORES), report(np.full(400, 0.7)), Limits(1, 1, 1))


def test_what_was_never_measured_is_not_counted_and_what_no_longer_is_is_harm():
    before = report(SCORES)
    absent = {name: {**figures, "roc_auc": math.nan} for name, figures in before.by_group["sex"].items()}
    unmeasured = replace(before, by_group={"sex": absent})
    assert not violations(unmeasured, before, Limits(0, 0, 0))
    assert {one.excess for one in violations(before, unmeasured, Limits(1, 1, 1))} == {math.inf}


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_limits_are_shares(value):
    with pytest.raises(Exception, match="max_calibration_rise"):
        Limits(max_calibration_rise=value)


def test_the_change_of_the_pooled_auc_is_said_in_its_parts_and_only_a_fall_is_explained():
    sex = Attribute("sex", ("female", "male"))
    targets, groups = [1, 0, 1, 0], [0, 0, 1, 1]
    before, after = (
        audit_predictions(Predictions(scores, targets, groups, (sex,)), intervals=False)
        for scores in ([0.6, 0.1, 0.9, 0.5], [0.4, 0.1, 0.9, 0.5])
    )
    (fell,) = changes_in_words(before, after)
    assert "1.000 → 0.750: pairs within a group of sex (50% of them) 1.000 → 1.000, pairs between groups" in fell
    assert "1.000 → 0.500, which equal error rates take away" in fell
    (rose,) = changes_in_words(after, before)
    assert rose.endswith("0.500 → 1.000.")


def test_several_columns_of_scores_have_no_one_pooled_auc_to_split():
    sex = Attribute("sex", ("female", "male"))
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]])
    many = Predictions(
        scores, [[1, 0], [0, 1], [1, 0], [0, 1]], [0, 0, 1, 1], (sex,), task="multilabel", classes=("a", "b")
    )
    report = audit_predictions(many, intervals=False)
    assert changes_in_words(report, report) == []
