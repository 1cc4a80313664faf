import numpy as np
import pytest
import torch
from torch import nn

from bmft.data import from_arrays
from bmft.inference import Leakage, attribute_leakage, compared_leakage


def features(n=200, shift=1.5, groups=2, seed=0):
    random = np.random.default_rng(seed)
    group = random.integers(0, groups, n)
    x = random.normal(size=(n, 3))
    x[:, 0] += shift * group
    return torch.tensor(x, dtype=torch.float32), torch.tensor(group)


def head():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_a_planted_attribute_is_read_about_as_well_as_its_shift_allows():
    x, group = features()
    found = attribute_leakage(head(), from_arrays(x, [0, 1] * 100, group))["group"]
    # Two normals 1.5 apart: AUC = Phi(1.5 / sqrt 2) = 0.856.
    assert found.roc_auc == pytest.approx(0.856, abs=0.06)
    assert found.low < found.roc_auc < found.high


def test_an_attribute_that_is_not_there_is_not_found():
    x, group = features(n=400, shift=0.0)
    assert attribute_leakage(head(), from_arrays(x, [0, 1] * 200, group))["group"].roc_auc < 0.6


def test_patients_are_not_read_instead_of_the_attribute():
    # Every patient's images are alike and the attribute is random per patient.
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(30), 10)
    x = torch.tensor(random.normal(size=(30, 40))[patient], dtype=torch.float32)
    group = random.integers(0, 2, 30)[patient]
    torch.manual_seed(0)
    model = nn.Linear(40, 1)
    labels = [0, 1] * 150
    apart = attribute_leakage(model, from_arrays(x, labels, group, clusters=patient))["group"].roc_auc
    mixed = attribute_leakage(model, from_arrays(x, labels, group))["group"].roc_auc
    assert mixed > 0.9
    assert apart < 0.8


def test_three_groups_have_a_mean_and_no_interval_and_unknown_ones_are_left_out():
    x, group = features(n=300, groups=3)
    group[:30] = -1
    found = attribute_leakage(head(), from_arrays(x, [0, 1] * 150, group))["group"]
    assert 0.75 < found.roc_auc < 1
    assert found.interval is None


def test_one_group_cannot_be_read():
    x, _ = features()
    assert np.isnan(attribute_leakage(head(), from_arrays(x, [0, 1] * 100, [0] * 200))["group"].roc_auc)


def test_the_model_is_left_as_it_was():
    x, group = features()
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 1)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attribute_leakage(model, from_arrays(x, [0, 1] * 100, group))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_both_sides_as_the_report_has_them():
    found = compared_leakage({"sex": Leakage(0.7, 0.6, 0.8)}, {"sex": Leakage(0.6)})
    assert found == {"sex": {"before": 0.7, "after": 0.6, "before_interval": [0.6, 0.8], "after_interval": None}}
