"""What a person sees who types a result's name: short texts, small tables, frames and charts."""

from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

import bmft
from bmft.auditing import Predictions, audit_predictions
from bmft.comparison import Comparison
from bmft.data import from_arrays
from bmft.errors import ConfigError
from bmft.gate import check, load_policy
from bmft.methods import Outcome
from bmft.report import DebiasReport
from bmft.tables import Attribute

HOSTILE = "<script>&"
SEX = Attribute("sex", ("female", HOSTILE))
AGE = Attribute("age", ("<40", "40-60", "60+"))
POLICY = '[[check]]\nmetric = "true_positive_rate"\nsensitive = ["sex"]\nmax_difference = 0.9\n'


def predicted(n: int = 300, columns: int = 1, bias: float = 1.0, **more: object) -> Predictions:
    rng = np.random.default_rng(0)
    groups = np.stack([rng.integers(-1, 2, n), rng.integers(0, 3, n)], axis=1)
    targets = (rng.random((n, columns)) < 0.4).astype(int)
    logits = 2 * targets - 1 + rng.normal(0, 1, (n, columns)) + bias * groups[:, :1]
    return Predictions(1 / (1 + np.exp(-logits)), targets, groups, (SEX, AGE), **more)


def several() -> Predictions:
    return predicted(columns=3, task="multilabel", classes=("a", "b", "c"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> dict[str, object]:
    before, after = (audit_predictions(predicted(bias=bias), resamples=50) for bias in (1.0, 0.2))
    history = [
        {"step": 0, "gap": 0.3, "roc_auc": 0.9, "eligible": True, "chosen": False},
        {"step": 1, "epoch": 1, "gap": 0.2, "roc_auc": 0.89, "eligible": True, "chosen": True},
        {"step": 1, "epoch": 2, "gap": 0.1, "roc_auc": 0.5, "eligible": False, "chosen": False},
    ]
    report = DebiasReport("bmft", True, "it is the best", before, after, "test", history=history)
    one = nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 1))
    two = {name: tensor + 1 for name, tensor in one.state_dict().items()}
    mask = bmft.WeightMask.by_name(one, "1.*")
    patch = bmft.WeightPatch.between(one.state_dict(), two)
    policy = tmp_path_factory.mktemp("policy") / "fairness.toml"
    policy.write_text(POLICY)
    inputs = torch.arange(1200.0).reshape(300, 4)
    data = from_arrays(inputs, np.arange(300) % 2, np.arange(300) // 150, attributes=(SEX,))
    return {
        "audit": before,
        "outcome": Outcome(one, mask, patch, report),
        "report": report,
        "verdict": check(before, load_policy(policy)),
        "mask": mask,
        "patch": patch,
        "predictions": predicted(),
        "data": data,
        "comparison": comparison(),
    }


def comparison() -> Comparison:
    def figures(gap: float, auc: float) -> dict[str, object]:
        return {"gap": {"value": gap, "interval": [0.0, 0.5]}, "roc_auc": {"value": auc, "interval": [0.7, 1.0]}}

    trials = [
        {
            "method": method,
            "seed": seed,
            "accepted": True,
            "harm": [],
            "select": {"gap": gap},
            "before": figures(0.4, 0.9),
            "after": figures(gap + 0.01 * seed, auc),
            "change": figures(-0.1, 0.0),
            "leakage": {},
            "evaluations": {},
            "moved": 0.1,
            "image_passes": 10,
            "wall_seconds": 1.0,
            "evaluated_on": "test",
            "n": 100,
        }
        for method, gap, auc in (("bmft", 0.1, 0.9), ("rw", 0.3, 0.8))
        for seed in (0, 1)
    ]
    budget = {"epochs": [1, 1], "tuning": 1, "seeds": 2}
    return Comparison(tuple(trials), budget, bmft.Limits(), {}, {}, ("sex",))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


NAMES = ["audit", "outcome", "report", "verdict", "mask", "patch", "predictions", "data", "comparison"]


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_a_repr_is_one_short_line(shown, name):
    text = repr(shown[name])
    assert len(text) <= 400
    assert "\n" not in text
    assert not {"tensor(", "array(", "Estimate"} & set(text.split())


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_s_table_is_well_formed_and_small_and_holds_no_tag_of_a_name(shown, name):
    html = shown[name]._repr_html_()
    parser = Tags()
    parser.feed(html)
    assert not parser.open
    assert set(parser.seen) <= {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert "td" in parser.seen
    assert len(html) < 8000


def test_the_reprs_hold_the_figures(shown):
    audit = shown["audit"]
    gap = audit.gaps["sex"]["equalized_odds_difference"]
    assert f"{gap:.3f}" in repr(audit)
    assert f"{gap:.3f}" in repr(shown["outcome"])
    assert "accepted" in repr(shown["outcome"])
    assert "PASS" in repr(shown["verdict"])
    assert "301 of 120,601 weights" in repr(shown["mask"])
    assert "120,601 values in 4 tensors" in repr(shown["patch"])
    assert "n=300" in repr(shown["predictions"])


def test_names_of_a_thousand_classes_do_not_make_a_repr_long():
    names = tuple(f"class number {i}" for i in range(1000))
    data = from_arrays(torch.zeros(1000, 2), np.arange(1000), np.arange(1000) % 2, classes=names)
    assert len(repr(data)) < 300
    assert len(data._repr_html_()) < 8000


def test_a_frame_has_each_figure_of_the_audit_once(shown):
    audit = shown["audit"]
    frame = audit.to_frame()
    assert list(frame.columns) == ["attribute", "group", "metric", "value", "low", "high", "n"]
    assert not frame.duplicated(["attribute", "group", "metric"]).any()
    by = frame.set_index(["attribute", "group", "metric"])
    for attribute, groups in audit.by_group.items():
        for group, figures in groups.items():
            row = by.loc[(attribute, group, "roc_auc")]
            assert row["value"] == figures["roc_auc"]
            assert [row["low"], row["high"]] == audit.intervals["by_group"][attribute][group]["roc_auc"]
            assert row["n"] == figures["n"]
    assert by.loc[("", "", "accuracy"), "value"] == audit.overall["accuracy"]
    assert by.loc[("age", "", "roc_auc_difference"), "value"] == audit.gaps["age"]["roc_auc_difference"]


def test_a_frame_s_auc_is_scikit_learn_s():
    predictions = predicted()
    frame = audit_predictions(predictions, intervals=False).to_frame()
    own = predictions.groups[:, 1] == 2
    row = frame[(frame.attribute == "age") & (frame.group == "60+") & (frame.metric == "roc_auc")].iloc[0]
    assert row.value == pytest.approx(roc_auc_score(predictions.targets[own, 0], predictions.scores[own, 0]))
    assert np.isnan(row.low)
    assert row.n == own.sum()


def test_a_frame_of_several_labels_has_each_of_them_and_their_mean_and_worst():
    frame = audit_predictions(several(), intervals=False).to_frame()
    assert set(frame.output) == {"", "worst", "a", "b", "c"}
    own = frame[(frame.attribute == "age") & (frame.group == "<40") & (frame.metric == "roc_auc")].set_index("output")
    assert own.value[""] == pytest.approx(own.value[["a", "b", "c"]].mean())
    assert own.value["worst"] == own.value[["a", "b", "c"]].min()


def test_a_report_s_frame_is_that_of_both_audits(shown):
    frame = shown["outcome"].to_frame()
    assert list(frame.columns[:1]) == ["side"]
    after = frame[frame.side == "after"].drop(columns="side").reset_index(drop=True)
    assert after.equals(shown["report"].after.to_frame())


def test_a_verdict_s_frame_has_a_row_per_check(shown):
    frame = shown["verdict"].to_frame()
    assert frame[["check", "attribute", "metric", "decision"]].values.tolist() == [
        ["true_positive_rate/sex", "sex", "true_positive_rate", "pass"]
    ]
    assert (frame.low <= frame.value).all()


def test_a_comparison_s_frame_has_a_row_per_method_and_figure(shown):
    frame = shown["comparison"].to_frame().set_index(["method", "metric"])
    assert frame.loc[("bmft", "gap"), "value"] == pytest.approx(0.105)
    assert frame.loc[("bmft", "gap"), "n"] == 2
    assert frame.loc[("untouched", "roc_auc"), "value"] == 0.9


def test_the_forest_of_an_audit_has_its_groups_at_their_values(shown):
    axes = shown["audit"].plot("roc_auc", attribute="age")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["<40", "40-60", "60+"]
    points = [line.get_xdata()[0] for line in axes.get_lines()]
    assert points == [figures["roc_auc"] for figures in shown["audit"].by_group["age"].values()]


def test_a_forest_of_two_audits_is_told_apart_in_its_legend(shown):
    axes = shown["audit"].plot(after=shown["report"].after)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before", "after"]
    assert axes.get_yticklabels()[0].get_text() == "sex: Equalized odds"


def test_the_roc_curve_is_scikit_learn_s():
    predictions = predicted(60)
    axes = predictions.plot("roc", attribute="sex")
    own = predictions.groups[:, 0] == 0
    fpr, tpr, _ = roc_curve(predictions.targets[own, 0], predictions.scores[own, 0], drop_intermediate=False)
    line = axes.get_lines()[1]
    np.testing.assert_allclose((line.get_xdata(), line.get_ydata()), (fpr, tpr))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(SEX.groups)


def test_a_reliability_curve_takes_the_label_that_is_named():
    axes = several().plot("reliability", attribute="age", output="c")
    assert axes.get_ylabel() == "Observed share"
    assert len(axes.get_lines()) == 4


@pytest.mark.parametrize(
    "ask",
    [
        lambda shown: shown["audit"].plot("auc"),
        lambda shown: shown["audit"].plot(attribute="Sex"),
        lambda shown: shown["predictions"].plot("pr"),
        lambda shown: shown["predictions"].plot(attribute="race"),
        lambda shown: shown["predictions"].plot(output="malignant"),
    ],
)
def test_a_plot_of_what_is_not_there_names_what_is(shown, ask):
    with pytest.raises(ConfigError, match="unknown"):
        ask(shown)
    assert not pyplot.get_fignums()


def test_the_trade_off_rings_the_chosen_epoch(shown):
    axes = shown["outcome"].plot()
    assert [text.get_text() for text in axes.texts] == ["chosen"]
    assert axes.texts[0].xy == (0.2, 0.89)


def test_the_trade_off_of_methods_has_a_number_for_each(shown):
    axes = shown["comparison"].plot()
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]


def test_axes_that_are_given_are_drawn_on_and_no_figure_is_made(shown):
    figure = matplotlib.figure.Figure()
    axes = figure.add_subplot()
    assert shown["audit"].plot(ax=axes) is axes
    assert shown["predictions"].plot(ax=axes) is axes
    assert shown["report"].plot(ax=axes) is axes
    assert not pyplot.get_fignums()


def test_a_group_s_dollar_signs_are_no_formula_and_the_user_s_settings_stay(shown):
    odd = replace(predicted(), attributes=(Attribute("sex", ("$5k$", "$\\frac$")), AGE))
    before = dict(matplotlib.rcParams)
    axes = audit_predictions(odd, intervals=False).plot("accuracy")
    axes.figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before
