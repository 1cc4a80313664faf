"""Of several labels some are not known: each is measured, trained and decided on the rows that have it."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score
from torch import nn

from bmft import fairness
from bmft.auditing import GOALS, Predictions, audit_predictions, pick_threshold, read_predictions
from bmft.data import as_grouped, from_arrays
from bmft.errors import DataError
from bmft.gate import check, parse_policy
from bmft.inference import audit, predict
from bmft.masks import weight_importance
from bmft.methods import debias
from bmft.report import write_report
from bmft.report.changes import paired_changes
from bmft.tables import Attribute
from bmft.training import Loss, PooledLoss
from tests.tiers import in_ci

SEX = Attribute("sex", ("f", "m"))
LABELS = ("edema", "fracture", "nodule")


def partly_known(n=240, seed=0):
    """Inputs, targets ``(n, 3)`` of which a third are -1, and groups; every row has a label."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(n) % 2
    inputs = torch.randn(n, 6, generator=generator)
    noise = torch.randn(n, 3, generator=generator)
    targets = (inputs[:, :3] + noise + 0.5 * groups[:, None] > 0).long()
    targets[torch.rand(n, 3, generator=generator) < 1 / 3] = -1
    targets[(targets < 0).all(1), 0] = 1
    return inputs, targets, groups


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def data(seed=0, n=240):
    inputs, targets, groups = partly_known(n, seed)
    return from_arrays(inputs, targets, groups, attributes={"sex": SEX.groups}, classes=LABELS)


def spoken(seed=0, n=240, clusters=None):
    """Predictions with the same gaps in the labels."""
    _, targets, groups = partly_known(n)
    scores = np.random.default_rng(seed).beta(1 + (targets == 1), 1 + (targets == 0))
    return Predictions(scores, targets, groups, (SEX,), "multilabel", LABELS, clusters)


def kept(predictions, k):
    """One label on the rows that have it, as a binary one."""
    rows = predictions.targets[:, k] >= 0
    return Predictions(
        predictions.scores[rows, k],
        predictions.targets[rows, k],
        predictions.groups[rows],
        predictions.attributes,
        clusters=None if predictions.clusters is None else predictions.clusters[rows],
    )


# ---- measured


def test_every_labels_figures_are_scikit_learns_on_the_rows_that_have_it():
    predictions = spoken()
    report = audit_predictions(predictions, intervals=False)
    for g, group in enumerate(SEX.groups):
        for k, label in enumerate(LABELS):
            rows = (predictions.targets[:, k] >= 0) & (predictions.groups[:, 0] == g)
            y, scores = predictions.targets[rows, k], predictions.scores[rows, k]
            found = report.by_group["sex"][group]["by_class"][label]
            assert (found["n"], found["n_positive"]) == (rows.sum(), y.sum())
            assert found["roc_auc"] == pytest.approx(roc_auc_score(y, scores))
            assert found["average_precision"] == pytest.approx(average_precision_score(y, scores))
            assert found["true_positive_rate"] == pytest.approx(recall_score(y, scores >= 0.5))
            assert found["false_positive_rate"] == pytest.approx(1 - recall_score(y, scores >= 0.5, pos_label=0))
            assert found["brier_score"] == pytest.approx(np.mean((y - scores) ** 2))


def test_every_labels_gaps_and_closed_intervals_are_those_of_the_rows_kept_by_hand():
    predictions = spoken()
    report = audit_predictions(predictions, resamples=50)
    for k, label in enumerate(LABELS):
        alone = audit_predictions(kept(predictions, k), resamples=50)
        assert report.gaps["sex"]["by_class"][label] == pytest.approx(alone.gaps["sex"])
        for group in SEX.groups:
            found = report.intervals["by_group"]["sex"][group]["by_class"][label]
            for name in ("true_positive_rate", "false_positive_rate", "roc_auc", "selection_rate", "f1"):
                assert found[name] == pytest.approx(alone.intervals["by_group"]["sex"][group][name])


