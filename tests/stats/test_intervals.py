"""Intervals against published values, other packages, slow oracles, and their level in simulation."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from bmft.stats import Interval, Units, bootstrap, intervals


def newcombe(x1, n1, x2, n2, level=0.95):
    """The difference of two rates from their Wilson intervals, as an audit makes it (method 10)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = np.divide(x1, n1), np.divide(x2, n2)
    return intervals.difference(first, intervals.wilson(x1, n1, level), second, intervals.wilson(x2, n2, level))


# Newcombe 1998, Statistics in Medicine 17, 873-890, table II: methods 6 (Miettinen-Nurminen) and 10.
NEWCOMBE_1998 = [
    ((56, 70, 48, 80), (0.0528, 0.3382), (0.0524, 0.3339)),
    ((9, 10, 3, 10), (0.1700, 0.8406), (0.1705, 0.8090)),
    ((6, 7, 2, 7), (0.0342, 0.8534), (0.0582, 0.8062)),
    ((5, 56, 0, 29), (-0.0326, 0.1933), (-0.0381, 0.1926)),
    ((0, 10, 0, 20), (-0.1658, 0.2844), (-0.1611, 0.2775)),
    ((0, 10, 0, 10), (-0.2879, 0.2879), (-0.2775, 0.2775)),
    ((10, 10, 0, 20), (0.7156, 1.0000), (0.6791, 1.0000)),
    ((10, 10, 0, 10), (0.6636, 1.0000), (0.6075, 1.0000)),
]
# 113 patients with subarachnoid haemorrhage (Turck et al. 2010, doi:10.1007/s00134-009-1641-y): 41 of poor
# outcome, then 72 of good; their WFNS grade, and the rank of their S100b.
WFNS = "32455552521254425552525245441442255225555" + (
    "111151221221112121134141551124112212122111121211324214115422111312244111"
)
S100B = [
    14,
    10,
    20,
    13,
    37,
    43,
    41,
    4,
    30,
    8,
    4,
    35,
    33,
    40,
    43,
    25,
    43,
    43,
    43,
    4,
    43,
    27,
    1,
    8,
    23,
    43,
    25,
    43,
    6,
    25,
    14,
    10,
    12,
    23,
    43,
    16,
    43,
    28,
    43,
    43,
    37,
    14,
    16,
    10,
    2,
    38,
    22,
    10,
    10,
    2,
    6,
    2,
    8,
    12,
    4,
    22,
    4,
    12,
    14,
    22,
    2,
    20,
    16,
    32,
    8,
    42,
    38,
    20,
    4,
    36,
    38,
    12,
    6,
    8,
    6,
    2,
    14,
    10,
    16,
    18,
    2,
    2,
    8,
    2,
    8,
    6,
    20,
    8,
    6,
    30,
    12,
    26,
    4,
    10,
    28,
    4,
    2,
    24,
    34,
    10,
    18,
    6,
    16,
    10,
    4,
    2,
    22,
    18,
    38,
    22,
    18,
    42,
    40,
]
OUTCOME = np.repeat([1, 0], [41, 72])
counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def ends(interval):
    return np.array([interval.low, interval.high], dtype=float)


# Rates


@given(counts, st.floats(0.5, 0.999))
def test_wilson_is_statsmodels_and_holds_the_rate(count, level):
    x, n = count
    low, high = intervals.wilson(x, n, level)
    theirs = proportion_confint(x, n, 1 - level, method="wilson")
    np.testing.assert_allclose((low, high), np.clip(theirs, 0, 1), atol=1e-12)
    assert 0 <= low <= x / n <= high <= 1


@given(counts, counts)
def test_newcombe_is_statsmodels(first, second):
    theirs = confint_proportions_2indep(*first, *second, method="newcomb", compare="diff")
    np.testing.assert_allclose(ends(newcombe(*first, *second)), theirs, atol=1e-12)


@pytest.mark.parametrize(("table", "score", "hybrid"), NEWCOMBE_1998)
def test_differences_of_rates_are_the_published_ones(table, score, hybrid):
    np.testing.assert_allclose(ends(intervals.miettinen_nurminen(*table)), score, atol=6e-5)
    np.testing.assert_allclose(ends(newcombe(*table)), hybrid, atol=6e-5)


