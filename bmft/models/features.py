"""What enters the head, for every sample: features on which a head alone can be trained."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bmft.compute import AT_ONCE, AutocastMaker, Share
from bmft.data import GroupedData
from bmft.models.activations import Tail
from bmft.models.answers import forward_outputs
from bmft.models.head import Head, same_numbers
from bmft.models.modes import evaluating


def penultimate_features(
    model: nn.Module,
    head: Head,
    data: GroupedData,
    *,
    batch_size: int = AT_ONCE,
    autocast: AutocastMaker = nullcontext,
    tail: Tail | None = None,
) -> GroupedData | None:
    """The head's input for every sample, as data of the head alone; None when the head's output is not the logits.

    With a frozen extractor these never change, so the head can train on them at the cost of one forward pass. Given the
    `tail` of the model whose activations the data hold, only that runs.
    """
    module = model.get_submodule(head.name)
    device = next(model.parameters()).device
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        seen.append((arguments[0], output))

    features = []
    share = Share(len(data))
    with module.register_forward_hook(keep), torch.no_grad(), evaluating(model), autocast():
        for batch in share.of(data).batches(batch_size):
            seen.clear()
            logits = forward_outputs(tail or model, batch.to(device).inputs)
            if len(seen) != 1 or not same_numbers(seen[0][1], logits):
                return None
            features.append(seen[0][0].float())
    return data.with_inputs(share.gather(torch.cat(features)).cpu())
