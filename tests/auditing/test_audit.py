"""The audit as a whole: what it says, that it says it about the right rows, and that it survives a file."""

import json
import math
import time

import numpy as np
import pytest
import torch
from fairlearn.metrics import MetricFrame, equalized_odds_difference
from hypothesis import given, settings, strategies as st
from sklearn.metrics import recall_score, roc_auc_score
from torch import nn

from bmft.auditing import CONSTANT, AuditReport, Predictions
from bmft.data import from_arrays
from bmft.errors import CheckpointError, ConfigError, DataError
from bmft.inference import audit
from bmft.tables import Attribute

SEX, AGE = Attribute("sex", ("female", "male")), Attribute("age", ("<40", "40-60", "60+"))


def make(n=200, seed=0, unknown=True):
    random = np.random.default_rng(seed)
    targets = (random.random(n) < 0.4).astype(int)
    scores = 1 / (1 + np.exp(-random.normal(size=n) - 1.5 * targets + 0.75))
    first = -1 if unknown else 0
    groups = np.stack([random.integers(first, 2, n), random.integers(first, 3, n)], 1)
    return Predictions(scores, targets, groups, (SEX, AGE))


def numbers(value, path=()):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, (*path, name))
    else:
        yield path, value


def same(first, second, tolerance=1e-12):
    ours, theirs = dict(numbers(first)), dict(numbers(second))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        own = value if path[0] == "assumed" else pytest.approx(value, abs=tolerance, nan_ok=True)
        assert theirs[path] == own, path


def test_the_report_has_the_contracts_keys():
    report = audit(make(), resamples=50).to_dict()
    assert list(report)[:7] == ["schema", "n", "unknown", "overall", "by_group", "gaps", "intervals"]
    assert report["schema"] == 1
    assert report["n"] == 200
    assert report["unknown"].keys() == report["by_group"].keys() == report["gaps"].keys() == {"sex", "age"}
    assert {"roc_auc", "accuracy"} <= report["overall"].keys()
    assert list(report["by_group"]["sex"]) == ["female", "male"]
    group = {"n", "n_positive", "roc_auc", "true_positive_rate", "false_positive_rate", "selection_rate"}
    assert group <= report["by_group"]["sex"]["male"].keys()
    gaps = {f"{x}_difference" for x in ("equalized_odds", "true_positive_rate", "false_positive_rate")}
    gaps |= {"demographic_parity_difference", "roc_auc_difference"}
    assert gaps <= report["gaps"]["sex"].keys()
    assert all(len(ends) == 2 for _, ends in numbers(report["intervals"]))


def test_figures_agree_with_scikit_learn_and_fairlearn_on_the_rows_of_known_group():
    found = make()
    report = audit(found, intervals=False)
    for place, attribute in enumerate(found.attributes):
        ids = found.groups[:, place]
        known = ids >= 0
        y, s, d = found.targets[known, 0], found.scores[known, 0], found.decisions()[known, 0]
        names = np.array(attribute.groups)[ids[known]]
        frame = MetricFrame(metrics=recall_score, y_true=y, y_pred=d, sensitive_features=names)
        for name in attribute.groups:
            own = report.by_group[attribute.name][name]
            assert own["true_positive_rate"] == pytest.approx(frame.by_group[name])
            assert own["roc_auc"] == pytest.approx(roc_auc_score(y[names == name], s[names == name]))
            assert own["n"] == (names == name).sum()
            assert own["n_positive"] == y[names == name].sum()
        odds = equalized_odds_difference(y, d, sensitive_features=names)
        assert report.gaps[attribute.name]["equalized_odds_difference"] == pytest.approx(odds)
        assert report.unknown[attribute.name] == (~known).sum()
    assert report.overall["roc_auc"] == pytest.approx(roc_auc_score(found.targets[:, 0], found.scores[:, 0]))
    assert report.overall["n"] == 200


def test_metrics_are_of_pooled_predictions_not_means_over_batches():
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 1), torch.randn(64, 3)
    data = from_arrays(inputs, (inputs[:, 0] > 0).long(), torch.arange(64) % 2, attributes=["sex"])
    reports = [audit(model, data, batch_size=size, intervals=False) for size in (4, 64)]
    same(reports[0].to_dict(), reports[1].to_dict(), 1e-6)