@pytest.mark.parametrize("table", [(19, 22, 109, 281), (0, 30, 3, 40), (80, 80, 150, 160), (250, 300, 200, 260)])
def test_miettinen_nurminen_ends_where_the_score_test_rejects(table):
    # Not statsmodels' own: its constrained likelihood has a wrong coefficient (statsmodels issue 10269).
    x1, n1, x2, n2 = table
    for end in ends(intervals.miettinen_nurminen(*table)):
        grid = np.linspace(max(end, 0) + 1e-7, min(1 + end, 1) - 1e-7, 200_001)
        likelihood = x1 * np.log(grid) + (n1 - x1) * np.log1p(-grid)
        likelihood += x2 * np.log(grid - end) + (n2 - x2) * np.log1p(end - grid)
        p = grid[np.argmax(likelihood)]
        variance = (p * (1 - p) / n1 + (p - end) * (1 - p + end) / n2) * (n1 + n2) / (n1 + n2 - 1)
        assert abs(x1 / n1 - x2 / n2 - end) / np.sqrt(variance) == pytest.approx(norm.ppf(0.975), rel=2e-3)


@given(counts, counts)
@settings(max_examples=40)
def test_a_difference_turned_round_is_its_negative(first, second):
    for method in (newcombe, intervals.miettinen_nurminen):
        there, back = ends(method(*first, *second)), ends(method(*second, *first))
        np.testing.assert_allclose(there, -back[::-1], atol=1e-9)


@pytest.mark.parametrize(("b", "c", "n"), [(3, 1, 100), (0, 0, 50), (12, 2, 40), (0, 7, 60)])
def test_tango_ends_where_the_score_test_rejects(b, c, n):
    for end in ends(intervals.tango(b, c, n)):
        q = np.linspace(max(0, -end), (1 - end) / 2, 400_001)[1:-1]
        rest = 1 - 2 * q - end
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = np.where(b > 0, b * np.log(q + end), 0) + np.where(c > 0, c * np.log(q), 0)
            likelihood = likelihood + np.where(n - b - c > 0, (n - b - c) * np.log(rest), 0)
        best = q[np.nanargmax(np.where(rest >= 0, likelihood, -np.inf))]
        spread = np.sqrt(n * (2 * best + end - end**2))
        assert abs(b - c - n * end) / spread == pytest.approx(norm.ppf(0.975), rel=5e-3)


def test_two_models_that_never_disagree_may_still_differ():
    z2 = norm.ppf(0.975) ** 2
    np.testing.assert_allclose(ends(intervals.tango(0, 0, 90)), [-z2 / (90 + z2), z2 / (90 + z2)], atol=1e-9)


# Combinations


def test_differences_of_correlated_estimates_are_narrower():
    one = Interval(0.6, 0.8)
    apart, together = (intervals.difference(0.7, one, 0.7, one, r) for r in (0.0, 0.9))
    assert together.high - together.low < 0.4 * (apart.high - apart.low)
    np.testing.assert_allclose(ends(intervals.difference(0.7, one, 0.7, one, 1.0)), 0, atol=1e-12)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_ratio_and_its_inverse_have_inverse_ends(a, b):
    first, second = (Interval(*(x / 2, (1 + x) / 2)) for x in (a, b))
    there, back = intervals.ratio(a, first, b, second), intervals.ratio(b, second, a, first)
    assert there.low <= a / b <= there.high
    np.testing.assert_allclose(ends(there), 1 / ends(back)[::-1], rtol=1e-9)


def test_a_ratio_over_what_may_be_zero_has_no_upper_end():
    low, high = intervals.ratio(0.5, Interval(0.4, 0.6), 0.01, Interval(0.0, 0.1))
    assert high == np.inf
    assert low > 1
    assert ends(intervals.ratio(0.0, Interval(0.0, 0.1), 0.5, Interval(0.4, 0.6)))[0] == 0


def test_the_largest_difference_of_alike_groups_may_be_zero():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x = rng.binomial(200, 0.8, 4)
        i, j = np.triu_indices(4, 1)
        plain = newcombe(x[i], 200, x[j], 200)
        corrected = newcombe(x[i], 200, x[j], 200, 1 - 0.05 / 6)
        low, _ = intervals.largest(*plain, *corrected)
        covered += low <= 0
    assert covered >= 400 * 0.95


# Areas under the ROC curve


