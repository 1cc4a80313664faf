"""What a step's loss takes per image as the set grows, beside one over all rows: python -m benchmarks.step_time

The shortest of several steps, in CPU time: the loss and its gradient for a batch of 64, without the network.
"""

import time
from functools import partial

import torch

from benchmarks.common import footer, table
from bmft import fairness
from bmft.data import GroupedData, from_arrays
from bmft.training import Loss, PooledLoss

BATCH, STEPS = 64, 20
OBJECTIVES = (fairness.equalized_odds_gap, partial(fairness.equalized_odds_gap))  # the second is not known by name


def per_image(data: GroupedData, objective: fairness.Objective, generator: torch.Generator) -> float:
    """Microseconds."""
    pooled = PooledLoss(Loss(objective, 2.0, 1.0), data, torch.randn(len(data), 1, generator=generator), False)
    shortest = float("inf")
    for _ in range(STEPS):
        index = torch.randperm(len(data), generator=generator)[:BATCH]
        logits = torch.randn(BATCH, 1, generator=generator).requires_grad_()
        start = time.process_time()
        pooled(logits, index).backward()
        shortest = min(shortest, time.process_time() - start)
    return shortest / BATCH * 1e6


def main() -> None:
    generator, rows = torch.Generator().manual_seed(0), []
    for n in (1_000, 10_000, 100_000):
        draw = partial(torch.randint, 0, 2, (n,), generator=generator)
        data = from_arrays(torch.zeros(n, 1), draw(), draw())
        rows.append([f"{n:,}", *(f"{per_image(data, objective, generator):.1f}" for objective in OBJECTIVES)])
    print(table(["images", "sums of the cells, µs per image", "over all rows, µs per image"], rows))
    print(f"\n{footer(batch_size=BATCH, seed=0)}")


if __name__ == "__main__":
    main()
