"""Untrained models whose answers are not those to the opposite question."""

from typing import Any

import torch
from torch import nn

import bmft


def upright(model: nn.Module, data: Any) -> nn.Module:
    """The model itself, its last linear layer negated where its ROC AUC on `data` is below one half.

    An untrained model is as often below as above, and one that is wholly below is refused: its classes look swapped.
    """
    if bmft.audit(model, data, intervals=False).overall["roc_auc"] < 0.5:
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.neg_()
    return model
