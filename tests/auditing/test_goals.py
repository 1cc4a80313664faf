"""What a search looks for, where some groups cannot be measured."""

from itertools import permutations

import numpy as np
import pytest

from bmft.auditing import GOALS, Predictions, audit_predictions
from bmft.tables import Attribute

# The third group has no positives, and so no ROC AUC.
SCORES = {"a": ([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1]), "b": ([0.2, 0.9], [0, 1]), "c": ([0.3, 0.6], [0, 0])}


def report(order):
    scores, targets = (np.concatenate([SCORES[name][part] for name in order]) for part in (0, 1))
    groups = np.repeat(np.arange(len(order)), [len(SCORES[name][0]) for name in order])
    return audit_predictions(Predictions(scores, targets, groups, (Attribute("g", order),)), intervals=False)


@pytest.mark.parametrize("order", list(permutations(SCORES)))
def test_a_group_without_an_auc_is_left_out_whatever_the_order_of_the_groups(order):
    assert GOALS["worst_group_auc"].of(report(order)) == 0.75


@pytest.mark.parametrize("goal", GOALS)
def test_no_goal_depends_on_the_order_of_the_groups(goal):
    assert len({round(GOALS[goal].of(report(order)), 12) for order in permutations(SCORES)}) == 1


def test_an_attribute_whose_gap_cannot_be_measured_is_left_out():
    one = Predictions([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1], np.zeros((4, 1), int), (Attribute("alone", ("all",)),))
    assert GOALS["auc_gap"].of(audit_predictions(one, intervals=False)) == np.inf
    names = (Attribute("alone", ("all",)), Attribute("g", ("x", "y")))
    groups = np.array([[0, 0], [0, 1], [0, 0], [0, 1]])
    for order in ([0, 1], [1, 0]):
        both = Predictions([0.1, 0.4, 0.3, 0.8], [0, 0, 1, 1], groups[:, order], tuple(names[i] for i in order))
        assert GOALS["auc_gap"].of(audit_predictions(both, intervals=False)) == 0.0
