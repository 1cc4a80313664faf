"""One output of many is debiased alone: only its row of the head moves, and the others are held and limited."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import bmft
from bmft.auditing import pick_threshold
from bmft.data import from_arrays
from bmft.errors import ConfigError
from bmft.methods import METHODS, installed_methods
from bmft.models import copied
from tests.tiers import in_ci

pytestmark = pytest.mark.usefixtures("few_steps")

OUTPUTS, MEANT = 4, 1
QUICK = {"epochs": (2, 1), "batch_size": 64, "path": 1.0}


def people(seed, n=400, agreement=0.5):
    """Four findings, each in readings of its own; group 1's readings of finding 1 are shifted upwards."""
    generator = torch.Generator().manual_seed(seed)
    group = (torch.rand(n, generator=generator) < 0.5).long()
    labels = (torch.rand(n, OUTPUTS, generator=generator) < 0.4).long()
    labels[:, MEANT] = torch.where(torch.rand(n, generator=generator) < agreement, group, 1 - group)
    x = torch.randn(n, 6, generator=generator)
    x[:, :OUTPUTS] += 1.5 * labels
    x[:, 5] += 2.0 * group
    return x, labels, group


@cache
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, OUTPUTS))
    x, labels, _ = people(0, 1200, 0.9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(x), labels.float()).backward()
        optimizer.step()
    return model.eval()


@cache
def sets():
    return tuple(from_arrays(x, labels[:, MEANT], group) for x, labels, group in map(people, (1, 2)))


def run(method="bmft", kind="label", config=None, **options):
    model = bmft.read_as(copied(trained()), output=MEANT, output_is=kind)
    fit, select = sets()
    threshold = pick_threshold(bmft.predict(model, select))
    config = METHODS[method].reading({**QUICK, **(config or {})})
    options = {"keep": "last", "threshold": threshold, "intervals": False, "device": "cpu", **options}
    return model, bmft.debias(model, fit, select, method=method, config=config, **options)


def moved_rows(model, outcome):
    """Rows of the head that differ in a bit, those of the mask, and those of the patch's two sides."""
    old, new, mask = model.state_dict(), outcome.model.state_dict(), outcome.mask.tensors
    moved = (old["4.weight"] != new["4.weight"]).any(1) | (old["4.bias"] != new["4.bias"])
    allowed = (mask["4.weight"] > 0).any(1) | (mask["4.bias"] > 0)
    return moved.nonzero().flatten().tolist(), allowed.nonzero().flatten().tolist()


@pytest.mark.parametrize("kind", ["label", *in_ci("class")])
@pytest.mark.parametrize("method", installed_methods())
def test_only_the_row_of_the_output_moves_whatever_the_method(method, kind):
    if (method, kind) == ("dfr", "class"):
        pytest.skip("refused, see below")
    model, outcome = run(method, kind)
    moved, allowed = moved_rows(model, outcome)
    assert set(moved) <= {MEANT}
    assert set(allowed) == ({MEANT} if method != "fairprune" else set())
    for name, after in outcome.model.state_dict().items():
        outside = outcome.mask.tensors[name] == 0
        assert torch.equal(after[outside], model.state_dict()[name][outside]), name
    assert outcome.patch.moved > 0


def test_a_logit_of_its_own_cannot_be_written_for_a_class_of_a_softmax():
    with pytest.raises(ConfigError, match="read as one class against all others"):
        run("dfr", "class")


@pytest.mark.parametrize("method", ["head", "dfr", "threshold"])
def test_where_only_the_head_moves_the_others_stay_to_the_last_bit(method):
    _, outcome = run(method)
    for found in outcome.report.other_outputs.values():
        assert [one.largest for one in found.values()] == [0.0] * (OUTPUTS - 1)


