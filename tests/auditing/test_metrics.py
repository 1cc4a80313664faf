"""Point values of the audit: scikit-learn and fairlearn are the oracles."""

import math
import warnings

import numpy as np
import pytest
from fairlearn import metrics as fairlearn
from hypothesis import given, settings, strategies as st
from sklearn import metrics as sklearn

from bmft.auditing import DIRECTION, Column, group_metrics
from bmft.auditing.metrics import BINS, group_gaps, summarise, summarise_gaps, worst


def confusion(y, d):
    return sklearn.confusion_matrix(y, d, labels=[0, 1]).ravel()


ORACLES = {
    "roc_auc": lambda y, s, d: sklearn.roc_auc_score(y, s),
    "average_precision": lambda y, s, d: sklearn.average_precision_score(y, s),
    "accuracy": lambda y, s, d: sklearn.accuracy_score(y, d),
    "balanced_accuracy": lambda y, s, d: sklearn.balanced_accuracy_score(y, d),
    "f1": lambda y, s, d: sklearn.f1_score(y, d),
    "true_positive_rate": lambda y, s, d: sklearn.recall_score(y, d),
    "false_positive_rate": lambda y, s, d: fairlearn.false_positive_rate(y, d),
    "true_negative_rate": lambda y, s, d: fairlearn.true_negative_rate(y, d),
    "false_negative_rate": lambda y, s, d: fairlearn.false_negative_rate(y, d),
    "selection_rate": lambda y, s, d: fairlearn.selection_rate(y, d),
    "brier_score": lambda y, s, d: sklearn.brier_score_loss(y, s),
    "expected_calibration_error": lambda y, s, d: slow_calibration_error(y, s),
}
NEEDS_POSITIVES = {"average_precision", "f1", "true_positive_rate", "false_negative_rate"}
NEEDS_NEGATIVES = {"false_positive_rate", "true_negative_rate"}
NEEDS_BOTH = {"roc_auc", "balanced_accuracy"}


def slow_calibration_error(y, s):
    total = 0.0
    for low in range(BINS):
        inside = [i for i, p in enumerate(s) if min(int(p * BINS), BINS - 1) == low]
        if inside:
            total += len(inside) * abs(np.mean([s[i] for i in inside]) - np.mean([y[i] for i in inside]))
    return total / len(s)


def column(scores, targets, threshold=0.5):
    scores = np.asarray(scores, dtype=np.float64)
    return Column(scores, scores >= threshold, np.asarray(targets) == 1)


@st.composite
def cases(draw, groups=3):
    n, random = draw(st.integers(1, 60)), np.random.default_rng(draw(st.integers(0, 2**31)))
    scores = random.random(n) if draw(st.booleans()) else random.integers(0, 5, n) / 4  # with and without ties
    targets = random.random(n) < draw(st.floats(0, 1))
    return column(scores, targets), random.integers(-1, groups, n)


@pytest.mark.parametrize("name", DIRECTION)
@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_every_metric_of_every_group_agrees_with_its_oracle(name, case):
    (scores, decisions, targets, _), groups = case
    ours = group_metrics(case[0], groups, 3)[name]
    for g in range(3):
        y, s, d = (part[groups == g] for part in (targets.astype(int), scores, decisions))
        missing = (
            not len(y)
            or (name in NEEDS_POSITIVES | NEEDS_BOTH and not y.any())
            or (name in NEEDS_NEGATIVES | NEEDS_BOTH and y.all())
        )
        if missing:
            assert math.isnan(ours[g])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scikit-learn warns about constant columns it handles
                assert ours[g] == pytest.approx(ORACLES[name](y, s, d), abs=1e-12)


@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_gaps_agree_with_fairlearn_where_every_cell_has_samples(case):
    (_, decisions, targets, _), groups = case
    cells = {(g, y) for g, y in zip(groups.tolist(), targets.tolist(), strict=True) if g >= 0}
    present = sorted({g for g, _ in cells})
    if len(present) < 2 or any((g, y) not in cells for g in present for y in (True, False)):
        return
    known = groups >= 0
    y, d = targets[known].astype(int), decisions[known].astype(int)
    gaps = group_gaps(group_metrics(case[0], groups, 3))
    options = {"y_true": y, "y_pred": d, "sensitive_features": groups[known]}
    assert gaps["equalized_odds_difference"] == pytest.approx(fairlearn.equalized_odds_difference(**options))
    assert gaps["average_odds_difference"] == pytest.approx(fairlearn.equalized_odds_difference(**options, agg="mean"))
    assert gaps["true_positive_rate_difference"] == pytest.approx(fairlearn.equal_opportunity_difference(**options))
    parity = fairlearn.demographic_parity_difference(**options)
    assert gaps["demographic_parity_difference"] == pytest.approx(parity)
    if d.any():
        ratio = fairlearn.demographic_parity_ratio(**options)
        assert gaps["demographic_parity_ratio"] == pytest.approx(ratio)
    else:
        assert math.isnan(gaps["demographic_parity_ratio"])


