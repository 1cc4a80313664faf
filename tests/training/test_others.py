"""The term of the loss that holds the other outputs of a network."""

import pytest
import torch
from torch import nn

from bmft.data import from_arrays
from bmft.fairness import equalized_odds_gap
from bmft.training import Loss, PooledLoss
from bmft.training.loss import distance


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_distance_is_the_divergence_of_the_originals_yes_or_no_from_the_new_one():
    start, logits = draws(20, 3), draws(20, 3, seed=1)
    old, new = (torch.distributions.Bernoulli(logits=one) for one in (start, logits))
    expected = torch.distributions.kl_divergence(old, new).mean()
    torch.testing.assert_close(distance(logits, start), expected)


def test_its_slope_at_each_logit_is_how_far_the_probability_moved():
    start, logits = draws(20, 3), draws(20, 3, seed=1).requires_grad_()
    distance(logits, start).backward()
    torch.testing.assert_close(logits.grad, (logits.sigmoid() - start.sigmoid()).detach() / 60)


def test_it_is_least_and_nothing_where_nothing_moved():
    start = draws(20, 3)
    assert distance(start, start).item() == pytest.approx(0, abs=1e-7)
    assert distance(start + 0.1, start) > 0 < distance(start - 0.1, start)


def test_what_the_original_has_no_number_for_holds_nothing():
    start, logits = draws(4, 2), draws(4, 2, seed=1).requires_grad_()
    start[:, 1] = float("nan")
    distance(logits, start).backward()
    assert not logits.grad[:, 1].any()
    assert torch.isfinite(logits.grad).all()


def test_the_other_columns_enter_that_term_alone():
    data = from_arrays(draws(12, 2), torch.arange(12) % 2, torch.arange(12) // 6)
    logits, index = draws(12, 4, seed=2), torch.arange(12)
    later = logits + 0.3 * draws(12, 4, seed=3)
    terms = {"bias_weight": 2.0, "task_weight": 1.0, "order_weight": 0.5}
    alone = PooledLoss(Loss(equalized_odds_gap, **terms), data, logits[:, :1], False)
    held = PooledLoss(Loss(equalized_odds_gap, **terms, others_weight=3.0), data, logits, False, own=1)
    expected = alone(later[:, :1], index) + 3.0 * distance(later[:, 1:], logits[:, 1:])
    torch.testing.assert_close(held(later, index), expected)


def test_of_a_batch_the_others_are_compared_with_what_they_were_for_its_samples():
    data = from_arrays(draws(12, 2), torch.arange(12) % 2, torch.arange(12) // 6)
    logits, index = draws(12, 4), torch.tensor([7, 2, 5])
    held = PooledLoss(Loss(equalized_odds_gap, bias_weight=0.0, others_weight=1.0), data, logits, False, own=1)
    assert held(logits[index], index).item() == pytest.approx(0, abs=1e-7)
    other = nn.functional.pad(logits[index, 1:] + 1, (1, 0))
    assert held(other, index) > 0.01
