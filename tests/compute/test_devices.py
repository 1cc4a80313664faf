"""In which precision a network trains."""

from contextlib import nullcontext

import pytest
import torch
import torchvision

from bmft.compute import autocast_for, devices
from bmft.datasets.demo import build_model

CPU = torch.device("cpu")
WIDE = ["resnet18", "densenet121", "squeezenet1_1", "regnet_y_400mf", "convnext_tiny", "swin_t"]
NARROW = ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0"]


def network(name):
    return torchvision.models.get_model(name, weights=None)


@pytest.mark.parametrize(("name", "gains"), [(n, True) for n in WIDE] + [(n, False) for n in NARROW])
def test_auto_is_bfloat16_where_the_processor_and_the_network_gain_by_it(monkeypatch, name, gains):
    model = network(name)
    monkeypatch.setattr(devices, "_has_bf16", lambda device: True)
    assert (autocast_for(CPU, "auto", model) is not nullcontext) == gains
    assert autocast_for(CPU, "bf16", model) is not nullcontext
    assert autocast_for(CPU, "float32", model) is nullcontext
    monkeypatch.setattr(devices, "_has_bf16", lambda device: False)
    assert autocast_for(CPU, "auto", model) is nullcontext


def test_a_gpu_with_bfloat16_runs_every_network_in_it(monkeypatch):
    monkeypatch.setattr(devices, "_has_bf16", lambda device: True)
    assert autocast_for(torch.device("cuda"), "auto", build_model()) is not nullcontext
    assert autocast_for(CPU, "auto", build_model()) is nullcontext
