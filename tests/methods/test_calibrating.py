"""Calibrating a debiased model: its head alone changes, its ranking and its decisions stay, its threshold moves."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import nn
from torch.nn.utils import parametrizations

import bmft
from bmft.auditing import audit_predictions
from bmft.data import from_arrays
from bmft.errors import ConfigError
from bmft.methods.calibrating import _between
from bmft.models import copied, reading_of
from tests.methods import test_one_output as many
from tests.methods.test_baselines import QUICK, people, sets, trained
from tests.tiers import in_ci

CALIBRATION = "expected_calibration_error"


@cache
def sure(outputs=1, classes=2):
    """A model that is three times as certain as it should be."""
    model = trained(outputs, classes)
    with torch.no_grad():
        model[2].weight.mul_(3)
        model[2].bias.mul_(3).add_(0.0 if classes > 2 else torch.tensor([0.0, 1.0])[-outputs:])
    return model


def debiased(model, calibrate, data=None, **options):
    fit, select = data or sets()
    options = {"keep": "last", "config": QUICK, "device": "cpu", "intervals": False, **options}
    return bmft.debias(model, fit, select, calibrate=calibrate, **options)


@cache
def pair(outputs=1, classes=2):
    return tuple(debiased(sure(outputs, classes), calibrate, sets(classes)) for calibrate in (False, True))


@pytest.mark.parametrize("outputs", [2, *in_ci(1)])
def test_ranking_and_decisions_stay_to_the_last_tie_and_probabilities_are_nearer_the_truth(outputs):
    plain, calibrated = pair(outputs)
    (old, new), at = ([one.after.predictions for one in (plain, calibrated)], calibrated.after.threshold)
    assert (rankdata(old.scores[:, 0]) == rankdata(new.scores[:, 0])).all()
    assert (old.decisions(0.5) == new.decisions(at)).all()
    assert at != 0.5
    assert calibrated.after.overall["roc_auc"] == plain.after.overall["roc_auc"]
    assert calibrated.after.overall["brier_score"] < plain.after.overall["brier_score"] - 0.01
    for group, figures in plain.after.by_group["group"].items():
        assert calibrated.after.by_group["group"][group][CALIBRATION] < figures[CALIBRATION]


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_logits_are_those_divided_by_the_temperature_and_shifted(outputs):
    plain, calibrated = pair(outputs)
    found, x = calibrated.report.calibration, people(seed=9)[0]
    with torch.no_grad():
        old, new = plain.model(x), calibrated.model(x)
    if outputs == 2:
        old, new = old[:, 1] - old[:, 0], new[:, 1] - new[:, 0]
    torch.testing.assert_close(new, old / found["temperature"] + found["shift"])


def test_nothing_but_the_head_differs_from_the_run_without_it():
    plain, calibrated = pair()
    moved = [k for k, v in plain.model.state_dict().items() if not torch.equal(v, calibrated.model.state_dict()[k])]
    assert moved == ["2.weight", "2.bias"]
    assert all(bool(calibrated.mask.tensors[name].all()) for name in moved)
    applied = calibrated.patch.apply(sure().state_dict())
    assert all(torch.equal(applied[name], value) for name, value in calibrated.model.state_dict().items())


def test_the_threshold_is_named_by_the_report_the_patch_and_the_model_itself():
    calibrated = pair()[1]
    at = calibrated.after.threshold
    assert len(f"{at:g}") <= 6
    assert calibrated.patch.recipe["threshold"] == calibrated.report.calibration["threshold"] == at
    assert calibrated.report.to_dict()["calibration"]["threshold_before"] == 0.5
    assert reading_of(calibrated.model).threshold == at
    select = sets()[1]
    assert bmft.audit(calibrated.model, select, intervals=False).threshold == at
    assert bmft.audit(copy.deepcopy(calibrated.model), select, threshold=0.5, intervals=False).threshold == 0.5
    assert bmft.audit(sure(), select, intervals=False).threshold == 0.5


def test_debiasing_a_calibrated_model_again_starts_from_its_threshold():
    calibrated = pair()[1]
    again = debiased(calibrated.model, False)
    assert again.before.threshold == again.after.threshold == calibrated.after.threshold
    assert again.patch.recipe["threshold"] == calibrated.after.threshold


def test_without_a_test_split_the_reported_calibration_is_of_rows_left_out_of_the_fit():
    calibrated = pair()[1]
    own = audit_predictions(calibrated.after.predictions, threshold=calibrated.after.threshold, intervals=False)
    shown, fitted = calibrated.after.by_group["group"]["0"], own.by_group["group"]["0"]
    assert shown["brier_score"] != fitted["brier_score"]
    assert {k: v for k, v in shown.items() if k not in ("brier_score", CALIBRATION)} == {
        k: v for k, v in fitted.items() if k not in ("brier_score", CALIBRATION)
    }


def test_with_a_test_split_the_reported_calibration_is_of_the_model_that_is_given_back():
    x, label, group = people(n=480)
    parts = from_arrays(x, label, group).split(0.4, 0.3, 0.3, seed=0)
    calibrated = debiased(sure(), True, parts[:2], test=parts[2])
    own = bmft.audit(calibrated.model, parts[2], intervals=False)
    assert calibrated.after.overall == own.overall
    assert calibrated.after.by_group == own.by_group


def test_of_three_classes_a_temperature_alone_is_folded_in_and_no_decision_moves():
    plain, calibrated = pair(3, 3)
    found = calibrated.report.calibration
    assert found["temperature"] > 1.5
    assert (found["shift"], found["threshold"]) == (0, None)
    assert "threshold" not in calibrated.patch.recipe
    old, new = (one.after.predictions.decisions() for one in (plain, calibrated))
    assert (old == new).all()
    assert calibrated.after.overall["brier_score"] < plain.after.overall["brier_score"]


@pytest.mark.parametrize("kind", ["label", *in_ci("class")])
def test_of_one_output_of_many_only_its_row_of_the_head_changes(kind):
    (model, plain), (_, calibrated) = (many.run("bmft", kind, calibrate=calibrate) for calibrate in (False, True))
    assert many.moved_rows(model, calibrated)[0] == [many.MEANT]
    old, new = (one.after.predictions for one in (plain, calibrated))
    assert (rankdata(old.scores[:, 0]) == rankdata(new.scores[:, 0])).all()
    cuts = plain.after.threshold, calibrated.after.threshold
    assert (old.decisions(cuts[0]) == new.decisions(cuts[1])).all()
    # One class against all others keeps its ranking under a shift only.
    assert (calibrated.report.calibration["temperature"] == 1) == (kind == "class")


def test_a_model_with_the_positive_class_first_is_calibrated_for_that_class():
    x, label, group = people()
    first = replace(from_arrays(x, label, group), outputs_reversed=True).split(0.5, 0.5, seed=0)
    model = copied(sure(2))
    with torch.no_grad():
        for parameter in (model[2].weight, model[2].bias):
            parameter.copy_(parameter.flip(0))
    calibrated = debiased(model, True, first)
    own = bmft.audit(calibrated.model, first[1], intervals=False)
    assert own.threshold == calibrated.after.threshold == pair(2)[1].after.threshold
    assert own.by_group["group"]["1"]["true_positive_rate"] == pytest.approx(
        calibrated.after.by_group["group"]["1"]["true_positive_rate"]
    )


def test_half_precision_weights_keep_ranking_and_decisions():
    model = copied(sure()).half()
    plain, calibrated = (debiased(model, calibrate) for calibrate in (False, True))
    assert calibrated.model[2].weight.dtype == torch.float16
    old, new = (one.after.predictions for one in (plain, calibrated))
    assert (old.decisions(0.5) == new.decisions(calibrated.after.threshold)).all()
    assert (rankdata(old.scores[:, 0]) == rankdata(new.scores[:, 0])).mean() > 0.95
    assert (calibrated.report.calibration["reordered"] == 0) == bool(
        (rankdata(old.scores[:, 0]) == rankdata(new.scores[:, 0])).all()
    )


def test_what_does_not_help_on_rows_left_out_changes_nothing_and_says_so():
    model = trained()
    x, _, group = people()
    noise = torch.randint(2, (len(x),), generator=torch.Generator().manual_seed(1))
    fit, select = from_arrays(x, noise, group).split(0.5, 0.5, seed=0)
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
        model[2].bias.zero_()
        model[2].bias.add_(float(torch.logit(select.targets.double().mean())) + 1e-4)
    options = {"method": "threshold", "config": {}, "threshold": float(select.targets.double().mean())}
    outcome = debiased(model, True, (fit, select), **options)
    assert outcome.report.calibration is None
    assert "--calibrate changed nothing: on rows left out of it the log loss would go from" in outcome.reason
    assert outcome.after.threshold == outcome.before.threshold


class Wrapped(nn.Module):
    """A head whose output is not the logits."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return 2.0 * self.fc(self.body(x).relu())