def test_delong_is_procs_published_example():
    wfns, s100b = np.array(list(WFNS), dtype=int), np.array(S100B)
    first, second = intervals.delong(wfns, OUTCOME), intervals.delong(s100b, OUTCOME)
    assert (first.value, second.value) == pytest.approx((0.823678861788618, 0.731368563685637), abs=1e-12)
    paired = intervals.delong_paired(wfns, s100b, OUTCOME)
    assert paired.value / np.sqrt(paired.variance) == pytest.approx(2.20898359144091, abs=1e-10)
    assert (paired.low, paired.high) == pytest.approx((0.0104061769564846, 0.174214419249478), abs=1e-10)
    unpaired = (first.value - second.value) / np.sqrt(first.variance + second.variance)
    assert unpaired == pytest.approx(1.43490640926908, abs=1e-10)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=40))
def test_delong_is_the_variance_of_all_pairs(rows):
    scores, targets = (np.array(column) for column in zip(*rows, strict=True))
    high, low = scores[targets], scores[~targets]
    area = intervals.delong(scores, targets)
    if min(len(high), len(low)) < 2:
        assert np.isnan(area.variance)
        return
    wins = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    assert area.value == pytest.approx(wins.mean())
    variance = wins.mean(1).var(ddof=1) / len(high) + wins.mean(0).var(ddof=1) / len(low)
    assert area.variance == pytest.approx(variance, abs=1e-12)
    assert 0 <= area.low <= area.value <= area.high <= 1


def test_delong_takes_a_quarter_of_a_million_rows():
    # All pairs of these would take 125 GB.
    rng = np.random.default_rng(0)
    targets = rng.random(250_000) < 0.5
    area = intervals.delong(rng.normal(targets, 1.0), targets)
    assert area.value == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.005)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_perfect_area_is_not_certain(value):
    targets = np.repeat([0, 1], [20, 10])
    area = intervals.delong(targets if value else -targets, targets)
    assert (area.value, area.variance) == (value, 0)
    assert 0.05 < area.high - area.low < 0.4


def test_models_that_rank_alike_are_not_certainly_alike():
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], [400, 100])
    scores = rng.normal(targets, 1.0)
    area = intervals.delong_paired(scores, np.exp(scores), targets, level=0.9)
    assert area.value == 0
    assert area.high == pytest.approx(1 - 0.05 ** (1 / 100))


def test_what_never_occurred_may_occur():
    assert (1 - intervals.never_seen(40, 0.9)) ** 40 == pytest.approx(0.05)
    assert np.isnan(intervals.never_seen(0))


def test_nothing_measured_has_no_interval():
    for interval in (
        intervals.wilson(0, 0),
        newcombe(0, 0, 3, 5),
        intervals.miettinen_nurminen(3, 5, 0, 0),
        intervals.tango(0, 0, 0),
        intervals.delong([0.1, 0.2], [1, 1])[2:],
        intervals.delong([0.1, np.nan], [0, 1])[2:],
        intervals.delong_paired([0.1, 0.2], [0.3, 0.1], [0, 0])[2:],
        intervals.ratio(np.nan, Interval(np.nan, np.nan), 0.5, Interval(0.4, 0.6)),
    ):
        assert np.isnan(np.array(interval, dtype=float)).all()


# Levels


@pytest.mark.parametrize("n", [30, 100])
def test_intervals_of_rates_cover_as_often_as_they_say(n):
    rng = np.random.default_rng(n)
    size = rng.binomial(n, 0.7, (2, 20_000))  # positives vary, which evens out the jumps of a binomial
    x1, x2 = rng.binomial(size, [[0.85], [0.75]])
    low, high = intervals.wilson(x1, size[0])
    assert 0.93 < np.mean((low <= 0.85) & (high >= 0.85)) < 0.965
    for method in (newcombe, intervals.miettinen_nurminen):
        low, high = method(x1, size[0], x2, size[1])
        assert 0.94 < np.mean((low <= 0.1) & (high >= 0.1)) < 0.965


def test_intervals_of_areas_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth, hits = norm.cdf(1.2 / np.sqrt(2)), np.zeros(3)
    targets = np.repeat([0, 1], [70, 30])
    for _ in range(1500):
        latent = rng.normal(size=(3, 100))
        one, other = latent[0] + 1.2 * targets, 0.6 * latent[0] + 0.8 * latent[1] + 1.2 * targets
        apart = latent[2] + 1.2 * targets
        first, second = intervals.delong(one, targets), intervals.delong(apart, targets)
        unpaired = intervals.difference(first.value, Interval(*first[2:]), second.value, Interval(*second[2:]))
        paired = intervals.delong_paired(one, other, targets)
        hits += [first.low <= truth <= first.high, *(area.low <= 0 <= area.high for area in (unpaired, paired))]
    assert (hits / 1500 > 0.93).all(), hits / 1500
    assert (hits / 1500 < 0.97).all(), hits / 1500


