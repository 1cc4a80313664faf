"""What may be claimed of a choice among candidates: on simulated paths whose true gaps are known."""

from dataclasses import replace

import numpy as np
import pytest

from bmft.auditing import Limits, Predictions, resampled_figures, weigh
from bmft.auditing.evidence import claim_of, smallest_step
from bmft.tables import Attribute

SEX = Attribute("sex", ("f", "m"))
FREE = Limits(1.0, 1.0, 1.0)


def path(shifts, *, n=800, seed=0, noise=0.0, clusters=None):
    """Models on the same rows that score group m higher by `shifts` on the logit scale, each with noise of its own."""
    random = np.random.default_rng(seed)
    targets, groups = random.integers(0, 2, n), random.integers(0, 2, n)
    logits = 2 * targets - 1 + random.normal(size=n)
    found = [logits + shift * (groups - 0.5) + noise * random.normal(size=n) for shift in shifts]
    return [Predictions(1 / (1 + np.exp(-z)), targets, groups, (SEX,), clusters=clusters) for z in found]


def weighed(models, limits=FREE, eligible=None, resamples=300, **options):
    figures = resampled_figures(models, threshold=0.5, resamples=resamples)
    return weigh(figures, limits, eligible or [True] * len(models), **options)


def test_of_candidates_that_do_ever_more_the_effect_is_shown():
    chosen, claim = weighed(path([1.5, 1.0, 0.1, 0.0]))
    assert chosen in (2, 3)
    assert claim.word == "shown"
    assert claim.low > 0
    assert claim.before - claim.after == pytest.approx(claim.reduction)


def test_where_none_is_better_nothing_is_claimed():
    chosen, claim = weighed(path([0.1, 1.0, 1.5]))
    assert (chosen, claim.word, claim.reduction, claim.times) == (0, "none", 0.0, np.inf)


def test_what_does_harm_is_not_chosen():
    assert weighed(path([1.5, 1.0, 0.1]), eligible=[True, True, False])[0] == 1


def test_the_smallest_movement_that_is_as_good_as_the_best_is_taken_and_the_original_only_if_it_is_the_best():
    gaps, errors, all_may = np.array([[0.21], [0.205], [0.2]]), np.full((3, 3), 0.1), np.full((3, 1), True)
    assert smallest_step(gaps, errors, all_may).tolist() == [1]
    assert smallest_step(gaps, 0 * errors, all_may).tolist() == [2]
    assert smallest_step(gaps[::-1], errors, all_may).tolist() == [0]
    assert smallest_step(np.array([[0.2], [np.nan], [0.1]]), errors, all_may).tolist() == [2]


def test_a_small_effect_is_likely_and_says_how_many_rows_would_show_it():
    chosen, claim = weighed(path([0.35, 0.2], n=300))
    assert (chosen, claim.word) == (1, "likely")
    more = [path([0.35, 0.2], n=round(300 * claim.times), seed=seed) for seed in range(100, 120)]
    shown = sum(weighed(models, resamples=100)[1].word == "shown" for models in more)
    assert shown >= 8


def test_rows_of_one_patient_count_as_one():
    errors = []
    for clusters in (None, np.repeat(np.arange(100), 8)):
        few = path([1.0, 0.5], n=100)
        models = [
            Predictions(*(np.repeat(part, 8, axis=0) for part in (p.scores, p.targets, p.groups)), (SEX,)) for p in few
        ]
        errors.append(weighed([replace(p, clusters=clusters) for p in models])[1].error)
    assert errors[1] > 2 * errors[0]


def test_a_choice_among_noise_is_corrected_for_on_average():
    """Six candidates of the same true gap as the original: whatever seems to be gained is the choice's."""
    apparent, corrected, shown = [], [], 0
    for seed in range(40):
        _, claim = weighed(path([0.5] * 7, n=300, seed=seed, noise=0.8), resamples=150)
        apparent.append(claim.apparent)
        corrected.append(claim.reduction)
        shown += claim.word == "shown"
    assert np.mean(corrected) < 0.7 * np.mean(apparent)
    assert shown <= 8


def test_without_a_choice_nothing_is_corrected():
    figures = resampled_figures(path([1.5, 0.5, 0.1]), threshold=0.5, resamples=50)
    claim = claim_of(figures, 2, np.full(50, 2), 0.9)
    assert claim.reduction == pytest.approx(claim.apparent)


def test_the_same_seed_gives_the_same_claim_and_the_figure_that_is_no_result_is_in_no_report():
    first, second = (weighed(path([1.0, 0.5]))[1] for _ in range(2))
    assert first == second
    assert "apparent" not in first.to_dict()
    assert {one["figure"] for one in first.to_dict()["figures"]} >= {"equalized_odds_difference", "mean_group_roc_auc"}


def test_more_confidence_asks_for_more():
    models = path([0.6, 0.2], n=400, seed=1)
    words = [weighed(models, confidence=confidence)[1].word for confidence in (0.6, 0.9999)]
    assert words == ["shown", "likely"]