@pytest.mark.parametrize("kind", ["label", "class"])
def test_how_far_the_others_moved_is_that_of_plain_torch(kind):
    model, outcome = run(kind=kind)
    others = [k for k in range(OUTPUTS) if k != MEANT]
    for name, data in zip(("fit", "select"), sets(), strict=True):
        with torch.no_grad():
            inputs = data.inputs(slice(None))
            logits = [one(inputs)[:, others].double() for one in (model, outcome.model)]
        old, new = (z.sigmoid() if kind == "label" else z.softmax(1) for z in logits)
        change = (new - old).abs()
        found = outcome.report.other_outputs[name]
        assert list(found) == [f"output {k}" for k in others]
        assert [one.mean for one in found.values()] == pytest.approx(change.mean(0).tolist(), abs=1e-6)
        assert [one.largest for one in found.values()] == pytest.approx(change.amax(0).tolist(), abs=1e-6)
        seen = (old * change).sum(0) / old.sum(0)
        rest = ((1 - old) * change).sum(0) / (1 - old).sum(0)
        assert [one.drift for one in found.values()] == pytest.approx(torch.maximum(seen, rest).tolist(), abs=1e-6)


@pytest.mark.parametrize("method", ["bmft", "rwreg", "group_dro"])
def test_the_term_in_the_loss_holds_the_others(method):
    drifts = []
    for weight in (0.0, 30.0):
        _, outcome = run(method, config={"others_weight": weight, "epochs": (4, 1)})
        drifts.append(max(one.drift for one in outcome.report.other_outputs["select"].values()))
    assert drifts[1] < 0.8 * drifts[0]


def test_a_candidate_that_lets_another_output_drift_too_far_is_refused():
    _, outcome = run(keep="best", max_auc_drop=1.0, max_group_auc_drop=1.0, max_calibration_rise=1.0)
    drifts = {name: max(one.drift for one in found.values()) for name, found in outcome.report.other_outputs.items()}
    assert outcome.accepted
    assert max(drifts.values()) <= 0.05
    loose = {"max_auc_drop": 1.0, "max_group_auc_drop": 1.0, "max_calibration_rise": 1.0}
    _, strict = run(keep="best", max_other_drift=1e-7, config={"others_weight": 0.0}, **loose)
    assert not strict.accepted
    assert "drift of another output" in strict.reason
    assert all(one.harm for one in strict.report.history[1:])


def test_what_is_accepted_breaks_no_limit_on_either_set():
    loose = {"max_auc_drop": 1.0, "max_group_auc_drop": 1.0, "max_calibration_rise": 1.0}
    for limit in (0.01, 0.03):
        _, outcome = run(keep="best", max_other_drift=limit, config={"others_weight": 3.0}, **loose)
        found = [one.drift for drifts in outcome.report.other_outputs.values() for one in drifts.values()]
        assert max(found) <= limit + 1e-6


def test_the_same_run_of_the_output_by_its_name_gives_the_same_weights():
    model, outcome = run()
    named = bmft.read_as(copied(trained()), output=" B ", output_is="label", names="abcd")
    fit, select = sets()
    again = bmft.debias(
        named,
        fit,
        select,
        config=QUICK,
        keep="last",
        device="cpu",
        intervals=False,
        threshold=outcome.report.config["threshold"],
    )
    assert all(torch.equal(a, b) for a, b in zip(outcome.model.parameters(), again.model.parameters(), strict=True))
    assert list(again.report.other_outputs["fit"]) == ["a", "c", "d"]
    assert copy.deepcopy(model.state_dict()).keys() == outcome.model.state_dict().keys()


def test_the_gap_is_that_of_the_output_alone():
    model, outcome = run()
    _, select = sets()
    threshold = outcome.report.config["threshold"]
    for side, network in ((outcome.before, model), (outcome.after, outcome.model)):
        with torch.no_grad():
            decided = network(select.inputs(slice(None)))[:, MEANT].sigmoid().numpy() >= threshold
        y, group = select.targets.numpy(), select.groups[:, 0].numpy()
        rates = [[decided[(y == label) & (group == g)].mean() for g in (0, 1)] for label in (0, 1)]
        expected = max(np.ptp(pair) for pair in rates)
        assert side.gaps["group"]["equalized_odds_difference"] == pytest.approx(expected)
