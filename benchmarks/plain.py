"""The published procedure written plainly, as the baseline of the speed tables.

Images are decoded every epoch, each importance takes a pass of its own, and step 2 runs the whole network.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bmft import fairness
from bmft.data import GroupBatch

Rows = Sequence[tuple[Path, int, int]]


class Files(torch.utils.data.Dataset):
    """Images decoded when asked for."""

    def __init__(self, rows: Rows, mean: Sequence[float], std: Sequence[float]) -> None:
        self.rows, self.mean, self.std = (rows, torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> GroupBatch:
        path, target, group = self.rows[i]
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
        return GroupBatch((pixels - self.mean) / self.std, torch.tensor(target), torch.tensor(group))


def loader(data: Files, batch_size: int, generator: torch.Generator | None) -> Iterator[GroupBatch]:
    return iter(torch.utils.data.DataLoader(data, batch_size, shuffle=generator is not None, generator=generator))


def bias(logits: Tensor, batch: GroupBatch) -> Tensor:
    return torch.nan_to_num(fairness.equalized_odds_gap(torch.sigmoid(logits), batch.targets, batch.groups))


def task(logits: Tensor, batch: GroupBatch) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, batch.targets.float())


def squared_gradient(model: nn.Module, data: Files, loss, batch_size: int) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in loader(data, batch_size, None):
        model.zero_grad()
        loss(model(batch.inputs)[:, 0], batch).backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad.square()
    return total


def minmax(scores: Tensor) -> Tensor:
    return (scores - scores.min()) / (scores.max() - scores.min()).clamp_min(1e-30)


def published(
    model: nn.Module,
    data: Files,
    head: str,
    *,
    epochs: tuple[int, int],
    rates: tuple[float, float] = (1e-4, 1e-3),
    batch_size: int = 64,
    after_epoch: Callable[[], bool] = lambda: False,
) -> nn.Module:
    """Change `model`: importance, mask, masked extractor, re-initialised head; ends when `after_epoch` says so."""
    model.eval()
    of_bias, of_task = (squared_gradient(model, data, loss, batch_size) for loss in (bias, task))
    ratio = {n: minmax(of_bias[n]) / (minmax(of_task[n]) + 1e-10) for n in of_bias if not n.startswith(head)}
    joined = torch.cat([tensor.flatten() for tensor in ratio.values()])
    threshold = joined.topk(len(joined) // 2).values[-1]
    masks = {name: tensor >= threshold for name, tensor in ratio.items()}
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rates[0], momentum=0.9)
    for _ in range(epochs[0]):
        for batch in loader(data, batch_size, generator):
            optimizer.zero_grad()
            bias(model(batch.inputs)[:, 0], batch).backward()
            for name, parameter in model.named_parameters():
                parameter.grad *= masks.get(name, 0)
            optimizer.step()
        if after_epoch():
            return model
    layer = model.get_submodule(head)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rates[1], momentum=0.9)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in layer.parameters():
        parameter.requires_grad_(True)
    for _ in range(epochs[1]):
        for batch in loader(data, batch_size, generator):
            optimizer.zero_grad()
            logits = model(batch.inputs)[:, 0]
            (task(logits, batch) + 0.1 * bias(logits, batch)).backward()
            optimizer.step()
        if after_epoch():
            return model
    return model
