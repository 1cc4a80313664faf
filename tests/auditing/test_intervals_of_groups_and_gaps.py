"""Intervals of the audit: closed forms against statsmodels, laws, and small simulations of coverage."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from bmft.auditing import DIRECTION, Column, Predictions, Sample, gather, group_metrics
from bmft.auditing.gap_intervals import gap_intervals
from bmft.auditing.group_intervals import calibration_interval, half_sum, on_logit_scale
from bmft.inference import audit
from bmft.stats import Interval, delong, quantile
from bmft.stats.intervals import ratio
from bmft.tables import Attribute

RATES = {
    "true_positive_rate": lambda y, d: (d[y].sum(), y.sum()),
    "false_positive_rate": lambda y, d: (d[~y].sum(), (~y).sum()),
    "selection_rate": lambda y, d: (d.sum(), len(d)),
    "accuracy": lambda y, d: ((y == d).sum(), len(d)),
}


def predictions(sizes, *, seed=0, shift=0.0, clusters=None, rate=0.4):
    """Groups of these sizes, group g's positives `shift` g less separated; `clusters`: rows per patient."""
    random = np.random.default_rng(seed)
    parts = []
    for g, size in enumerate(sizes):
        own = clusters or 1
        patients = -(-size // own)
        targets = np.repeat(random.random(patients) < rate, own)[:size]
        shared = np.repeat(random.normal(size=patients), own)[:size] if clusters else 0
        noise = np.sqrt(0.5) * (random.normal(size=size) + shared) if clusters else random.normal(size=size)
        logits = noise + (1.5 - shift * g) * targets - 0.75
        parts.append((1 / (1 + np.exp(-logits)), targets, np.full(size, g), g * 10**6 + np.arange(size) // own))
    scores, targets, groups, patients = map(np.concatenate, zip(*parts, strict=True))
    attribute = Attribute("site", tuple(f"g{g}" for g in range(len(sizes))))
    return Predictions(scores, targets.astype(int), groups, (attribute,), clusters=patients if clusters else None)


@pytest.fixture(scope="module")
def two():
    found = predictions((120, 90), shift=0.5)
    return found, audit(found, resamples=200)


def group(found, g):
    own = found.groups[:, 0] == g
    return found.targets[own, 0] == 1, found.decisions()[own, 0] == 1, found.scores[own, 0]


@pytest.mark.parametrize("name", RATES)
def test_a_rates_interval_is_wilsons(two, name):
    found, report = two
    for g in (0, 1):
        x, n = RATES[name](*group(found, g)[:2])
        expected = proportion_confint(x, n, method="wilson")
        assert report.intervals["by_group"]["site"][f"g{g}"][name] == pytest.approx(expected)


@pytest.mark.parametrize("name", RATES)
def test_the_gap_of_a_rate_between_two_groups_is_newcombes_folded_at_zero(two, name):
    found, report = two
    (x1, n1), (x2, n2) = (RATES[name](*group(found, g)[:2]) for g in (0, 1))
    low, high = confint_proportions_2indep(x1, n1, x2, n2, method="newcomb", compare="diff")
    gap = {"selection_rate": "demographic_parity_difference"}.get(name, f"{name}_difference")
    expected = (max(low, -high, 0), max(abs(low), abs(high)))
    assert report.intervals["gaps"]["site"][gap] == pytest.approx(expected)


def test_the_interval_of_an_area_is_delongs(two):
    found, report = two
    targets, _, scores = group(found, 1)
    expected = delong(scores, targets)
    assert report.intervals["by_group"]["site"]["g1"]["roc_auc"] == pytest.approx((expected.low, expected.high))


def test_the_interval_of_f1_is_wilsons_of_the_right_calls_among_all_positive_or_called(two):
    found, report = two
    targets, decisions, _ = group(found, 0)
    ends = np.array(proportion_confint((targets & decisions).sum(), (targets | decisions).sum(), method="wilson"))
    assert report.intervals["by_group"]["site"]["g0"]["f1"] == pytest.approx(list(2 * ends / (1 + ends)))


def known(level):
    """Three groups whose every metric is known to within a standard error of 0.02."""
    reach = np.full(3, 0.02 * quantile(level))
    return {name: Interval(VALUES[name] - reach, VALUES[name] + reach) for name in DIRECTION}


VALUES = {
    **{name: np.array([0.3, 0.5, 0.6]) for name in DIRECTION},
    "true_positive_rate": np.array([0.9, 0.5, 0.6]),
    "false_positive_rate": np.array([0.1, 0.2, 0.4]),
}


@pytest.mark.parametrize("columns", [1, 5])
def test_the_low_end_of_a_largest_difference_is_corrected_for_the_comparisons_and_the_high_end_is_not(columns):
    def end(difference, comparisons=1):
        return difference + np.sqrt(2) * 0.02 * quantile(1 - 0.05 / comparisons) * (-1 if comparisons > 1 else 1)

    gaps = gap_intervals(VALUES, known, 0.95, clustered=True, columns=columns)
    assert gaps["roc_auc_difference"] == pytest.approx((end(0.3, 3 * columns), end(0.3)))
    assert gaps["equalized_odds_difference"] == pytest.approx((end(0.4, 6 * columns), end(0.4)))
    low = (end(0.4, 6 * columns) + end(0.3, 6 * columns)) / 2
    assert gaps["average_odds_difference"] == pytest.approx((low, (end(0.4) + end(0.3)) / 2))
    together = gap_intervals(VALUES, known, 0.95, clustered=False, columns=columns)["average_odds_difference"]
    assert together == pytest.approx((low, 0.35 + 0.02 * quantile(0.95)))


@pytest.mark.parametrize("columns", [1, 5])
def test_the_high_end_of_a_smallest_ratio_is_corrected_for_the_comparisons_and_the_low_end_is_not(columns):
    def ends(level):
        own = known(level)["selection_rate"]
        return ratio(0.3, Interval(own.low[0], own.high[0]), 0.6, Interval(own.low[2], own.high[2]))

    found = gap_intervals(VALUES, known, 0.95, clustered=True, columns=columns)["demographic_parity_ratio"]
    assert found == pytest.approx((float(ends(0.95).low), float(ends(1 - 0.05 / (3 * columns)).high)))


def test_every_figure_has_an_interval_that_holds_it(two):
    _, report = two
    tables = [(report.overall, report.intervals["overall"]), (report.gaps["site"], report.intervals["gaps"]["site"])]
    tables += [(report.by_group["site"][g], report.intervals["by_group"]["site"][g]) for g in ("g0", "g1")]
    for figures, intervals in tables:
        assert set(intervals) == set(figures) - {"n", "n_positive"}
        for name, (low, high) in intervals.items():
            assert 0 <= low <= figures[name] + 1e-12, name
            assert figures[name] <= high + 1e-12, name
            assert high <= 1, name


@given(seed=st.integers(0, 10**6), clusters=st.sampled_from([None, 3]), order=st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_rows_and_unknown_rows_change_no_interval(seed, clusters, order):
    found = predictions((30, 25), seed=seed, clusters=clusters)
    rows = list(range(len(found)))
    order.shuffle(rows)
    more = [*rows, 0, 3]  # two rows again, now of unknown group and of their own patients
    groups = found.groups[more]
    groups[-2:] = -1
    patients = None if clusters is None else np.array([*found.clusters[rows], -1, -2])
    changed = Predictions(found.scores[more], found.targets[more], groups, found.attributes, clusters=patients)
    first, second = (audit(one, resamples=50).intervals for one in (found, changed))
    for table in ("by_group", "gaps"):
        _same(first[table], second[table])


def _same(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            _same(first[name], second[name])
    else:
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_the_same_seed_gives_the_same_intervals_and_another_one_others(two):
    found, report = two
    assert audit(found, resamples=200).intervals == report.intervals
    assert audit(found, resamples=200, seed=1).intervals != report.intervals


def test_perfect_rates_keep_an_interval_of_their_own_size_with_and_without_patients():
    scores, targets = np.array([0.9, 0.1] * 20), np.array([1, 0] * 20)
    for clusters in (None, np.arange(40) // 4):
        found = Predictions(scores, targets, np.arange(40) // 20, (Attribute("a", ("x", "y")),), clusters=clusters)
        report = audit(found, resamples=50)
        for name in ("accuracy", "true_positive_rate", "roc_auc", "average_precision", "f1"):
            low, high = report.intervals["by_group"]["a"]["x"][name]
            assert high == pytest.approx(1), name
            assert 0.3 < low < 0.95, name
        assert report.intervals["gaps"]["a"]["equalized_odds_difference"][1] > 0.1


def test_patients_make_intervals_wider():
    found = predictions((400, 400), clusters=8)
    alone = Predictions(found.scores, found.targets, found.groups, found.attributes)
    wide, narrow = (audit(one, resamples=300).intervals for one in (found, alone))
    for name in ("true_positive_rate", "roc_auc", "selection_rate", "f1"):
        spread = [np.diff(one["by_group"]["site"]["g0"][name])[0] for one in (wide, narrow)]
        assert spread[0] > 1.2 * spread[1], name
    assert np.diff(wide["gaps"]["site"]["roc_auc_difference"]) > np.diff(narrow["gaps"]["site"]["roc_auc_difference"])


def test_where_a_patients_rates_move_against_each_other_their_mean_is_surer_than_both_say():
    # Each patient has images of both labels and calls more, or fewer, of all of them positive.
    random = np.random.default_rng(0)
    patients, targets = np.arange(400) // 8, random.random(400) < 0.5
    logits = 2 * targets - 1 + np.repeat(random.normal(size=50), 8) + 0.5 * random.normal(size=400)
    found = Predictions(
        1 / (1 + np.exp(-logits)),
        targets.astype(int),
        np.arange(400) // 200,
        (Attribute("site", ("g0", "g1")),),
        clusters=patients,
    )
    own = audit(found, resamples=1000).intervals["by_group"]["site"]["g0"]
    width = {name: high - low for name, (low, high) in own.items()}
    apart = np.hypot(width["true_positive_rate"], width["true_negative_rate"]) / 2
    assert 0.3 * apart < width["balanced_accuracy"] < 0.9 * apart


def test_patients_of_one_row_each_are_worth_what_rows_are():
    found = predictions((300, 300))
    patients = Predictions(
        found.scores, found.targets, found.groups, found.attributes, clusters=np.random.default_rng(0).permutation(600)
    )
    ours, rows = (audit(one, resamples=1000).intervals["by_group"]["site"]["g0"] for one in (patients, found))
    for name, (low, high) in ours.items():
        assert high - low == pytest.approx(rows[name][1] - rows[name][0], rel=0.12), name


def test_more_groups_bring_a_wider_interval_that_still_reaches_zero():
    few, many = (audit(predictions((80,) * g, seed=3), resamples=100) for g in (2, 6))
    gaps = [report.intervals["gaps"]["site"]["true_positive_rate_difference"] for report in (few, many)]
    assert gaps[1][1] > gaps[0][1]
    assert gaps[1][0] == 0
    assert many.gaps["site"]["true_positive_rate_difference"] > 0.1  # of groups that are equal in truth


def test_a_group_without_positives_has_no_interval_where_it_has_no_figure():
    found = Predictions([0.9, 0.2, 0.7, 0.4], [1, 0, 0, 0], [0, 0, 1, 1], (Attribute("a", ("x", "y", "z")),))
    report = audit(found, resamples=50)
    by_group = report.intervals["by_group"]["a"]
    assert np.isnan(by_group["y"]["true_positive_rate"]).all()
    assert np.isnan(by_group["y"]["roc_auc"]).all()
    assert not np.isnan(by_group["y"]["false_positive_rate"]).any()
    assert all(np.isnan(ends).all() for ends in by_group["z"].values())
    assert np.isnan(report.intervals["gaps"]["a"]["equalized_odds_difference"]).all()
    assert not np.isnan(report.intervals["gaps"]["a"]["false_positive_rate_difference"]).any()


def test_a_group_of_a_single_patient_has_no_interval():
    found = Predictions(
        [0.9, 0.2, 0.7, 0.4, 0.6, 0.3],
        [1, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
        (Attribute("a", ("x", "y")),),
        clusters=np.array([1, 1, 2, 3, 4, 4]),
    )
    report = audit(found, resamples=50)
    assert np.isnan(report.intervals["by_group"]["a"]["y"]["accuracy"]).all()
    assert np.isnan(report.intervals["gaps"]["a"]["accuracy_difference"]).all()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("clustered", [False, True])
def test_several_columns_have_intervals_for_the_mean_the_worst_and_each(task, clustered):
    random = np.random.default_rng(1)
    n = 240
    if task == "multiclass":
        targets = random.integers(0, 3, n)
        scores = np.exp(random.normal(size=(n, 3)) + 2 * np.eye(3)[targets])
        scores /= scores.sum(1, keepdims=True)
    else:
        targets = random.integers(0, 2, (n, 3))
        scores = 1 / (1 + np.exp(-random.normal(size=(n, 3)) - 2 * targets + 1))
    found = Predictions(
        scores,
        targets,
        random.integers(0, 2, n),
        (Attribute("a", ("x", "y")),),
        task,
        ("p", "q", "r"),
        clusters=np.arange(n) // 2 if clustered else None,
    )
    report = audit(found, resamples=200)
    figures, ends = report.by_group["a"]["x"], report.intervals["by_group"]["a"]["x"]
    gaps, gap_ends = report.gaps["a"], report.intervals["gaps"]["a"]
    for values, intervals in itertools.chain(
        [(figures, ends), (gaps, gap_ends), (figures["worst_class"], ends["worst_class"])],
        [(gaps["worst_class"], gap_ends["worst_class"])],
        [(figures["by_class"][c], ends["by_class"][c]) for c in "pqr"],
        [(gaps["by_class"][c], gap_ends["by_class"][c]) for c in "pqr"],
    ):
        numbers = {k: v for k, v in values.items() if k not in ("n", "n_positive", "by_class", "worst_class")}
        assert numbers.keys() == intervals.keys() - {"by_class", "worst_class"}
        for name, value in numbers.items():
            assert intervals[name][0] - 1e-9 <= value <= intervals[name][1] + 1e-9, name
    widest = max(np.ptp(ends["by_class"][c]["roc_auc"]) for c in "pqr")
    assert np.ptp(ends["roc_auc"]) < widest  # the mean is known better than its parts


def test_half_the_sum_of_two_independent_estimates_is_known_by_both():
    low, high = half_sum((0.8, Interval(0.7, 0.9)), (0.6, Interval(0.5, 0.7)))
    assert (low, high) == pytest.approx((0.7 - np.sqrt(0.02) / 2, 0.7 + np.sqrt(0.02) / 2))


def test_on_the_logit_scale_an_interval_stays_inside_and_skips_what_was_not_measured():
    replicates = np.array([[0.97, np.nan], [0.99, np.nan], [np.nan, np.nan], [0.95, np.nan]])
    low, high = on_logit_scale(np.array([0.97, np.nan]), replicates, np.array([20.0, 5.0]), 0.95)
    assert 0 < low[0] < 0.97 < high[0] < 1
    assert np.isnan([low[1], high[1]]).all()


def test_the_calibration_interval_of_a_calibrated_model_reaches_zero_where_a_percentile_interval_never_does():
    random, covered, percentile = np.random.default_rng(0), 0, 0
    for seed in range(60):
        scores = random.random(200)
        column = Column(scores, scores >= 0.5, random.random(200) < scores)
        groups = np.zeros(200, np.int64)
        values = group_metrics(column, groups, 1)
        (evidence,) = gather([column], [values], Sample(groups, 1, None, 200, seed))
        covered += evidence.at(0.95)["expected_calibration_error"].low[0] == 0
        drawn = np.abs(evidence.replicates["surplus"][:, 0]).sum(1)
        percentile += np.quantile(drawn, 0.025) < 0.001
    assert covered >= 54  # 60 at 95 %, less three standard errors
    assert percentile == 0


def test_a_calibration_error_beyond_noise_does_not_reach_zero():
    surplus = np.array([0.2, -0.1])
    noise = np.random.default_rng(0).normal(0, 0.02, (500, 2))
    low, high = calibration_interval(surplus, surplus + noise, np.array([0.02, 0.02]), 100, 0.95)
    assert 0.2 < low < 0.3 < high < 0.4


@pytest.mark.parametrize(("sizes", "clusters"), [((100, 100), None), ((160, 160), 4)])
def test_gaps_between_equal_groups_have_intervals_that_hold_zero_as_often_as_they_say(sizes, clusters):
    runs = 80
    names = ("equalized_odds_difference", "roc_auc_difference", "average_odds_difference")
    held = dict.fromkeys(names, 0)
    for seed in range(runs):
        report = audit(predictions(sizes, seed=seed, clusters=clusters), resamples=60)
        for name in names:
            held[name] += report.intervals["gaps"]["site"][name][0] <= 0
    assert min(held.values()) >= runs * 0.95 - 3 * np.sqrt(runs * 0.95 * 0.05), held


def test_every_metric_can_be_asked_for_at_any_level(two):
    found, _ = two
    wide, narrow = (audit(found, level=level, resamples=200).intervals["overall"] for level in (0.99, 0.8))
    assert set(wide) == set(DIRECTION)
    for name in DIRECTION:
        assert wide[name][0] < narrow[name][0] < narrow[name][1] < wide[name][1], name
