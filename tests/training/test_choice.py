from dataclasses import replace

import numpy as np
import pytest
import torch

from bmft.auditing import Predictions
from bmft.fairness import equalized_odds_gap, over_attributes
from bmft.tables import Attribute
from bmft.training import Gap, figures_of

SEX = Attribute("sex", ("f", "m"))
GAP = Gap(over_attributes(equalized_odds_gap), 0.5, True, "equalized_odds")


def predictions(shift=0.0, n=200):
    random = np.random.default_rng(0)
    targets, groups = random.integers(0, 2, n), random.integers(0, 2, n)
    logits = 2 * targets - 1 + shift * groups + random.normal(size=n)
    return Predictions(1 / (1 + np.exp(-logits)), targets, groups, (SEX,), clusters=random.integers(0, n // 3, n))


def test_the_gap_is_that_of_the_objective():
    found = predictions(1.0)
    parts = (found.decisions(0.5).astype(float), found.targets, found.groups[:, 0])
    assert GAP(found) == pytest.approx(float(equalized_odds_gap(*map(torch.from_numpy, parts))))


def test_an_objective_of_ones_own_is_asked_anew_for_each_of_the_same_resamples():
    models = [predictions(shift) for shift in (1.0, 0.3)]
    own = figures_of(replace(GAP, name=""), models, seed=5).gap
    assert np.allclose(own[:, :100], figures_of(GAP, models, seed=5).gap[:, :100], atol=1e-5)