def test_bootstrap_intervals_with_patients_are_near_those_of_the_rows_kept_by_hand():
    predictions = spoken(n=240, clusters=np.arange(240) // 4)
    report = audit_predictions(predictions, resamples=2000)
    for k, label in enumerate(LABELS):
        alone = audit_predictions(kept(predictions, k), resamples=2000)
        for group in SEX.groups:
            found = report.intervals["by_group"]["sex"][group]["by_class"][label]
            for name in ("true_positive_rate", "roc_auc", "brier_score"):
                assert found[name] == pytest.approx(alone.intervals["by_group"]["sex"][group][name], abs=0.02)


def test_an_audit_does_not_look_at_the_scores_of_labels_that_are_not_known():
    predictions = spoken()
    other = np.where(predictions.targets < 0, 1 - predictions.scores, predictions.scores)
    changed = Predictions(other, predictions.targets, predictions.groups, (SEX,), "multilabel", LABELS)
    first, second = (audit_predictions(one, resamples=50).to_dict() for one in (predictions, changed))
    assert first == second


def test_nan_is_a_label_that_is_not_known_too():
    known = spoken()
    targets = np.where(known.targets < 0, np.nan, known.targets)
    same = Predictions(known.scores, targets, known.groups, (SEX,), "multilabel", LABELS)
    assert np.array_equal(same.targets, known.targets)


def test_only_several_labels_may_be_partly_known():
    with pytest.raises(DataError, match="other than 0 and 1"):
        Predictions([0.1, 0.2], [0, np.nan], [0, 1], (SEX,))
    with pytest.raises(DataError, match=r"-1 \(first: rows 1\)|other than 0 and 1"):
        Predictions([0.1, 0.2], [0, -1], [0, 1], (SEX,))
    with pytest.raises(DataError, match="first: rows 1"):
        Predictions([[0.1, 0.9], [0.2, 0.8]], [[0, 1], [-1, -1]], [0, 1], (SEX,), "multiclass", ("a", "b"))


def test_a_picked_threshold_and_the_loss_of_a_group_are_those_of_the_known_labels():
    predictions = spoken()
    threshold = pick_threshold(predictions)
    columns = [kept(predictions, k) for k in range(3)]

    def balanced(cut):
        return np.mean([[np.mean((c.scores[:, 0] >= cut)[c.targets[:, 0] == p] == p) for p in (0, 1)] for c in columns])

    assert balanced(threshold) == pytest.approx(max(balanced(cut) for cut in np.linspace(0.02, 0.98, 400)), abs=0.004)
    losses = -np.log(np.where(predictions.targets == 1, predictions.scores, 1 - predictions.scores))
    rows = np.where(predictions.targets >= 0, losses, np.nan)
    worst = max(np.nanmean(rows[predictions.groups[:, 0] == g], axis=1).mean() for g in (0, 1))
    assert GOALS["largest_group_loss"].of(audit_predictions(predictions, intervals=False)) == pytest.approx(worst)


def test_the_largest_group_loss_of_several_classes_is_of_the_true_class():
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.5, 0.25, 0.25]])
    predictions = Predictions(scores, np.array([0, 1, 2, 1]), [0, 0, 1, 1], (SEX,), "multiclass", ("a", "b", "c"))
    report = audit_predictions(predictions, intervals=False)
    assert GOALS["largest_group_loss"].of(report) == pytest.approx(-np.log([0.4, 0.25]).mean())


def test_a_table_of_predictions_may_lack_labels(tmp_path):
    predictions = spoken()
    columns = {f"y_score_{name}": predictions.scores[:, k] for k, name in enumerate(LABELS)}
    for k, name in enumerate(LABELS):
        marks = np.where(np.arange(240) % 2, "-1", "")
        columns[f"y_true_{name}"] = np.where(predictions.targets[:, k] < 0, marks, predictions.targets[:, k])
    sex = np.array(SEX.groups)[predictions.groups[:, 0]]
    pd.DataFrame(columns | {"sex": sex}).to_csv(tmp_path / "p.csv", index=False)
    read = read_predictions(tmp_path / "p.csv", sensitive="sex")
    assert np.array_equal(read.targets, predictions.targets)
    ours, theirs = (audit_predictions(one, intervals=False) for one in (read, predictions))
    assert ours.by_group == theirs.by_group
    said = [one.value.split(":")[0] for one in read.assumed if one.subject != "classes"]
    assert said == [f"y_true_{name}" for name in LABELS]