class Tied(nn.Module):
    """A head whose weights another layer has, too."""

    def __init__(self):
        super().__init__()
        self.gate, self.fc = nn.Linear(4, 1), nn.Linear(4, 1)
        self.fc.weight = self.gate.weight

    def forward(self, x):
        return self.fc(x * self.gate(x).sigmoid())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1, bias=False)), "'2' has no bias"),
        (lambda: nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 1, 1)), "'1' is a Conv2d"),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), parametrizations.weight_norm(nn.Linear(6, 1))),
            "the logits are made by",
        ),
        (Wrapped, "the logits are not what 'fc' gives"),
        (Tied, "the weights of 'fc' are another layer's, too"),
    ],
)
def test_a_head_that_cannot_be_calibrated_is_refused_before_anything_is_trained(model, why):
    torch.manual_seed(0)
    with pytest.raises(
        ConfigError, match="--calibrate folds a temperature and a shift into a head of one linear"
    ) as said:
        debiased(model().eval(), True)
    assert why in str(said.value)
    assert "--head" in str(said.value)


def test_several_labels_are_refused():
    x, label, group = people()
    labels = torch.stack([label, (x[:, 2] > 0).long()], 1)
    data = from_arrays(x, labels, group, task="multilabel").split(0.5, 0.5, seed=0)
    with pytest.raises(ConfigError, match="--calibrate moves the threshold, which several labels share"):
        debiased(trained(2), True, data, multi_label=True)


def test_a_threshold_lies_between_what_is_called_and_what_is_not():
    random = np.random.default_rng(0)
    for _ in range(200):
        scores = random.random(30)
        cut = random.random()
        found = _between(scores, scores >= cut, min(max(cut + random.normal(0, 1e-3), 1e-6), 1 - 1e-6))
        assert ((scores >= found) == (scores >= cut)).all()