@given(seed=st.integers(0, 10**6), order=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_rows_does_not_matter(seed, order):
    found = make(60, seed)
    rows = list(range(60))
    order.shuffle(rows)
    mixed = Predictions(found.scores[rows], found.targets[rows], found.groups[rows], found.attributes)
    same(audit(found, intervals=False).to_dict(), audit(mixed, intervals=False).to_dict())


@given(seed=st.integers(0, 10**6), ids=st.permutations(range(3)))
@settings(max_examples=30, deadline=None)
def test_renaming_the_groups_renames_their_figures_and_keeps_the_gaps(seed, ids):
    found = make(60, seed)
    age = found.groups[:, 1]
    renamed = np.stack([found.groups[:, 0], np.where(age < 0, -1, np.array(ids)[age])], 1)
    names = tuple(AGE.groups[ids.index(g)] for g in range(3))
    other = Predictions(found.scores, found.targets, renamed, (SEX, Attribute("age", names)))
    first, second = (audit(one, intervals=False) for one in (found, other))
    for name in AGE.groups:
        same(first.by_group["age"][name], second.by_group["age"][name])
    same(first.gaps, second.gaps)
    same(first.overall, second.overall)


@given(seed=st.integers(0, 10**6), more=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_rows_of_unknown_group_change_no_figure_of_a_group(seed, more):
    found, extra = make(60, seed), make(more, seed + 1)
    longer = Predictions(
        np.concatenate([found.scores, extra.scores]),
        np.concatenate([found.targets, extra.targets]),
        np.concatenate([found.groups, np.full((more, 2), -1)]),
        found.attributes,
    )
    first, second = (audit(one, intervals=False) for one in (found, longer))
    same(first.by_group, second.by_group)
    same(first.gaps, second.gaps)
    assert second.unknown == {name: count + more for name, count in first.unknown.items()}
    assert second.n == first.n + more


@given(seed=st.integers(0, 10**6), times=st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_every_row_several_times_keeps_every_figure_but_the_counts(seed, times):
    found = make(60, seed)
    parts = (np.tile(part, (times, 1)) for part in (found.scores, found.targets, found.groups))
    repeated = Predictions(*parts, found.attributes)
    first, second = (audit(one, intervals=False) for one in (found, repeated))
    for path, value in numbers({"overall": first.overall, "by_group": first.by_group, "gaps": first.gaps}):
        other = getattr(second, path[0])
        for name in path[1:]:
            other = other[name]
        factor = times if path[-1] in ("n", "n_positive") else 1
        assert other == pytest.approx(factor * value, nan_ok=True), path


def test_an_audit_survives_a_file():
    report = audit(make(30), resamples=20)
    text = json.dumps(report.to_dict(), allow_nan=False)
    back = AuditReport.from_dict(json.loads(text))
    assert back.to_dict() == report.to_dict()
    assert back.predictions is None
    assert back.classes == report.classes


def test_what_cannot_be_measured_is_null_in_the_file_and_nan_when_read():
    found = Predictions([0.9, 0.2, 0.7], [1, 0, 0], [0, 0, 1], (Attribute("a", ("x", "y", "nobody")),))
    values = json.loads(json.dumps(audit(found, resamples=20).to_dict(), allow_nan=False))
    assert values["by_group"]["a"]["y"]["true_positive_rate"] is None
    assert values["by_group"]["a"]["y"]["f1"] is None
    assert values["by_group"]["a"]["nobody"]["n"] == 0
    assert values["by_group"]["a"]["nobody"]["accuracy"] is None
    assert values["gaps"]["a"]["equalized_odds_difference"] is None
    assert values["intervals"]["by_group"]["a"]["y"]["true_positive_rate"] == [None, None]
    assert math.isnan(AuditReport.from_dict(values).by_group["a"]["y"]["true_positive_rate"])


@pytest.mark.parametrize(
    ("change", "says"),
    [({"schema": 2}, "schema is 2"), ({"schema": None}, "schema is None"), ({"gaps": ...}, "no gaps")],
)
def test_a_file_of_another_kind_is_refused(change, says):
    values = {**audit(make(30), intervals=False).to_dict(), **change}
    with pytest.raises(DataError, match=says):
        AuditReport.from_dict({name: value for name, value in values.items() if value is not ...})


def test_without_intervals_their_tables_are_there_and_empty():
    report = audit(make(), intervals=False)
    assert report.intervals["overall"] == {}
    assert report.intervals["by_group"]["sex"] == {"female": {}, "male": {}}
    assert report.intervals["gaps"] == {"sex": {}, "age": {}}


def test_an_audit_without_intervals_is_quick_enough_for_every_epoch():
    found = make(1600)
    audit(found, intervals=False)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        audit(found, intervals=False)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.03


@pytest.mark.parametrize(
    ("scores", "threshold"), [(np.full(8, 0.3), 0.5), (np.linspace(0.6, 0.9, 8), 0.5), (np.full(8, 0.7), 0.2)]
)
def test_a_constant_predictor_is_flagged(scores, threshold):
    found = Predictions(scores, [0, 1] * 4, [0, 0, 1, 1] * 2, (SEX,))
    report = audit(found, threshold=threshold, intervals=False)
    assert report.flags == (CONSTANT,)
    assert report.gaps["sex"]["equalized_odds_difference"] == 0  # which is why it has to be


def test_a_group_whose_decisions_are_all_the_same_is_noted():
    scores = [0.1, 0.2, 0.3, 0.4, 0.1, 0.9, 0.2, 0.8]
    found = Predictions(scores, [0, 1] * 4, [0] * 4 + [1] * 4, (SEX,))
    assert audit(found, intervals=False).flags == ("sex=female: every decision is the same",)


def test_a_group_with_one_label_only_may_rightly_have_one_decision():
    found = Predictions([0.1, 0.2, 0.1, 0.9], [0, 0, 0, 1], [0, 0, 1, 1], (SEX,))
    assert audit(found, intervals=False).flags == ()


def test_a_class_that_is_never_predicted_is_noted_and_a_constant_class_flagged():
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1]])
    options = {"groups": [0, 0, 1, 1], "attributes": (SEX,), "task": "multiclass", "classes": ("a", "b", "c")}
    never = audit(Predictions(scores, [0, 1, 0, 2], **options), intervals=False)
    assert never.flags == ("c: every decision is the same",)
    always = audit(Predictions(scores[[0, 2, 0, 2]], [0, 1, 0, 2], **options), intervals=False)
    assert always.flags == (CONSTANT,)


