"""A training that diverges goes back to the last good epoch, and what was found before is kept."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from bmft.data import from_arrays
from bmft.errors import NonFiniteError
from bmft.fairness import equalized_odds_gap
from bmft.masks import WeightMask
from bmft.methods import debias
from bmft.training import Loss, Step, loop, tune
from bmft.training.passes import take_gradient
from tests.tiers import in_ci
from tests.training.test_resume import Killed, network, patients, run, same


@pytest.fixture
def cliff(monkeypatch):
    """Makes the loss of a training no number once its weights are longer than so much; a line search sees nothing."""

    def at(length, of=None):
        def checked(model, chosen, *rest):
            if chosen.vector.norm() > length and of in (None, len(chosen.vector)):
                raise NonFiniteError("the loss is nan")
            return take_gradient(model, chosen, *rest)

        monkeypatch.setattr(loop, "take_gradient", checked)

    return at


def images(n=64):
    labels = torch.arange(n) % 2
    inputs = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)) + labels[:, None]
    return from_arrays(inputs, labels, (torch.arange(n) // 2) % 2)


def trained(step, network=None, objective=equalized_odds_gap):
    torch.manual_seed(0)
    network, told, losses = network or nn.Linear(4, 1), [], []
    loss, mask = Loss(objective, bias_weight=0.1, task_weight=1.0), WeightMask.by_name(network)
    generator = torch.Generator().manual_seed(0)
    try:
        tune(
            network,
            images(),
            loss,
            mask,
            step,
            generator=generator,
            remark=told.append,
            after_epoch=lambda epoch, value: losses.append((epoch, value)),
        )
    finally:
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    return network, told, losses


def test_a_rate_that_was_found_becomes_a_third_where_it_proves_too_large(cliff):
    cliff(3.0)
    _, told, losses = trained(Step(6, 0.0, trust=30.0, momentum=0.0, batch_size=16))
    assert [epoch for epoch, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert told
    assert all("taken back" in line for line in told)
    rates = [float(line.split("rate ")[1].split(":")[0]) for line in told]
    assert rates == pytest.approx([rates[0] / 3**k for k in range(len(rates))], rel=0.05)


def test_a_rate_that_was_asked_for_stays_and_the_training_ends_with_the_last_good_epoch(cliff):
    cliff(1.5)
    whole, told, losses = trained(Step(60, 0.05))
    assert 0 < len(losses) < 60
    assert told == [
        f"in epoch {len(losses) + 1} the training diverged at the learning rate 0.05: "
        f"ended with epoch {len(losses)}; a lower --lr goes on"
    ]
    shorter, none, _ = trained(Step(len(losses), 0.05))
    assert not none
    assert torch.equal(whole.weight, shorter.weight)


def test_where_no_epoch_was_good_it_is_an_error_and_nothing_has_moved(cliff):
    cliff(0.0)
    torch.manual_seed(0)
    start = nn.Linear(4, 1)
    moving = copy.deepcopy(start)
    for step in (Step(3, 0.1), Step(3, 0.0)):
        with pytest.raises(NonFiniteError, match="loss is nan"):
            trained(step, moving)
    assert torch.equal(start.weight, moving.weight)


def test_statistics_that_move_are_taken_back_too(cliff):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    step = Step(60, 0.05, norm_stats="update")
    cliff(2.6)
    set_back, told, losses = trained(step, network())
    assert "ended with epoch" in told[0]
    whole, _, _ = trained(replace(step, epochs=len(losses)), network())
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in set_back.state_dict().items())


def test_a_diverging_model_is_taken_back_where_select_sees_it_first():
    epochs = []

    def look(epoch, loss):
        epochs.append(epoch)
        if len(epochs) == 2:
            raise NonFiniteError("the logits of 3 of 9 samples are not finite")
        return False

    told, network, step = [], nn.Linear(4, 1), Step(3, 0.0)
    loss, generator = Loss(equalized_odds_gap), torch.Generator().manual_seed(0)
    mask = WeightMask.by_name(network)
    tune(network, images(), loss, mask, step, generator=generator, after_epoch=look, remark=told.append)
    assert epochs == [1, 2, 2, 3]
    assert len(told) == 1


def test_a_head_that_diverges_leaves_what_the_extractor_found(cliff):
    cliff(-1.0, of=13)
    outcome, _ = run()
    assert "given up: the loss is nan" in outcome.reason
    assert 1 in {entry.step for entry in outcome.report.history}


def test_an_extractor_that_diverges_at_once_is_an_error(cliff):
    cliff(0.0)
    fit, select = patients().split(0.5, 0.5, seed=0)
    with pytest.raises(NonFiniteError):
        debias(network(), fit, select, device="cpu")


@pytest.mark.parametrize("die_at", [2, *in_ci(1, 3, 4)])
def test_a_training_that_was_set_back_goes_on_to_the_same_bytes(tmp_path, cliff, die_at):
    cliff(3.0)
    whole, _ = run(trust=10.0)
    assert "taken back" in whole.reason
    with pytest.raises(Killed):
        run(tmp_path / "j", die_at=die_at, trust=10.0)
    same(run(tmp_path / "j", resume=True, trust=10.0)[0], whole)
