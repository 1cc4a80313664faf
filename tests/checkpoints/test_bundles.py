"""MONAI bundles: the network that their configuration defines is read and never run."""

import json

import pytest
import torch

from bmft.checkpoints import read_checkpoint
from bmft.checkpoints.bundles import bundle_network

DENSE = {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}


def a_bundle(folder, name="inference.json", **said):
    (folder / "configs").mkdir()
    (folder / "models").mkdir()
    (folder / "configs" / name).write_text(json.dumps(said))
    torch.save({"class_layers.out.weight": torch.zeros(2, 4)}, folder / "models" / "model.pt")
    return folder


@pytest.mark.parametrize("name", ["inference.json", "train.json", "inference.yaml"])
def test_the_network_is_what_network_def_says(tmp_path, name):
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    found = bundle_network(a_bundle(tmp_path, name, network_def=DENSE))
    assert found == "monai:DenseNet121,spatial_dims=2,in_channels=1,out_channels=2"
    assert read_checkpoint(tmp_path).arch == found


def test_references_and_plain_expressions_are_filled_in(tmp_path):
    network = {"_target_": "monai.networks.nets.DenseNet121", "out_channels": "@sizes::out", "block_config": "$(1, 2)"}
    found = bundle_network(a_bundle(tmp_path, sizes={"out": 3}, network_def=network))
    assert found == "monai:DenseNet121,out_channels=3,block_config=(1, 2)"


@pytest.mark.parametrize(
    "network",
    [
        {**DENSE, "out_channels": "$__import__('os').getpid()"},
        {**DENSE, "out_channels": "@nothing"},
        {**DENSE, "out_channels": "@network_def::out_channels"},
        {"_target_": "scripts.net.Own"},
    ],
)
def test_what_is_an_expression_or_code_of_its_own_is_not_run_but_asked_for(tmp_path, network, caplog):
    assert bundle_network(a_bundle(tmp_path, network_def=network)) is None
    assert "--arch" in caplog.text
