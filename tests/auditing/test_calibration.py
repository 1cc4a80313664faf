"""A temperature and a shift after which probabilities mean what they say."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bmft.auditing import Predictions, fitted_rescaling, log_loss, rescaled_left_out
from bmft.errors import DataError
from bmft.tables import Attribute

SEX = Attribute("sex", ("female", "male"))


def logit(p):
    return np.log(p / (1 - p))


def certain(n=2000, slope=3.0, shift=1.5, seed=0, clusters=None):
    """A model that says `slope` times the true logit, plus `shift`."""
    random = np.random.default_rng(seed)
    truth = random.normal(0, 1.5, n)
    labels = (random.random(n) < 1 / (1 + np.exp(-truth))).astype(int)
    scores = 1 / (1 + np.exp(-(slope * truth + shift)))
    return Predictions(scores, labels, random.integers(0, 2, n), (SEX,), clusters=clusters)


def classes(n=3000, slope=2.5, seed=0):
    random = np.random.default_rng(seed)
    truth = random.normal(0, 1.5, (n, 3))
    labels = (truth + random.gumbel(size=(n, 3))).argmax(1)
    raised = np.exp(slope * truth)
    names = ("a", "b", "c")
    groups = np.zeros(n, int)
    return Predictions(raised / raised.sum(1, keepdims=True), labels, groups, (SEX,), "multiclass", names)


def test_the_fit_is_that_of_a_logistic_regression_without_a_penalty():
    data = certain(20_000)
    found = fitted_rescaling(data)
    oracle = LogisticRegression(C=np.inf, tol=1e-8).fit(logit(data.scores), data.targets[:, 0])
    assert found.slope == pytest.approx(oracle.coef_[0, 0], abs=1e-3)
    assert found.shift == pytest.approx(oracle.intercept_[0], abs=1e-3)


def test_a_temperature_of_classes_is_found_and_no_decision_moves():
    data = classes()
    found = fitted_rescaling(data)
    assert found.slope == pytest.approx(1 / 2.5, rel=0.1)
    assert found.shift == 0
    after = found.of(data)
    assert (after.scores.argmax(1) == data.scores.argmax(1)).all()
    assert log_loss(after) < log_loss(data)


def test_a_perfect_ranking_gives_a_finite_fit():
    scores, labels = np.repeat([0.4, 0.6], 20), np.repeat([0, 1], 20)
    found = fitted_rescaling(Predictions(scores, labels, np.zeros(40, int), (SEX,)))
    assert 1 < found.slope < 64
    assert found.of(Predictions(scores, labels, np.zeros(40, int), (SEX,))).scores.max() < 0.99


def test_only_a_shift_is_fitted_where_the_slope_has_to_stay():
    found = fitted_rescaling(certain(slope=1.0, shift=2.0), tempered=False)
    assert found.slope == 1
    assert found.shift == pytest.approx(-2, abs=0.2)


@pytest.mark.parametrize("threshold", [0.5, 0.02, 0.97])
def test_the_moved_threshold_decides_the_same_and_is_a_short_number(threshold):
    data = certain()
    found = fitted_rescaling(data).rounded(threshold)
    cut = found.threshold(threshold)
    assert (found.of(data).decisions(cut) == data.decisions(threshold)).all()
    assert round(cut, 6) == pytest.approx(cut, abs=1e-12)


def test_a_row_does_not_take_part_in_the_fit_of_its_own_probability():
    clusters = np.repeat(np.arange(100), 2)
    data = certain(200, clusters=clusters)
    before, folds = rescaled_left_out(data, seed=3)
    assert folds == 5
    changed = certain(200, clusters=clusters)
    changed.targets[:2] = 1 - changed.targets[:2]  # one patient's labels
    after, _ = rescaled_left_out(changed, seed=3)
    same = (before.scores == after.scores)[:, 0]
    assert same[:2].all()
    assert not same.all()


def test_the_figures_of_rows_left_out_are_a_little_worse_than_those_of_the_fit_itself():
    data = certain(60, seed=5)
    assert log_loss(fitted_rescaling(data).of(data)) < log_loss(rescaled_left_out(data)[0])


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
def test_too_few_of_a_label_is_an_error_that_says_so(labels):
    with pytest.raises(DataError, match="cannot be calibrated: each label needs rows of at least two patients"):
        rescaled_left_out(Predictions([0.1, 0.2, 0.3, 0.4], labels, [0, 1, 0, 1], (SEX,)))
