"""A step knows the whole set's gap from sums that it keeps: the same as over all rows, at a time that does not grow."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bmft import fairness
from bmft.data import from_arrays
from bmft.masks import WeightMask
from bmft.training import Loss, PooledLoss, Step, TrainingState, loop, tune

OBJECTIVES = list(fairness.WITHIN_LABEL)


def drawn(n=400, *, attributes=1, labels=None):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randint, generator=generator)
    targets = draw(0, 2, (n,)) if labels is None else draw(-1, 2, (n, labels))
    if labels:
        targets[:, 0].clamp_(min=0)
    return from_arrays(torch.randn(n, 5, generator=generator), targets, draw(-1, 3, (n, attributes)))


def both(objective, data, outputs=1, *, combine="mean", multi_label=False):
    """The same loss with the sums and, hidden behind a callable of another name, over all rows."""
    logits = torch.randn(len(data), outputs, generator=torch.Generator().manual_seed(1))
    losses = [Loss(each, 2.0, 0.0, combine=combine) for each in (objective, partial(objective))]
    return [PooledLoss(loss, data, logits.clone(), multi_label) for loss in losses]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("options", "outputs", "more"),
    [({}, 1, {}), ({"attributes": 2}, 2, {"combine": "worst"}), ({"labels": 3}, 3, {"multi_label": True})],
)
def test_the_gap_and_its_gradient_are_those_of_all_rows_after_any_number_of_steps(objective, options, outputs, more):
    data = drawn(**options)
    quick, slow = both(objective, data, outputs, **more)
    generator = torch.Generator().manual_seed(2)
    for _ in range(60):
        index = torch.randint(0, len(data), (32,), generator=generator)  # some of them twice
        logits = torch.randn(32, outputs, generator=generator)
        logits = torch.stack([logits[(index == row).nonzero()[0, 0]] for row in index])
        parts = [logits.clone().requires_grad_() for _ in range(2)]
        values = [pooled(part, index) for pooled, part in zip((quick, slow), parts, strict=True)]
        torch.testing.assert_close(*values, rtol=0, atol=1e-6)
        for value in values:
            value.backward()
        torch.testing.assert_close(*(part.grad for part in parts), rtol=1e-5, atol=1e-8)
    assert quick.means is not None
    assert slow.means is None
    kept = quick.means.sums.clone()
    quick.refresh()
    torch.testing.assert_close(kept, quick.means.sums, rtol=0, atol=1e-6)


def test_logits_that_are_put_back_are_those_of_the_next_gap():
    data = drawn()
    quick, slow = both(fairness.equalized_odds_gap, data)
    before, index = quick.logits.clone(), torch.arange(64)
    quick(torch.full((64, 1), 3.0), index)
    quick.put_back(before)
    logits = torch.zeros(8, 1)
    torch.testing.assert_close(quick(logits, index[:8]), slow(logits, index[:8]), rtol=0, atol=1e-6)


class Waits(TorchDispatchMode):
    """Fails where a device would be waited for: a number is asked of a tensor, or a shape depends on what is in it."""

    OPS = (
        "_local_scalar_dense",
        "item",
        "nonzero",
        "bincount",
        "_unique2",
        "unique_dim",
        "masked_select",
        "is_nonzero",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        found = name in self.OPS
        if name in ("index", "index_put", "index_put_"):
            found = any(each is not None and each.dtype == torch.bool for each in args[1])
        if found:
            raise AssertionError(f"a step waits for the device: {func}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watched(monkeypatch):
    """Watches what a step does between the batch and the next one; gives how many were seen."""
    seen = []

    def inside(function):
        def run(*args, **options):
            seen.append(function.__name__)
            with Waits():
                return function(*args, **options)

        return run

    monkeypatch.setattr(loop, "take_gradient", inside(loop.take_gradient))
    monkeypatch.setattr(TrainingState, "step", inside(TrainingState.step))
    return seen


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("labels", [None, 3])
def test_no_step_of_either_training_waits_for_the_device(watched, optimizer, labels):
    data = drawn(labels=labels)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, labels or 1))
    loss = Loss(fairness.equalized_odds_gap, 1.0, 1.0, balance="none", order_weight=0.1)
    step = Step(2, 1e-3, optimizer=optimizer, batch_size=64, balance="cell", average=0.9, warmup=3)
    mask = WeightMask({name: torch.rand(p.shape) < 0.5 for name, p in net.named_parameters()})
    tune(net, data, loss, mask, step, generator=torch.Generator(), multi_label=labels is not None)
    assert watched.count("take_gradient") == watched.count("step") == 2 * 7


def test_the_watch_sees_a_number_being_asked_for():
    with pytest.raises(AssertionError, match="waits"), Waits():
        torch.ones(1).item()
    with pytest.raises(AssertionError, match="waits"), Waits():
        torch.ones(3)[torch.tensor([True, False, True])]
