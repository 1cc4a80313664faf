"""How far other outputs moved: laws of the measure, and its place among the limits."""

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, strategies as st

from bmft.auditing import Limits, Predictions, audit_predictions, drift_of, other_drifts, violations
from bmft.tables import Attribute

SEX = Attribute("sex", ("female", "male"))
probabilities = st.integers(1, 30).flatmap(
    lambda n: st.tuples(*[arrays.arrays(np.float64, n, elements=st.floats(0, 1))] * 2)
)


def audit(others):
    predictions = Predictions(
        [0.1, 0.9, 0.2, 0.8],
        [0, 1, 0, 1],
        [0, 0, 1, 1],
        (SEX,),
        others=None if others is None else np.array(others, float).T,
        other_outputs=("Edema", "Mass"),
    )
    return audit_predictions(predictions, intervals=False)


@given(probabilities)
def test_the_drift_lies_between_the_mean_change_and_the_largest(sides):
    found = drift_of(*sides)
    assert found.mean == pytest.approx(np.abs(sides[0] - sides[1]).mean())
    assert found.mean - 1e-12 <= found.drift <= found.largest + 1e-12


@given(probabilities)
def test_the_drift_is_the_same_of_the_rest(sides):
    mirrored = drift_of(*(1 - side for side in sides))
    assert mirrored.drift == pytest.approx(drift_of(*sides).drift, abs=1e-9)


def test_a_rare_finding_that_is_lost_drifts_far_whatever_the_mean():
    before = np.where(np.arange(100) < 4, 0.95, 0.01)  # four of a hundred
    found = drift_of(before, np.full(100, 0.01))
    assert found.mean < 0.05 < 0.5 < found.drift


def test_the_drift_is_a_mean_by_how_likely_the_original_finds_the_output():
    before, after = np.array([0.8, 0.1, 0.3]), np.array([0.5, 0.1, 0.4])
    seen = (0.8 * 0.3 + 0.3 * 0.1) / 1.2
    rest = (0.2 * 0.3 + 0.7 * 0.1) / 1.8
    assert drift_of(before, after).drift == pytest.approx(max(seen, rest))


def test_what_has_no_number_any_more_has_drifted_and_what_had_none_is_left_out():
    before, after = audit([[0.5] * 4, [math.nan] * 4]), audit([[math.nan] * 4, [0.5] * 4])
    assert list(other_drifts(before.predictions, after.predictions)) == ["Edema"]
    (one,) = violations(before, after, Limits())
    assert one.excess == math.inf


def test_a_drift_beyond_its_limit_is_harm():
    before, after = audit([[0.5] * 4, [0.2] * 4]), audit([[0.5] * 4, [0.3] * 4])
    (one,) = violations(before, after, Limits())
    assert str(one) == "drift of another output, Mass, 0.000 -> 0.100 (limit 0.05)"
    assert not violations(before, after, Limits(max_other_drift=0.11))


def test_where_there_are_no_others_nothing_is_limited():
    assert not violations(audit(None), audit(None), Limits(max_other_drift=0))