def test_several_classes_come_with_their_mean_the_worst_and_each():
    random = np.random.default_rng(0)
    scores, targets = random.dirichlet([1, 1, 1], 90), random.integers(0, 3, 90)
    found = Predictions(scores, targets, random.integers(0, 2, 90), (SEX,), task="multiclass", classes=("a", "b", "c"))
    report = audit(found, intervals=False)
    male = report.by_group["sex"]["male"]
    own = found.groups[:, 0] == 1
    assert male["accuracy"] == pytest.approx((scores.argmax(1) == targets)[own].mean())
    assert male["n_positive"] == np.bincount(targets[own]).min()
    assert list(male["by_class"]) == ["a", "b", "c"]
    each = [male["by_class"][c]["roc_auc"] for c in "abc"]
    assert male["roc_auc"] == pytest.approx(np.mean(each))
    assert male["worst_class"]["roc_auc"] == min(each)
    gaps = report.gaps["sex"]
    assert gaps["roc_auc_difference"] == pytest.approx(
        np.mean([gaps["by_class"][c]["roc_auc_difference"] for c in "abc"])
    )


def test_the_threshold_decides_who_is_positive():
    found = make()
    low, high = (audit(found, threshold=t, intervals=False).overall["selection_rate"] for t in (0.3, 0.7))
    assert low > high
    assert audit(found, threshold=0.3, intervals=False).threshold == 0.3


def test_an_intersection_is_an_attribute_like_any_other():
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    groups = torch.stack([torch.arange(40) % 2, torch.arange(40) // 20], 1)
    data = from_arrays(
        inputs, torch.arange(40) % 3 // 2, groups, attributes={"sex": ("f", "m"), "age": ("y", "o")}
    ).with_attributes("sex*age")
    report = audit(nn.Linear(3, 1), data, intervals=False)
    assert sum(group["n"] for group in report.by_group["sex*age"].values()) == 40
    assert len(report.by_group["sex*age"]) == 4


def test_the_hash_of_the_data_goes_with_the_report():
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    data = from_arrays(inputs, [0, 1] * 4, [0, 0, 1, 1] * 2, attributes=["sex"])
    assert audit(nn.Linear(3, 1), data, intervals=False).content_hash == data.content_hash


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda p: audit(p, threshold=0.0), ConfigError, "threshold is 0.0"),
        (lambda p: audit(p, threshold=math.nan), ConfigError, "threshold is nan"),
        (lambda p: audit(p, level=95), ConfigError, "level is 95"),
        (lambda p: audit(p, [1]), ConfigError, "predictions were given"),
        (lambda p: audit(p, batch_size=3), ConfigError, "predictions were given"),
        (lambda p: audit(nn.Linear(3, 1)), ConfigError, "without data"),
        (lambda p: audit(Predictions(*(np.empty((0, 1)),) * 3, (SEX,))), DataError, "no sample"),
    ],
)
def test_a_call_that_cannot_be_answered_is_an_error(call, error, says):
    with pytest.raises(error, match=says):
        call(make(20))


class Squashed(nn.Linear):
    def forward(self, inputs):
        return torch.sigmoid(super().forward(inputs))


def test_a_model_that_gives_probabilities_is_not_audited_without_a_word():
    data = from_arrays(torch.randn(8, 3), [0, 1] * 4, [0, 0, 1, 1] * 2)
    with pytest.raises(CheckpointError, match="--answer-is"):
        audit(Squashed(3, 1), data)
