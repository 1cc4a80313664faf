from dataclasses import replace

import numpy as np
import pytest
import torch

from bmft.auditing import Predictions
from bmft.fairness import equalized_odds_gap
from bmft.tables import Attribute
from bmft.training import Gap, weigh_candidates
from bmft.training.choice import margins

SEX = Attribute("sex", ("f", "m"))
GAP = Gap(equalized_odds_gap, 0.5, on_decisions=True)


def predictions(shift=0.0, *, n=800, seed=0, clusters=None):
    """A model that scores group m higher by `shift` on the logit scale."""
    random = np.random.default_rng(seed)
    targets, groups = random.integers(0, 2, n), random.integers(0, 2, n)
    logits = 2 * targets - 1 + shift * groups + random.normal(size=n)
    return Predictions(1 / (1 + np.exp(-logits)), targets, groups, (SEX,), clusters=clusters)


def test_the_gap_is_that_of_the_objective():
    found = predictions(1.0)
    wanted = equalized_odds_gap(
        torch.from_numpy(found.decisions(0.5)).double(), torch.from_numpy(found.targets), torch.from_numpy(found.groups)
    )
    assert GAP(found) == pytest.approx(float(wanted))


def test_smoothed_decisions_become_the_decisions_as_the_width_shrinks():
    found = predictions(0.5)
    assert np.allclose(GAP.smoothed(found, 1e-6), found.decisions(0.5))
    assert GAP.smoothed(found, 0.5).min() > 0


def test_the_margin_of_a_class_is_positive_where_it_is_decided():
    scores = np.random.default_rng(0).dirichlet([1, 1, 1], 50)
    found = Predictions(scores, np.arange(50) % 3, np.arange(50) % 2, (SEX,), "multiclass", ("a", "b", "c"))
    assert ((margins(found, 0.5) > 0) == (found.decisions() == 1)).all()


def test_of_candidates_that_do_ever_more_the_effect_is_shown():
    candidates = [predictions(shift) for shift in (1.5, 1.0, 0.1, 0.0)]
    chosen, claim = weigh_candidates(GAP, candidates, [True] * 4, confidence=0.9, seed=0)
    assert chosen in (2, 3)
    assert claim.word == "shown"
    assert claim.before == pytest.approx(GAP(candidates[0]))


def test_what_does_harm_is_not_chosen():
    candidates = [predictions(shift) for shift in (1.5, 1.0, 0.1)]
    assert weigh_candidates(GAP, candidates, [True, True, False], confidence=0.9, seed=0)[0] == 1


def test_rows_of_one_patient_count_as_one():
    errors = []
    for clusters in (None, np.repeat(np.arange(100), 8)):
        one, two = predictions(1.0, n=100), predictions(0.5, n=100)
        found = [
            Predictions(*(np.repeat(part, 8, axis=0) for part in (p.scores, p.targets, p.groups)), (SEX,))
            for p in (one, two)
        ]
        found = [replace(p, clusters=clusters) for p in found]
        errors.append(weigh_candidates(GAP, found, [True, True], confidence=0.9, seed=0)[1].error)
    assert errors[1] > 2 * errors[0]


def test_the_same_seed_gives_the_same_claim():
    candidates = [predictions(shift) for shift in (1.0, 0.5)]
    first, second = (weigh_candidates(GAP, candidates, [True, True], confidence=0.9, seed=3) for _ in range(2))
    assert first == second
