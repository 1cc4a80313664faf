"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv 2106.09685) as a method: trained beside the weights, then merged."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from bmft.errors import ConfigError, MissingExtraError
from bmft.masks import WeightMask
from bmft.methods.losses import extractor_loss, whole_step
from bmft.methods.run import Run
from bmft.models import copied

RANK = 8
_NAME = "bmft"


def installed() -> bool:
    """Whether peft, which makes the adapters, is there."""
    return find_spec("peft") is not None


def lora(run: Run) -> WeightMask:
    """Adapters of rank 8 on every linear layer and convolution that may move, and the head, in one step.

    1. A copy of the network gets the adapters; only they and its head are trained.
    2. After every epoch the change they make to each layer's weight is added to the model's own, which select judges:
       the model keeps its architecture and its keys.

    Grouped convolutions have no adapter, nor have layers that another one reads the weights of (torch's attention).
    """
    if not installed():
        raise MissingExtraError("method lora needs peft: pip install 'bmft[lora]'")
    if run.settings.norm_stats == "update":
        raise ConfigError("norm_stats = 'update' is not for method lora, which trains beside the model")
    layers = _layers(run)
    if not layers:
        raise ConfigError("method lora needs a linear layer or a convolution that may move, and there is none")
    network = _with_adapters(run, layers)
    trained = [name for name, _ in network.named_parameters() if ".lora_" in name or name in run.head.parameters]

    @torch.no_grad()
    def merge() -> None:
        for layer in layers:
            adapter: Any = network.get_submodule(layer)
            merged = adapter.base_layer.weight + adapter.get_delta_weight(_NAME)
            run.model.get_parameter(f"{layer}.weight").copy_(merged)
        for name in run.head.parameters:
            run.model.get_parameter(name).copy_(network.get_parameter(name))

    step = whole_step(run.settings)
    mask = WeightMask({**WeightMask.by_name(network, *trained).tensors, **run.head.rows(run.model)})
    run.tune_beside(network, mask, merge, extractor_loss(run.settings), step)
    return WeightMask.by_name(run.model, *(f"{layer}.weight" for layer in layers)) | run.head_mask()


def _layers(run: Run) -> list[str]:
    """Paths of the layers that get an adapter."""
    movable = set(run.body)
    return [
        path
        for path, module in run.model.named_modules()
        # The very types: a subclass may be read by its owner without being called.
        if type(module) in (nn.Linear, nn.Conv2d) and f"{path}.weight" in movable and getattr(module, "groups", 1) == 1
    ]


def _with_adapters(run: Run, layers: Sequence[str]) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(layers))
    with torch.random.fork_rng(devices=[]):
        # peft draws the first factor; the second is 0, so that the network is at first what it was.
        torch.manual_seed(run.conditions.seed)
        network: nn.Module = inject_adapter_in_model(config, copied(run.model), adapter_name=_NAME)
    return network
