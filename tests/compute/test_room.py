"""Less memory than a batch needs: smaller pieces, the same gap."""

import copy

import pytest
import torch
from torch import nn

from bmft import fairness
from bmft.compute import Room
from bmft.data import from_arrays
from bmft.errors import ConfigError
from bmft.inference import predict
from bmft.masks import WeightMask
from bmft.methods import debias
from bmft.training import Loss, Step, tune


class Cramped(nn.Module):
    """A network that has room for a few samples at once, fewer while gradients are kept."""

    def __init__(self, most=10**9):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
        self.most, self.seen = most, []
        with torch.no_grad():
            self.layers[2].bias += 0.1

    def forward(self, x):
        if len(x) > self.most * (1 if torch.is_grad_enabled() else 2):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.seen.append(len(x))
        return self.layers(x)


def patients(n=160):
    generator = torch.Generator().manual_seed(1)
    groups = (torch.arange(n) % 5 == 0).long()
    targets = (torch.rand(n, generator=generator) < 0.3 + 0.3 * groups).long()
    inputs = torch.randn(n, 6, generator=generator) + targets[:, None] * 0.8 + groups[:, None] * 0.5
    return from_arrays(inputs, targets, groups)


def tuned(most, room, *, whole_set=True, augment=()):
    model, data = Cramped(most), patients()
    tune(
        model,
        data,
        Loss(fairness.equalized_odds_gap, 1.0, 1.0, whole_set=whole_set),
        WeightMask.by_name(model),
        Step(2, 0.05, balance="cell", augment=augment),
        generator=torch.Generator().manual_seed(0),
        room=room,
    )
    return model


@pytest.mark.parametrize("whole_set", [True, False])
def test_pieces_give_the_weights_of_the_whole_batch(whole_set):
    room = Room(shrinks=True)
    pieces, whole = tuned(7, room, whole_set=whole_set), tuned(10**9, Room(), whole_set=whole_set)
    assert max(pieces.seen) <= 14 < max(whole.seen)
    for piece, one in zip(pieces.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(piece, one, rtol=0, atol=1e-6)


def test_the_mean_of_the_pieces_own_gaps_is_another_gradient():
    """What accumulating without care would give, and why it is not done."""
    data = patients()
    model = Cramped()
    whole = torch.autograd.grad(gap(model, data, slice(0, 64)), model.layers[2].weight)[0]
    parts = [gap(model, data, slice(k, k + 16)) for k in range(0, 64, 16)]
    naive = torch.autograd.grad(torch.stack(parts).mean(), model.layers[2].weight)[0]
    assert (naive - whole).abs().max() > 0.05 * whole.abs().max()


def gap(model, data, rows):
    batch = data.take(rows)
    probabilities, targets = torch.sigmoid(model(batch.inputs)), batch.targets[:, None].float()
    return fairness.equalized_odds_gap(probabilities, targets, batch.groups[:, 0])


def test_without_leave_to_shrink_the_error_is_the_callers():
    with pytest.raises(torch.OutOfMemoryError):
        tuned(7, Room())


def test_an_error_of_another_kind_is_not_taken_for_a_lack_of_room():
    def work(size):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        Room(shrinks=True)(work, 64)


def test_the_cpu_allocators_error_is_a_lack_of_room():
    def work(size):
        if size > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8000000 bytes")
        return size

    room = Room(shrinks=True)
    assert room(work, 64) == 4
    assert room.most == 4


def test_one_sample_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        tuned(0, Room(shrinks=True))


def test_a_whole_debiasing_fits_and_changes_nothing_that_matters():
    fit, select = patients().split(0.5, 0.5, seed=0)
    config = {"epochs": [2, 2], "path": [1.0], "precision": "float32"}
    small, large = (
        debias(Cramped(most), fit, select, config=config | {"on_out_of_memory": how}, keep="last", device="cpu")
        for most, how in ((5, "halve"), (10**9, "fail"))
    )
    for name, tensor in large.model.state_dict().items():
        torch.testing.assert_close(small.model.state_dict()[name], tensor, rtol=0, atol=1e-5)


def test_predictions_fit_too():
    assert predict(Cramped(3), patients(), batch_size="auto").scores.shape == (160, 1)
    with pytest.raises(torch.OutOfMemoryError):
        predict(Cramped(3), patients())


def test_statistics_of_whole_batches_are_refused_with_pieces():
    fit, select = patients().split(0.5, 0.5, seed=0)
    with pytest.raises(ConfigError, match="norm_stats"):
        debias(Cramped(), fit, select, config={"norm_stats": "update", "on_out_of_memory": "halve"})


def test_a_model_is_left_as_it_was_when_memory_runs_out():
    model = Cramped(2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(torch.OutOfMemoryError):
        predict(model, patients(), batch_size=64)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
