"""Rates and gaps: laws, a slow oracle, fairlearn, and numbers by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from fairlearn import metrics as fairlearn
from hypothesis import given, settings, strategies as st

from bmft import fairness
from bmft.errors import ConfigError, DataError, GroupError
from bmft.fairness import OBJECTIVES, cross_entropy, equalized_odds_gap, group_rates, over_attributes

GAPS = {name: objective for name, objective in OBJECTIVES.items() if name != "worst_group_loss"}
FAIRLEARN = {
    "equal_opportunity": fairlearn.true_positive_rate,
    "demographic_parity": fairlearn.selection_rate,
    "false_positive_rate": fairlearn.false_positive_rate,
    "false_negative_rate": fairlearn.false_negative_rate,
    "accuracy": lambda y_true, y_pred: float(np.mean(np.asarray(y_true) == np.asarray(y_pred))),
}


@st.composite
def samples(draw, soft=True, max_groups=4, unknown=True):
    n = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    scores = random.random(n) if soft else (random.random(n) < draw(st.floats(0, 1))).astype(float)
    targets = (random.random(n) < draw(st.floats(0, 1))).astype(np.int64)
    groups = random.integers(-1 if unknown else 0, draw(st.integers(1, max_groups)), n)
    return torch.from_numpy(scores), torch.from_numpy(targets), torch.from_numpy(groups)


def same(a, b, tolerance=1e-12):
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, abs=tolerance)


def slow_rate(values, keep):
    kept = [value for value, k in zip(values, keep, strict=True) if k]
    return sum(kept) / len(kept) if kept else None


def slow_gap(name, scores, targets, groups, pairs):
    """The definitions, one sample at a time."""
    p, y, g = scores.tolist(), targets.tolist(), groups.tolist()
    right = [a if b == 1 else 1 - a for a, b in zip(p, y, strict=True)]
    cells = {
        "equalized_odds": [(p, [v == 1 for v in y]), (p, [v == 0 for v in y])],
        "equal_opportunity": [(p, [v == 1 for v in y])],
        "demographic_parity": [(p, [True] * len(y))],
        "false_positive_rate": [(p, [v == 0 for v in y])],
        "false_negative_rate": [([1 - v for v in p], [v == 1 for v in y])],
        "accuracy": [(right, [True] * len(y))],
    }[name]
    terms = []
    for values, condition in cells:
        rates = {
            a: slow_rate(values, [c and b == a for c, b in zip(condition, g, strict=True)])
            for a in sorted(set(g) - {-1})
        }
        present = [rate for rate in rates.values() if rate is not None]
        if len(present) < 2:
            continue
        if pairs == "all":
            differences = [abs(a - b) for a, b in itertools.combinations(present, 2)]
        else:
            known = [c and b >= 0 for c, b in zip(condition, g, strict=True)]
            differences = [abs(rate - slow_rate(values, known)) for rate in present]
        terms.append(sum(differences) / len(differences))
    return sum(terms) / len(terms) if terms else math.nan


@pytest.mark.parametrize("pairs", ["all", "overall"])
@pytest.mark.parametrize("name", GAPS)
@given(data=samples())
@settings(max_examples=60, deadline=None)
def test_gaps_agree_with_a_slow_oracle(name, pairs, data):
    assert same(GAPS[name](*data, pairs=pairs).item(), slow_gap(name, *data, pairs))


@pytest.mark.parametrize("name", FAIRLEARN)
@given(data=samples(soft=False, max_groups=2, unknown=False))
@settings(max_examples=25, deadline=None)
def test_gaps_of_decisions_between_two_groups_agree_with_fairlearn(name, data):
    decisions, targets, groups = data
    gap = GAPS[name](*data).item()
    # Fairlearn gives rate 0 to a cell without samples; here such a cell has no rate and there is no gap.
    label = {"equal_opportunity": 1, "false_negative_rate": 1, "false_positive_rate": 0}.get(name)
    cells = [((groups == a) & ((targets == label) if label is not None else True)).any() for a in (0, 1)]
    if not all(cells):
        assert math.isnan(gap)
        return
    frame = fairlearn.MetricFrame(
        metrics=FAIRLEARN[name], y_true=targets.numpy(), y_pred=decisions.numpy(), sensitive_features=groups.numpy()
    )
    assert same(gap, frame.difference())


@pytest.mark.parametrize(
    ("rate", "label", "flip"),
    [
        (fairlearn.true_positive_rate, 1, False),
        (fairlearn.false_negative_rate, 1, True),
        (fairlearn.false_positive_rate, 0, False),
        (fairlearn.true_negative_rate, 0, True),
    ],
)
def test_the_four_cells_are_what_fairlearn_calls_them(rate, label, flip):
    random = np.random.default_rng(3)
    decisions, targets, groups = random.integers(0, 2, (3, 400))
    groups = groups + random.integers(0, 2, 400)
    scores = torch.from_numpy(decisions).double()
    ours = group_rates(1 - scores if flip else scores, torch.from_numpy(targets == label), torch.from_numpy(groups), 3)
    theirs = fairlearn.MetricFrame(metrics=rate, y_true=targets, y_pred=decisions, sensitive_features=groups).by_group
    assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-12)


def test_equalized_odds_by_hand():
    # group 0: TPR .8, FPR .1; group 1: TPR .5, FPR .3
    scores = torch.tensor([0.9, 0.7, 0.1, 0.5, 0.2, 0.4])
    targets = torch.tensor([1, 1, 0, 1, 0, 0])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    assert equalized_odds_gap(scores, targets, groups).item() == pytest.approx((0.3 + 0.2) / 2)


def test_opposite_differences_do_not_cancel_as_in_the_published_proxy():
    scores = torch.tensor([0.9, 0.1, 0.1, 0.9])
    targets, groups = torch.tensor([1, 1, 0, 0]), torch.tensor([0, 1, 0, 1])
    tpr = group_rates(scores, targets == 1, groups, 2).diff()
    fpr = group_rates(scores, targets == 0, groups, 2).diff()
    published = 0.5 * (fpr + tpr).abs()
    assert published.item() == pytest.approx(0)
    assert equalized_odds_gap(scores, targets, groups).item() == pytest.approx(0.8)


def test_a_perfect_model_has_no_gap_in_small_batches_that_lack_cells():
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(4000, generator=generator) < 0.15).long()
    groups = (torch.rand(4000, generator=generator) < 0.1).long()
    batches = list(zip(targets.split(16), groups.split(16), strict=True))
    values = [equalized_odds_gap(y.double(), y, g) for y, g in batches]
    empty_as_zero = torch.stack([_gap_with_absent_cells_as_zero(y, g) for y, g in batches])
    assert torch.stack(values).nan_to_num(0).max() == 0
    assert empty_as_zero.mean() > 0.1  # the published form, on the same batches


def _gap_with_absent_cells_as_zero(targets, groups):
    rates = [group_rates(targets.double(), targets == label, groups, 2).nan_to_num(0) for label in (0, 1)]
    return sum(0.5 * rate.diff().abs() for rate in rates)


def test_where_one_rate_cannot_be_compared_the_other_stands_alone():
    scores, groups = torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0, 1, 0])
    assert equalized_odds_gap(scores, torch.tensor([1, 1, 0]), groups).item() == pytest.approx(0.4)


def test_an_absent_group_between_two_others_is_neither_zero_nor_renumbered():
    rates = group_rates(torch.tensor([1.0, 0.5]), torch.tensor([True, True]), torch.tensor([0, 3]), 5)
    assert rates.isnan().tolist() == [False, True, True, False, True]
    assert rates[[0, 3]].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("name", GAPS)
@pytest.mark.parametrize("groups", [[0, 0, 0], [-1, -1, -1], [1, 1, -1]])
def test_with_nothing_to_compare_a_gap_is_nan_and_has_no_gradient(name, groups):
    scores = torch.tensor([0.2, 0.6, 0.9], requires_grad=True)
    gap = GAPS[name](scores, torch.tensor([0, 1, 1]), torch.tensor(groups))
    gap.backward()
    assert gap.isnan()
    assert scores.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", GAPS)
@pytest.mark.parametrize("n", [0, 1])
def test_no_sample_or_one_sample_has_no_gap(name, n):
    empty = torch.zeros(n)
    assert GAPS[name](empty, empty.long(), empty.long()).isnan()


@pytest.mark.parametrize("name", GAPS)
def test_equal_predictions_have_gap_zero_except_in_accuracy(name):
    targets, groups = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 1])
    gap = GAPS[name](torch.full((5,), 0.25, dtype=torch.float64), targets, groups).item()
    expected = abs((0.75 + 0.25) / 2 - (0.75 + 2 * 0.25) / 3) if name == "accuracy" else 0
    assert gap == pytest.approx(expected)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(data=samples(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_samples_does_not_matter(name, data, seed):
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))
    assert same(OBJECTIVES[name](*data).item(), OBJECTIVES[name](*(part[order] for part in data)).item())


@pytest.mark.parametrize("name", OBJECTIVES)
@given(data=samples(), ids=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_the_names_of_the_groups_do_not_matter(name, data, ids):
    scores, targets, groups = data
    renamed = torch.where(groups < 0, -1, torch.tensor(ids)[groups.clamp(min=0)])
    assert same(OBJECTIVES[name](*data).item(), OBJECTIVES[name](scores, targets, renamed).item())


@given(data=samples(), ids=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_renaming_the_groups_renames_their_rates(data, ids):
    scores, targets, groups = data
    renamed = torch.where(groups < 0, -1, torch.tensor(ids)[groups.clamp(min=0)])
    before, after = (group_rates(scores, targets == 1, g, 4) for g in (groups, renamed))
    torch.testing.assert_close(after[torch.tensor(ids)], before, equal_nan=True)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(data=samples(), more=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_samples_of_unknown_group_change_nothing(name, data, more):
    scores, targets, groups = data
    added = (
        torch.cat([scores, torch.linspace(0, 1, more).double()]),
        torch.cat([targets, torch.arange(more) % 2]),
        torch.cat([groups, torch.full((more,), -1)]),
    )
    assert same(OBJECTIVES[name](*data).item(), OBJECTIVES[name](*added).item())


@pytest.mark.parametrize("name", [*OBJECTIVES, "cross_entropy"])
@given(data=samples(max_groups=3), pairs=st.sampled_from(["all", "overall"]))
@settings(max_examples=15, deadline=None)
def test_the_gradient_is_the_finite_difference(name, data, pairs):
    scores, targets, groups = data
    objective = {**OBJECTIVES, "cross_entropy": cross_entropy}[name]
    options = {} if name == "cross_entropy" else {"pairs": pairs}
    # Away from the edges of [0, 1] and from ties, where the absolute value and the maximum have a kink.
    scores = (0.05 + 0.9 * scores).requires_grad_()
    value = objective(scores, targets, groups, **options)
    value.backward()
    step = 1e-7
    for i in range(len(scores)):
        nudge = step * torch.eye(len(scores), dtype=torch.float64)[i]
        moved = [scores.detach() + sign * nudge for sign in (1, -1)]
        up, down = (objective(m, targets, groups, **options).item() for m in moved)
        numeric = 0.0 if math.isnan(up) else (up - down) / (2 * step)
        assert scores.grad[i].item() == pytest.approx(numeric, abs=1e-6)


@pytest.mark.parametrize("name", sorted(set(GAPS) - {"accuracy", "false_negative_rate"}))
@given(data=samples())
@settings(max_examples=40, deadline=None)
def test_a_gap_is_a_weighted_sum_of_the_scores(name, data):
    scores, targets, groups = data
    scores.requires_grad_()
    gap = GAPS[name](scores, targets, groups)
    gap.backward()
    assert gap.isnan() or same(gap.item(), (scores.grad * scores).sum().item())


def test_between_two_groups_a_weight_is_one_over_the_cells_count():
    scores = torch.tensor([0.9, 0.7, 0.2], requires_grad=True)
    GAPS["equal_opportunity"](scores, torch.tensor([1, 1, 1]), torch.tensor([0, 0, 1])).backward()
    assert scores.grad.tolist() == pytest.approx([0.5, 0.5, -1.0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_columns_are_averaged_or_the_worst_is_taken(name):
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(60, 3, generator=generator, dtype=torch.float64)
    targets = fairness.one_vs_rest(torch.randint(0, 3, (60,), generator=generator), 3)
    groups = torch.randint(0, 3, (60,), generator=generator)
    objective = OBJECTIVES[name]
    each = torch.stack([objective(scores[:, k], targets[:, k], groups) for k in range(3)])
    assert objective(scores, targets, groups, columns="worst").item() == pytest.approx(each.max().item())
    if name != "worst_group_loss":
        assert objective(scores, targets, groups).item() == pytest.approx(each.mean().item())


def test_class_indices_are_taken_one_against_the_rest():
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
    indices, groups = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 0, 1])
    one_hot = fairness.one_vs_rest(indices, 3)
    assert equalized_odds_gap(scores, indices, groups) == equalized_odds_gap(scores, one_hot, groups)


def test_a_column_that_cannot_be_compared_is_skipped():
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.3]])
    targets = torch.tensor([[1, 0], [1, 0]])
    gap = GAPS["equal_opportunity"](scores, targets, torch.tensor([0, 1]))
    assert gap.item() == pytest.approx(0.4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_score_that_is_not_a_number_shows_in_the_result(name):
    scores = torch.tensor([0.2, 0.4, math.nan, 0.6, 0.3, 0.9])
    targets = torch.tensor([1, 0] * 3)
    if name in ("false_positive_rate",):
        targets = 1 - targets
    assert OBJECTIVES[name](scores, targets, torch.tensor([0, 0, 1, 1, 2, 2])).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_zeros_and_ones_of_any_type_give_the_same_gap(dtype):
    decisions, targets = torch.tensor([1, 0, 1, 1]), torch.tensor([1, 1, 1, 1])
    gap = GAPS["equal_opportunity"](decisions.to(dtype), targets, torch.tensor([0, 0, 1, 1]))
    assert gap.item() == 0.5


def test_autocast_does_not_round_the_rates():
    scores, targets = torch.rand(999, generator=torch.Generator().manual_seed(0)), torch.arange(999) % 2
    groups = torch.arange(999) % 3
    outside = equalized_odds_gap(scores, targets, groups)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equalized_odds_gap(scores, targets, groups).item() == outside.item()


def test_worst_group_loss_is_the_log_loss_of_the_worst_group():
    scores, targets = torch.tensor([0.9, 0.8, 0.4]), torch.tensor([1, 0, 1])
    loss = OBJECTIVES["worst_group_loss"](scores, targets, torch.tensor([0, 1, 1]))
    assert loss.item() == pytest.approx(-(math.log(0.2) + math.log(0.4)) / 2)


def test_cross_entropy_counts_both_labels_equally_however_rare_one_is():
    scores, targets = torch.tensor([0.9, 0.8, 0.7, 0.4]), torch.tensor([0, 0, 0, 1])
    negatives = -sum(math.log(1 - p) for p in (0.9, 0.8, 0.7)) / 3
    expected = (negatives - math.log(0.4)) / 2
    assert cross_entropy(scores, targets).item() == pytest.approx(expected)
    assert cross_entropy(scores, targets, torch.tensor([-1, 0, 1, 0])).item() == pytest.approx(expected)


def test_cross_entropy_of_a_set_without_positives_is_that_of_its_negatives():
    scores = torch.tensor([0.5, 0.5], requires_grad=True)
    loss = cross_entropy(scores, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert scores.grad.tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_log_loss_of_a_certain_mistake_is_large_and_finite(dtype):
    scores = torch.tensor([0.0, 1.0], dtype=dtype, requires_grad=True)
    loss = cross_entropy(scores, torch.tensor([1, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(torch.finfo(dtype).eps))
    assert scores.grad.isfinite().all()


def test_attributes_are_averaged_or_the_worst_is_taken():
    scores, targets = torch.tensor([0.9, 0.5, 0.8, 0.8]), torch.ones(4, dtype=torch.long)
    groups = torch.tensor([[0, 0, 0], [1, 0, 0], [-1, 1, 0], [-1, 1, 0]])  # the last has one group only
    first, second = 0.4, 0.1
    gap = GAPS["equal_opportunity"]
    assert over_attributes(gap)(scores, targets, groups).item() == pytest.approx((first + second) / 2)
    assert over_attributes(gap, "worst")(scores, targets, groups).item() == pytest.approx(first)
    assert over_attributes(gap)(scores, targets, groups[:, 2:]).isnan()
    assert over_attributes(gap)(scores, targets, groups[:, 0]).item() == pytest.approx(first)


@pytest.mark.parametrize(
    ("logits", "multi_label", "columns"),
    [
        ((5,), False, 1),
        ((5, 1), False, 1),
        ((5, 2), False, 1),
        ((5, 2), True, 2),
        ((5, 4), False, 4),
        ((5, 4), True, 4),
    ],
)
def test_logits_become_one_probability_per_column(logits, multi_label, columns):
    values = torch.randn(logits, generator=torch.Generator().manual_seed(0))
    scores = fairness.probabilities(values, multi_label=multi_label)
    assert scores.shape == (5, columns)
    if columns == 4 and not multi_label:
        assert scores.sum(1).tolist() == pytest.approx([1] * 5)
    if logits == (5, 2) and not multi_label:
        torch.testing.assert_close(scores[:, 0], values.softmax(1)[:, 1])


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda p, y, g: equalized_odds_gap(p, y, g, pairs="every"), ConfigError, "pairs is 'every'"),
        (lambda p, y, g: equalized_odds_gap(p, y, g, columns="max"), ConfigError, "columns is 'max'"),
        (lambda p, y, g: over_attributes(equalized_odds_gap, "max"), ConfigError, "combine is 'max'"),
        (lambda p, y, g: equalized_odds_gap(p, y[:2], g), DataError, r"\(2,\)"),
        (lambda p, y, g: equalized_odds_gap(p, y, g[:, None]), DataError, "over_attributes"),
        (lambda p, y, g: over_attributes(equalized_odds_gap)(p, y, g[:, None][:, :0]), GroupError, "no column"),
        (lambda p, y, g: group_rates(p, y == 1, g, 1), GroupError, "the id 1"),
        (lambda p, y, g: fairness.one_vs_rest(torch.tensor([0, 3]), 3), DataError, "0..2"),
        (lambda p, y, g: fairness.one_vs_rest(torch.tensor([0, 2]), 1), DataError, "other than 0 and 1"),
        (lambda p, y, g: fairness.one_vs_rest(torch.zeros(2, 2), 3), DataError, "3 columns"),
        (lambda p, y, g: fairness.probabilities(torch.zeros(2, 2, 2)), DataError, r"\(2, 2, 2\)"),
    ],
)
def test_a_callers_mistake_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call(torch.tensor([0.5, 0.1, 0.2]), torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1]))