def test_binary_predictions_without_a_label_are_left_out_and_counted(tmp_path):
    frame = pd.DataFrame({"y_true": ["0", "1", "-1", "", "1", "0"], "y_score": [0.1, 0.9, 0.5, 0.5, 0.8, 0.3]})
    frame.assign(sex=list("fmfmfm")).to_csv(tmp_path / "p.csv", index=False)
    read = read_predictions(tmp_path / "p.csv", sensitive="sex")
    assert read.rows.tolist() == [0, 1, 4, 5]
    assert [one.value for one in read.assumed if one.subject == "unknown"] == [
        "y_true: 2 rows without a label (-1: 1, blank: 1)"
    ]
    positive = read_predictions(tmp_path / "p.csv", sensitive="sex", uncertain="positive", blank="negative")
    assert positive.targets[:, 0].tolist() == [0, 1, 1, 0, 1, 0]


# ---- decided and reported


@pytest.mark.parametrize("metric", ["roc_auc", "true_positive_rate", "brier_score"])
def test_a_gate_decides_each_label_on_the_rows_that_have_it(metric):
    predictions = spoken()
    rule = f'check = [{{metric = "{metric}", sensitive = ["sex"], max_difference = 0.3}}]'
    for k, label in enumerate(LABELS):
        policy = parse_policy(f"{rule}\n[gate]\nmin_positives = 5\nresamples = 200")
        (whole,) = [one for one in check(predictions, policy).checks if one.id.endswith(f"/{label}")]
        (alone,) = check(kept(predictions, k), policy).checks
        assert (whole.decision, whole.estimate) == (alone.decision, pytest.approx(alone.estimate))
        assert whole.interval == pytest.approx(alone.interval, abs=0.02)


def test_a_change_between_two_models_is_that_of_the_rows_that_have_the_label():
    before, after = spoken(0), spoken(1)
    found = paired_changes(before, after, 0.5)
    for key, measure in (("true_positive_rate", "recall"), ("roc_auc", "area")):
        changes = []
        for k in range(3):
            old, new = kept(before, k), kept(after, k)
            rows = old.groups[:, 0] == 1
            y = old.targets[rows, 0]
            if measure == "recall":
                values = [recall_score(y, one.scores[rows, 0] >= 0.5) for one in (new, old)]
            else:
                values = [roc_auc_score(y, one.scores[rows, 0]) for one in (new, old)]
            changes.append(values[0] - values[1])
        assert found["sex", "m", key].value == pytest.approx(np.mean(changes))


def test_a_report_on_partly_known_labels_is_written(tmp_path):
    page = write_report(audit_predictions(spoken(), resamples=50), tmp_path)
    assert "fracture" in page.read_text()


# ---- trained


def test_the_loss_is_that_of_the_known_labels():
    grouped, net = data(), network()
    logits = net(grouped.inputs(slice(None))).detach().requires_grad_()
    loss = PooledLoss(Loss(fairness.equalized_odds_gap, task_weight=1.0, bias_weight=0.0, balance="none"), grouped,
                      logits, True)  # fmt: skip
    value = loss(logits, torch.arange(len(grouped)))
    rows = []
    for z, y in zip(logits, grouped.targets, strict=True):
        known = [nn.functional.binary_cross_entropy_with_logits(a, b.float()) for a, b in zip(z, y, strict=True)
                 if b >= 0]  # fmt: skip
        rows.append(torch.stack(known).mean())
    assert torch.allclose(value, torch.stack(rows).mean())


@pytest.mark.parametrize("name", sorted(fairness.OBJECTIVES))
@pytest.mark.parametrize("whole_set", [True, False])
def test_nothing_pulls_at_an_answer_whose_label_is_not_known(name, whole_set):
    grouped, net = data(), network()
    logits = net(grouped.inputs(slice(None))).detach().requires_grad_()
    loss = Loss(fairness.OBJECTIVES[name], task_weight=1.0, bias_weight=1.0, balance="cell", whole_set=whole_set)
    value = PooledLoss(loss, grouped, logits.detach().clone(), True)(logits, torch.arange(len(grouped)))
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient[grouped.targets < 0].any()
    assert gradient[grouped.targets >= 0].abs().sum() > 0


