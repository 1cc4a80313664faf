import numpy as np
import pytest

from bmft.auditing.evidence import smallest_step, weigh
from bmft.errors import ConfigError

ALL = np.array([True] * 4)


def path(reductions, *, error, resamples=400, seed=0):
    """Gaps of candidates on a sample and on its resamples, each with noise of its own; the original's gap is .2."""
    random = np.random.default_rng(seed)
    truth = 0.2 - np.array([0.0, *reductions])
    sample = truth + np.r_[0.0, random.normal(0, error, len(reductions))]
    drawn = sample[:, None] + random.normal(0, error, (len(truth), resamples))
    return np.concatenate([sample[:, None], drawn], axis=1)


def test_of_candidates_within_one_standard_error_of_the_best_the_first_is_taken():
    gaps = np.array([[0.2], [0.15], [0.11], [0.10]])
    assert smallest_step(gaps, np.full((4, 4), 0.02), ALL).tolist() == [2]
    assert smallest_step(gaps, np.zeros((4, 4)), ALL).tolist() == [3]


def test_what_does_harm_is_not_taken_nor_what_cannot_be_measured():
    gaps = np.array([[0.2], [0.15], [np.nan], [0.10]])
    assert smallest_step(gaps, np.zeros((4, 4)), np.array([True, True, True, False])).tolist() == [1]


def test_where_nothing_is_better_the_original_is_kept_and_nothing_is_claimed():
    gaps = path([-0.1, -0.1], error=0.001)
    chosen, evidence = weigh(gaps, gaps, ALL[:3])
    assert (chosen, evidence.word, evidence.reduction) == (0, "none", 0.0)


def test_a_large_reduction_is_shown_and_a_small_one_likely_with_the_rows_that_would_settle_it():
    chosen, large = weigh(*[path([0.1], error=0.02)] * 2, ALL[:2])
    assert (chosen, large.word) == (1, "shown")
    assert large.low > 0
    assert large.times < 1
    chosen, small = weigh(*[path([0.03], error=0.03, seed=1)] * 2, ALL[:2])
    assert (chosen, small.word) == (1, "likely")
    assert small.times > 1


@pytest.mark.parametrize("candidates", [3, 12])
def test_the_claim_is_nearer_to_the_truth_than_what_the_best_of_several_looks_like(candidates):
    claimed, apparent = [], []
    for seed in range(200):
        gaps = path([0.02] * candidates, error=0.03, seed=seed)
        chosen, evidence = weigh(gaps, gaps, np.array([True] * (candidates + 1)))
        if chosen:
            claimed.append(evidence.reduction - 0.02)
            apparent.append(evidence.apparent - 0.02)
    assert abs(np.mean(claimed)) < 0.6 * np.mean(apparent)


def test_a_confidence_that_is_none_is_refused():
    gaps = path([0.1], error=0.01)
    with pytest.raises(ConfigError, match="confidence"):
        weigh(gaps, gaps, ALL[:2], confidence=1.0)
