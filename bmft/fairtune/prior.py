"""Where a search begins: with the blocks that carry the gap, told by the importance of their weights."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from bmft.compute import autocast_for, choose_device
from bmft.data import GroupedData
from bmft.fairtune.space import Space
from bmft.masks import weight_importance
from bmft.methods import objective_of
from bmft.models import working_copy
from bmft.settings import Settings
from bmft.training import Conditions

Point = tuple[str, dict[str, Any]]


def importance_of_blocks(
    model: nn.Module, fit: GroupedData, space: Space, base: Settings, conditions: Conditions
) -> dict[str, float]:
    """Block -> its share of the squared gradient of the gap over the whole of fit, from the input to the output.

    It costs as much as an epoch of step 1. A block without a share has no weight on which the gap depends.
    """
    device = choose_device(conditions.device)
    network = working_copy(model, device)
    scores = weight_importance(
        network,
        objective_of(base),
        fit,
        only=[name for names in space.switches.values() for name in names],
        batch_size=base.batch_size,
        combine=base.combine,
        multi_label=conditions.multi_label,
        autocast=autocast_for(device, base.precision, network),
    )
    totals: dict[str, float] = {}
    for switch, names in space.switches.items():
        block = switch.rpartition("/")[0]
        totals[block] = totals.get(block, 0.0) + sum(scores[name].double().sum().item() for name in names)
    whole = sum(totals.values())
    return {block: total / whole if whole else 0.0 for block, total in totals.items()}


def first_points(importance: Mapping[str, float], space: Space, base: Settings) -> list[Point]:
    """Points that switch on whole blocks: the one with most of the gap, those with half of it, all from there up.

    What lies below a point's lowest block stays, and is computed once for all trials. None where no block has a share.
    """
    ranked = sorted((block for block in importance if importance[block] > 0), key=lambda block: -importance[block])
    if not ranked:
        return []
    half = next(n for n in range(1, len(ranked) + 1) if sum(importance[b] for b in ranked[:n]) >= 0.5 - 1e-9)
    order = list(importance)
    lowest = min(map(order.index, ranked[:half]))
    named = [
        (f"most important block ({ranked[0]})", ranked[:1]),
        ("blocks with half of the importance", ranked[:half]),
        ("all blocks from these up", order[lowest:]),
    ]
    return [
        (name, space.point(lambda switch, blocks=blocks: switch.rpartition("/")[0] in blocks, base))  # type: ignore[misc]
        for name, blocks in named
    ]


def different(points: Iterable[Point]) -> Iterator[Point]:
    """The first of every equal points."""
    seen: list[dict[str, Any]] = []
    for name, point in points:
        if point not in seen:
            seen.append(point)
            yield name, point
