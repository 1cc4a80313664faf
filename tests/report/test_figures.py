"""Charts: valid, small, coloured by the page, and true to their numbers."""

import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import auc, roc_auc_score, roc_curve

from bmft.auditing.charts import Curve, Estimate, ForestRow, Point
from bmft.report import figures
from bmft.report.svg import Caption
from bmft.stats import reliability_bins, roc_points

CAPTION = Caption("some-chart", "A title", "What it shows: 0.5.")
NOTHING = Estimate(float("nan"))
LABELS = ["female", "<script>&\"'", "$x^2$", "皮肤类型", "a very long name of a group indeed", ""]


def charts(labels: list[str], caption: Caption = CAPTION) -> dict[str, str]:
    rows = [ForestRow(label, Estimate(0.5, 0.4, 0.6), Estimate(0.6, 0.5, 0.7)) for label in labels]
    line = np.linspace(0, 1, 30)
    curves = [Curve(label, line, line**0.5, line * 0.9, np.minimum(line * 1.1, 1)) for label in labels]
    points = [Point(0.1 * i, 0.9 - 0.01 * i, label, i % 2 == 0, i == 1) for i, label in enumerate(labels)]
    values = np.linspace(0, 1, len(labels))
    return {
        "forest": figures.forest(rows, caption, labels=("Before", "After")),
        "unit_square": figures.unit_square(curves, caption, x="x", y="y"),
        "tradeoff": figures.tradeoff(points, caption, x="gap", y="AUC"),
        "bars": figures.bars(labels, list(values), caption, x="share"),
        "grid": figures.grid(np.outer(values, values), labels, labels, caption),
        "trials": figures.trials(values, np.maximum.accumulate(values), caption, y="AUC"),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return charts(LABELS)


def test_every_chart_is_valid_xml_with_role_title_and_description(drawn):
    for name, svg in drawn.items():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img", name
        assert [root.find(part).text for part in ("title", "desc")] == ["A title", "What it shows: 0.5."]
        assert root.get("aria-labelledby") == "some-chart-title some-chart-desc"


def test_labels_are_shown_as_they_are(drawn):
    for name in ("forest", "unit_square", "tradeoff", "bars", "grid"):
        shown = {element.text for element in ElementTree.fromstring(drawn[name]).iter() if element.tag == "text"}
        assert {"female", "<script>&\"'", "$x^2$", "皮肤类型"} <= shown, name
        assert any("…" in text for text in shown if text), name


def test_every_colour_is_the_page_s(drawn):
    for name, svg in drawn.items():
        painted = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
        assert all(paint == "none" or paint.startswith("var(--") for paint in painted), (name, painted)


def test_two_charts_share_no_id(drawn):
    other = charts(LABELS, Caption("another-chart", "A title", "Words."))
    for name, svg in drawn.items():
        ids = set(re.findall(r'id="([^"]+)"', svg))
        assert ids
        assert ids.isdisjoint(re.findall(r'id="([^"]+)"', other[name]))


def test_the_same_chart_is_the_same_bytes(drawn):
    assert charts(LABELS) == drawn


def test_letters_matplotlib_has_no_glyph_for_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        charts(["皮肤类型", "🙂"])


def test_what_cannot_be_measured_is_said_in_the_forest():
    rows = [ForestRow("male", NOTHING, Estimate(0.4, 0.3, 0.5))]
    svg = figures.forest(rows, CAPTION, labels=("Before", "After"))
    assert svg.count("not measurable") == 1
    assert "nan" not in svg.lower()


def test_nothing_measurable_is_still_a_chart():
    rows = [ForestRow("male", NOTHING), ForestRow("female", NOTHING)]
    assert figures.forest(rows, CAPTION, labels=("Value", "")).count("not measurable") == 2
    empty = np.empty(0)
    assert figures.unit_square([Curve("male", empty, empty)], CAPTION, x="x", y="y").startswith("<svg")


def test_eight_curves_of_twenty_thousand_rows_stay_small():
    rng = np.random.default_rng(0)
    curves = []
    for group in range(8):
        targets = rng.integers(0, 2, 20_000)
        curves.append(Curve(f"group {group}", *roc_points(targets + rng.normal(size=20_000), targets)))
    assert len(figures.unit_square(curves, CAPTION, x="x", y="y")) < 60_000


def test_the_forest_puts_a_larger_value_further_right():
    rows = [ForestRow("low", Estimate(0.2, 0.1, 0.3)), ForestRow("high", Estimate(0.8, 0.7, 0.9))]
    svg = figures.forest(rows, CAPTION, labels=("Value", ""))
    low, high = (float(x) for x in re.findall(r'<use href="#some-chart-[^"]+" x="([\d.]+)"', svg))
    assert low < high


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([5, 60, 3000]), st.booleans())
def test_a_thinned_roc_curve_keeps_the_ends_the_order_and_the_area(seed, n, tied):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, n)
    scores = targets + rng.normal(size=n)
    scores = scores.round(1) if tied else scores
    fpr, tpr = roc_points(scores, targets)
    if len(np.unique(targets)) < 2:
        assert len(fpr) == 0
        return
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    assert len(fpr) <= 101
    assert auc(fpr, tpr) == pytest.approx(roc_auc_score(targets, scores), abs=0.005)


def test_a_short_roc_curve_has_scikit_learn_s_points():
    rng = np.random.default_rng(1)
    targets, scores = rng.integers(0, 2, 40), rng.normal(size=40).round(1)
    fpr, tpr, _ = roc_curve(targets, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc_points(scores, targets), (fpr, tpr))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 40))
def test_reliability_bins_count_every_sample_once(seed, n):
    rng = np.random.default_rng(seed)
    targets, scores = rng.integers(0, 2, n), rng.random(n)
    mean, positives, size = reliability_bins(scores, targets).T
    assert size.sum() == n
    assert positives.sum() == targets.sum()
    assert (np.diff(mean) >= 0).all()
    assert (mean * size).sum() == pytest.approx(scores.sum())
