import pytest
import torch
from torch import nn

from bmft.data import from_arrays
from bmft.errors import ConfigError
from bmft.fairness import equalized_odds_gap
from bmft.masks import WeightMask
from bmft.training import Loss, Step, tune
from bmft.training.loss import PooledLoss, reordering


def images(n=8, size=4):
    inputs = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0))
    return from_arrays(inputs, [0, 1] * (n // 2), [0, 0, 1, 1] * (n // 4))


def test_views_are_the_images_flipped_in_every_combination():
    data = images()
    viewed, whole = data.with_views(["hflip", "vflip"]), slice(None)
    pixels = data.take(whole).inputs
    wanted = torch.cat([pixels, pixels.flip(-1), pixels.flip(-2), pixels.flip(-1, -2)])
    assert torch.equal(viewed.take(whole).inputs, wanted)
    assert torch.equal(viewed.targets, data.targets.repeat(4))
    assert torch.equal(viewed.rows, data.rows.repeat(4))
    assert len(set(viewed.row_digests)) == 32


def test_views_of_a_part_are_that_parts():
    part = images().subset(torch.tensor([5, 2]))
    assert torch.equal(part.with_views(["vflip"]).take(slice(2, 4)).inputs, part.take(slice(0, 2)).inputs.flip(-2))


@pytest.mark.parametrize("flips", [["turn"], ["transpose"]])
def test_what_cannot_be_flipped_so_is_refused(flips):
    data = from_arrays(torch.zeros(4, 1, 2, 3), [0, 1, 0, 1], [0, 0, 1, 1])
    with pytest.raises(ConfigError):
        data.with_views(flips)
    with pytest.raises(ConfigError):
        from_arrays(torch.zeros(4, 2), [0, 1, 0, 1], [0, 0, 1, 1]).with_views(["hflip"])


def test_a_group_that_moves_as_a_whole_is_not_reordered():
    groups = torch.tensor([0, 1, 0, 1, 1])
    shift = torch.tensor([[3.0], [-2.0]])[groups]
    assert reordering(shift, groups) == 0
    inside = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    variances = [inside[groups == g].var(0, correction=0).sum() * (groups == g).sum() for g in (0, 1)]
    assert torch.allclose(reordering(inside + shift, groups), sum(variances) / 10)


def test_the_order_term_compares_with_the_logits_at_the_start():
    data = images()
    loss = Loss(equalized_odds_gap, bias_weight=0.0, task_weight=0.0, order_weight=2.0)
    start = torch.zeros(8, 1)
    pooled, index = PooledLoss(loss, data, start, False), torch.arange(8)
    moved = torch.arange(8.0)[:, None]
    assert torch.allclose(pooled(moved, index), 2 * reordering(moved, data.groups[:, 0]))


def weights_after(step, **options):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    with torch.no_grad():
        network[1].weight.fill_(0.1)
        network[1].bias.zero_()
    loss = Loss(equalized_odds_gap, task_weight=1.0, balance="none")
    mask = WeightMask.by_name(network)
    tune(network, images(), loss, mask, step, generator=torch.Generator().manual_seed(0), **options)
    return network[1].weight.detach().clone()


def test_the_first_steps_are_taken_at_a_rising_rate():
    plain = Step(1, 0.1, momentum=0.0)
    half = Step(1, 0.1, momentum=0.0, warmup=2)
    moved = [weights_after(step) - 0.1 for step in (plain, half)]
    assert torch.allclose(moved[0] / 2, moved[1])


def test_the_order_term_holds_to_the_logits_it_is_given():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    data, whole = images(), slice(None)
    start = network(data.take(whole).inputs).detach()
    with torch.no_grad():
        network[1].weight.add_(1.0)
    before = reordering(network(data.take(whole).inputs) - start, data.groups[:, 0])
    loss = Loss(equalized_odds_gap, bias_weight=0.0, order_weight=1.0)
    step = Step(300, 0.05, momentum=0.0)
    tune(
        network, data, loss, WeightMask.by_name(network), step, generator=torch.Generator().manual_seed(0), start=start
    )
    assert reordering(network(data.take(whole).inputs) - start, data.groups[:, 0]) < before / 2


def test_an_epoch_takes_its_share_of_the_batches():
    step = Step(1, 0.1, batch_size=2, share=0.25)
    seen = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    network.register_forward_hook(lambda _m, i, _o: seen.append(len(i[0])) if torch.is_grad_enabled() else None)
    loss = Loss(equalized_odds_gap, task_weight=1.0)
    tune(network, images(), loss, WeightMask.by_name(network), step, generator=torch.Generator().manual_seed(0))
    assert seen == [2]