# Bootstrap

ROWS = 60
RNG = np.random.default_rng(3)
GROUPS, CLUSTERS = np.repeat([0, 1], ROWS // 2), np.repeat(np.arange(ROWS // 3), 3)
TARGETS = RNG.random(ROWS) < 0.4
SCORES = np.round(RNG.random(ROWS) * 0.6 + 0.3 * TARGETS, 1)  # with ties
ORACLES = {
    "roc_auc": (bootstrap.roc_auc, roc_auc_score),
    "average_precision": (bootstrap.average_precision, average_precision_score),
    "mean": (
        lambda scores, targets, where, units: bootstrap.mean((scores - targets) ** 2, where, units),
        lambda targets, scores: np.mean((scores - targets) ** 2),
    ),
    "quotient": (
        lambda scores, targets, where, units: bootstrap.quotient(scores >= 0.5, targets, where, units),
        lambda targets, scores: (scores >= 0.5).sum() / targets.sum(),
    ),
}


@pytest.mark.parametrize("clusters", [None, CLUSTERS], ids=["rows", "clusters"])
@pytest.mark.parametrize("name", ORACLES)
def test_a_statistic_of_counts_is_that_of_the_copied_rows(name, clusters):
    make, oracle = ORACLES[name]
    units = Units.of(clusters, strata=GROUPS)
    statistic = make(SCORES, TARGETS, bootstrap.cells(GROUPS, 2), units)
    drawn = bootstrap.draw(units, 20, np.random.default_rng(1))
    found = statistic(drawn)
    for b in range(20):
        copies = np.repeat(np.arange(ROWS), drawn[units.of_row, b].astype(int))
        for g in range(2):
            own = copies[GROUPS[copies] == g]
            assert found[g, b] == pytest.approx(oracle(TARGETS[own], SCORES[own]), abs=1e-6)
    own = [g == GROUPS for g in range(2)]
    whole = [oracle(TARGETS[rows], SCORES[rows]) for rows in own]
    np.testing.assert_allclose(bootstrap.point(statistic, units), whole, atol=1e-12)


def test_resamples_keep_clusters_whole_and_strata_at_their_size():
    units = Units.of(CLUSTERS, strata=GROUPS)
    drawn = bootstrap.draw(units, 50, np.random.default_rng(0))
    assert units.count == ROWS // 3
    for members in units.strata:
        assert (drawn[members].sum(0) == len(members)).all()
    assert drawn.max() > 1


def test_two_statistics_see_the_same_resamples():
    units = Units.of(None, strata=GROUPS)
    where = bootstrap.cells(GROUPS, 2)
    drawn = bootstrap.bootstrap(
        {"a": bootstrap.mean(SCORES, where, units), "b": bootstrap.mean(1 - SCORES, where, units)}, units, resamples=300
    )
    np.testing.assert_allclose(drawn["a"] + drawn["b"], 1, atol=1e-6)
    again = bootstrap.bootstrap({"a": bootstrap.mean(SCORES, where, units)}, units, resamples=300)
    np.testing.assert_array_equal(drawn["a"], again["a"])


def test_a_bootstrap_of_clusters_sees_that_their_rows_are_alike():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random(500) < 0.7, 4)  # the four rows of a cluster agree
    spread = []
    for clusters in (None, np.repeat(np.arange(500), 4)):
        units = Units.of(clusters, strata=np.zeros(2000))
        where = bootstrap.cells(np.zeros(2000), 1)
        spread.append(bootstrap.bootstrap({"m": bootstrap.mean(values, where, units)}, units)["m"].std())
    assert spread[1] / spread[0] == pytest.approx(2, rel=0.1)


def test_a_cell_without_positives_has_no_area():
    units = Units.of(None, strata=np.zeros(4))
    area = bootstrap.roc_auc([0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0], bootstrap.cells(np.zeros(4), 1), units)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(bootstrap.bootstrap({"a": area}, units, resamples=5)["a"]).all()
        assert np.isnan(bootstrap.point(area, units)).all()


def test_the_area_of_two_cases_has_an_interval_and_no_warning():
    low, high = intervals.auc_interval(0.5, 1e6, 1, 1, 0.95)
    assert (low, high) == (0.0, 1.0)