def test_a_group_without_positives_has_no_true_positive_rate_instead_of_zero():
    found = group_metrics(column([0.9, 0.1, 0.7], [1, 0, 0]), np.array([0, 0, 1]), 2)
    assert math.isnan(found["true_positive_rate"][1])
    assert found["false_positive_rate"][1] == 1
    gaps = group_gaps(found)
    assert math.isnan(gaps["true_positive_rate_difference"])
    assert gaps["false_positive_rate_difference"] == 1
    assert math.isnan(gaps["equalized_odds_difference"])


def test_the_odds_are_the_larger_and_the_mean_of_both_differences():
    nothing = dict.fromkeys(DIRECTION, np.full(3, np.nan))
    rates = {"true_positive_rate": np.array([0.9, 0.6, 0.7]), "false_positive_rate": np.array([0.1, 0.2, 0.15])}
    gaps = group_gaps({**nothing, **rates})
    assert gaps["equalized_odds_difference"] == pytest.approx(0.3)
    assert gaps["average_odds_difference"] == pytest.approx(0.2)


@pytest.fixture
def classes():
    """Five groups x three classes; the last group lacks class 2."""
    random = np.random.default_rng(4)
    scores = random.dirichlet([1, 1, 1], 300)
    targets = random.integers(0, 3, 300)
    groups = random.integers(0, 5, 300)
    targets[groups == 4] %= 2
    best = scores.argmax(1)
    columns = [Column(scores[:, k], best == k, targets == k) for k in range(3)]
    right = best == targets
    shares = np.array([right[groups == g].mean() for g in range(5)])
    return columns, groups, targets, scores, shares


def test_several_classes_are_scikit_learns_macro_figures(classes):
    columns, groups, targets, scores, shares = classes
    mean = summarise([group_metrics(c, groups, 5) for c in columns], shares).mean
    for g in range(4):
        y, s = targets[groups == g], scores[groups == g]
        assert mean["roc_auc"][g] == pytest.approx(sklearn.roc_auc_score(y, s, multi_class="ovr"))
        assert mean["f1"][g] == pytest.approx(sklearn.f1_score(y, s.argmax(1), average="macro"))
        assert mean["accuracy"][g] == pytest.approx(sklearn.accuracy_score(y, s.argmax(1)))
        recall = sklearn.balanced_accuracy_score(y, s.argmax(1))
        assert mean["balanced_accuracy"][g] == mean["true_positive_rate"][g] == pytest.approx(recall)


def test_the_worst_class_is_the_lowest_or_highest_as_the_metric_wants(classes):
    columns, groups, *_ = classes
    metrics = [group_metrics(c, groups, 5) for c in columns]
    found = summarise(metrics).worst
    assert found["roc_auc"][0] == min(m["roc_auc"][0] for m in metrics)
    assert found["false_positive_rate"][0] == max(m["false_positive_rate"][0] for m in metrics)
    assert "selection_rate" not in found


def test_a_gap_over_classes_is_the_mean_of_gaps_within_them(classes):
    columns, groups, _, _, shares = classes
    metrics = [group_metrics(c, groups, 5) for c in columns]
    each = [group_gaps(m)["true_positive_rate_difference"] for m in metrics]
    gaps = summarise_gaps(summarise(metrics, shares), classes=True)
    assert gaps.mean["true_positive_rate_difference"] == pytest.approx(np.mean(each))
    assert gaps.worst["true_positive_rate_difference"] == pytest.approx(max(each))
    ratios = [group_gaps(m)["demographic_parity_ratio"] for m in metrics]
    assert gaps.worst["demographic_parity_ratio"] == min(ratios)
    assert gaps.mean["accuracy_difference"] == pytest.approx(np.ptp(shares))


def test_the_worst_of_nothing_is_nan():
    values = np.array([[np.nan, 0.2], [np.nan, np.nan], [np.nan, 0.4]])
    np.testing.assert_array_equal(worst(values, 1), [np.nan, 0.2])
    np.testing.assert_array_equal(worst(values, -1), [np.nan, 0.4])