@pytest.mark.parametrize("name", sorted(fairness.OBJECTIVES))
def test_an_objective_is_the_mean_over_labels_of_the_rows_kept_by_hand(name):
    predictions, objective = spoken(), fairness.OBJECTIVES[name]
    scores, targets = torch.from_numpy(predictions.scores), torch.from_numpy(predictions.targets)
    groups = torch.from_numpy(predictions.groups[:, 0])
    by_hand = []
    for k in range(3):
        rows = targets[:, k] >= 0
        if name == "worst_group_loss":  # averages the labels first
            by_hand.append([float(objective(scores[rows & (groups == g), k], targets[rows & (groups == g), k],
                                            groups[rows & (groups == g)])) for g in (0, 1)])  # fmt: skip
        else:
            by_hand.append(float(objective(scores[rows, k], targets[rows, k], groups[rows])))
    expected = np.mean(by_hand, axis=0).max() if name == "worst_group_loss" else np.mean(by_hand)
    assert float(objective(scores, targets, groups)) == pytest.approx(expected)


def test_importance_is_autograds_on_the_rows_kept_by_hand():
    grouped, net = data(), network()
    found = weight_importance(net, fairness.equalized_odds_gap, grouped, score="saliency", multi_label=True)
    scores = torch.sigmoid(net(grouped.inputs(slice(None))))
    gaps = [
        fairness.equalized_odds_gap(scores[rows, k], grouped.targets[rows, k], grouped.groups[rows, 0])
        for k, rows in enumerate((grouped.targets >= 0).T)
    ]
    torch.stack(gaps).mean().backward()
    for name, parameter in net.named_parameters():
        assert torch.allclose(found[name], parameter.grad.abs(), atol=1e-6)


@pytest.mark.parametrize("method", ["bmft", "dfr", *in_ci("rw", "group_dro", "fairprune")])
def test_a_method_works_where_labels_are_partly_known(method):
    fit, select = data(1), data(2)
    few = {"epochs": 1} if method in ("bmft", "rw", "group_dro") else None
    outcome = debias(network(), fit, select, method=method, config=few, multi_label=True)
    assert outcome.before.by_group["sex"]["f"]["by_class"]["edema"]["n"] < (select.groups == 0).sum()
    assert outcome.report.history


# ---- arrays and loaders


def test_samples_without_a_label_are_left_out_of_arrays_and_loaders():
    inputs, groups = torch.arange(12.0).reshape(6, 2), [0, 1, 0, 1, 0, 1]
    targets = torch.tensor([0.0, 1.0, float("nan"), -1.0, 1.0, 0.0])
    whole = from_arrays(inputs, targets, groups, clusters=list("aabbcc"))
    assert whole.rows.tolist() == [0, 1, 4, 5]
    assert whole.patients.tolist() == list("aacc")
    assert torch.equal(whole.inputs(slice(None)), inputs[[0, 1, 4, 5]])
    assert "2 samples without a label are left out" in [one.value for one in whole.assumed]
    read = as_grouped([(inputs, targets, torch.tensor(groups))])
    assert torch.equal(read.targets, whole.targets)
    report = audit(nn.Linear(2, 1), read, intervals=False)
    assert report.n == 4
    assert report.assumed["unknown"][0]["value"] == "2 samples without a label are left out"


def test_what_is_not_known_is_part_of_what_the_data_are():
    inputs, targets, groups = partly_known(20)
    filled = from_arrays(inputs, targets.clamp(min=0), groups)
    assert from_arrays(inputs, targets, groups).content_hash != filled.content_hash
    again = from_arrays(inputs.flip(0), targets.flip(0), groups.flip(0))
    assert from_arrays(inputs, targets, groups).content_hash == again.content_hash


def test_predictions_keep_what_is_not_known():
    grouped = data()
    assert np.array_equal(predict(network(), grouped).targets, grouped.targets.numpy())
