"""What to expect of debiasing from so many rows: read off a measured curve, and off a gap's standard error."""

import json
from pathlib import Path

import numpy as np
import pytest

import bmft.gate
from bmft.errors import ConfigError
from bmft.gate import plan_debias

ROOT = Path(__file__).parents[2]


def row(attribute, cell, reduction, words, larger=0.0, spread=0.02, choose="in proportion"):
    return {
        "attribute": attribute,
        "fit_rows": 10 * cell,
        "smallest_cell": cell,
        "rows_to_choose": choose,
        "cuts": [0, 1],
        "divisions": 40,
        "accepted": words[0] + words[1],
        "words": dict(zip(("shown", "likely", "none"), words, strict=True)),
        "before": 0.2,
        "reduction": reduction,
        "reduction_sd": spread,
        "larger_gap": larger,
    }


MADE_UP = {
    "data": "made up",
    "model": "none",
    "commit": "abc1234",
    "curve": [
        row("age", 80, 0.08, (1.0, 0.0, 0.0), choose="all"),
        row("age", 20, 0.06, (1.0, 0.0, 0.0), choose="all"),
        row("age", 20, 0.02, (0.25, 0.5, 0.25), larger=0.25),
        row("sex", 50, 0.05, (0.0, 1.0, 0.0)),
    ],
}


def only(per_cell, attribute="age"):
    return {one.attribute: one for one in plan_debias(per_cell, study=MADE_UP).expected}.get(attribute)


def test_a_measured_size_is_told_as_it_was_measured():
    found = only(20)
    assert found.between == (20, 20)
    assert (found.removed, found.accepted, found.larger) == (pytest.approx(0.1), 0.75, 0.25)
    assert (found.trainings, found.divisions) == (2, 40)
    assert found.words == {"shown": 0.25, "likely": 0.5, "none": 0.25}
    assert found.spread == pytest.approx(0.02 / 0.2)


def test_between_two_sizes_every_doubling_counts_the_same():
    found = only(40)
    assert found.between == (20, 80)
    assert found.removed == pytest.approx((0.1 + 0.4) / 2)
    assert found.words["shown"] == pytest.approx((0.25 + 1) / 2)


@pytest.mark.parametrize("per_cell", [1, 19, 81, 10_000])
def test_outside_the_measured_range_nothing_is_expected(per_cell):
    found = plan_debias(per_cell, study=MADE_UP)
    assert "age" not in {one.attribute for one in found.expected}
    assert found.ranges == {"age": (20, 80), "sex": (50, 50)}


def test_the_standard_errors_are_those_of_drawn_rates():
    n, rate, changed, draws = 60, 0.8, 0.1, 40_000
    random = np.random.default_rng(0)
    rates = random.binomial(n, rate, (draws, 4)) / n
    gaps = ((rates[:, 0] - rates[:, 1]) + (rates[:, 2] - rates[:, 3])) / 2
    flips = random.multinomial(n, [changed / 2, changed / 2, 1 - changed], (draws, 4))
    moves = (flips[..., 0] - flips[..., 1]) / n
    change = ((moves[:, 0] - moves[:, 1]) + (moves[:, 2] - moves[:, 3])) / 2
    found = plan_debias(n, rate=rate, changed=changed, study=MADE_UP)
    assert found.gap_error == pytest.approx(gaps.std(), rel=0.02)
    assert found.change_error == pytest.approx(change.std(), rel=0.02)


def test_so_many_rows_show_the_reduction_with_a_power_of_eight_in_ten():
    found = plan_debias(100, reduction=0.06, changed=0.1, study=MADE_UP)
    error = np.sqrt(0.1 / found.rows_to_show)
    estimates = np.random.default_rng(0).normal(0.06, error, 20_000)
    assert (estimates > 1.2816 * error).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("wrong", [{"reduction": 0}, {"rate": 1}, {"changed": 0}, {"confidence": 0.5}, {"per_cell": 0}])
def test_a_value_out_of_range_is_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        plan_debias(**{"per_cell": 10, **wrong})


def test_what_comes_with_the_package_is_what_the_benchmark_wrote():
    shipped = Path(bmft.gate.__file__).with_name("small_sets.json")
    written = ROOT / "benchmarks/results/small_sets.json"
    if written.exists():
        assert json.loads(shipped.read_text()) == json.loads(written.read_text())
    else:
        assert json.loads(shipped.read_text())["curve"] == []
