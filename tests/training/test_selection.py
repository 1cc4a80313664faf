"""Which epoch is kept, and what of it."""

import copy

import pytest
import torch
from torch import nn

from bmft.data import from_arrays
from bmft.inference import predict
from bmft.training import Conditions, Limits, Selection

N = 80


@pytest.fixture
def data():
    rows = torch.arange(N)
    targets, groups = rows % 2, rows // 2 % 2
    inputs = torch.stack([targets + 0.6 * torch.sin(rows * 1.7), groups + 0.1 * torch.cos(rows * 0.9)], 1).float()
    return from_arrays(inputs, targets, groups)


@pytest.fixture
def net():
    network = nn.Sequential(nn.Linear(2, 200), nn.Linear(200, 1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network[0].weight[0, 0], network[0].weight[1, 1] = 1.0, 1.0
        network[1].weight[0, 0], network[1].weight[0, 1] = 6.0, 2.0
        network[1].bias.fill_(-4.0)
    return network.eval()


def selection(net, original, keep="best"):
    gap = lambda predictions: float(abs(predictions.scores[predictions.groups[:, 0] == 1].mean() - 0.5))  # noqa: E731
    return Selection(net, gap, Conditions(limits=Limits(0.5, 0.5), keep=keep), original)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_what_is_kept_is_only_what_moved(net, data, dtype):
    original = copy.deepcopy(net).to(dtype).state_dict()
    net.load_state_dict(original)
    chooses = selection(net, original)
    chooses.start(predict(net, data))
    with torch.no_grad():
        net[1].weight[0, 1] = 0.5
    entry = chooses.consider(predict(net, data), step=1, epoch=1, loss=0.0)
    assert entry.eligible
    assert sum(tensor.numel() for tensor in chooses.state.values()) == 2, "one position, one value"
    best = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net[0].weight.fill_(3.0)  # a later epoch, elsewhere, and worse
    chooses.consider(predict(net, data), step=1, epoch=2, loss=0.0)
    assert chooses.finish()
    assert all(torch.equal(tensor, best[name]) for name, tensor in net.state_dict().items())


def test_the_last_epoch_is_kept_where_that_is_asked_for(net, data):
    chooses = selection(net, copy.deepcopy(net.state_dict()), keep="last")
    chooses.start(predict(net, data))
    for epoch, value in enumerate((0.5, 9.0), 1):
        with torch.no_grad():
            net[1].weight[0, 1] = value
        chooses.consider(predict(net, data), step=1, epoch=epoch, loss=0.0)
    assert chooses.finish()
    assert net[1].weight[0, 1] == 9.0
