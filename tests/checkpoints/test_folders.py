"""Folders of weights: which files are meant, what is copied, what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.forms import hf_folder, hf_model
from bmft.checkpoints import build_from, load_checkpoint, read_checkpoint, write_checkpoint
from bmft.errors import ArchitectureError, CheckpointError
from bmft.models import build_model


def a_folder(path, files=("model.safetensors",)):
    path.mkdir()
    weights = build_model("torchvision:resnet18", num_outputs=2).state_dict()
    for name in files:
        save_file(weights, path / name)
    return path


def moved(checkpoint):
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in checkpoint.state.items()}


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


def test_everything_else_in_a_folder_comes_out_as_it_went_in(tmp_path):
    folder = a_folder(tmp_path / "in")
    (folder / "runs").mkdir()
    (folder / "runs" / "log.txt").write_text("loss 1")
    checkpoint = read_checkpoint(folder)
    write_checkpoint(checkpoint, moved(checkpoint), tmp_path / "out")
    assert (tmp_path / "out" / "runs" / "log.txt").read_text() == "loss 1"
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert list(before) == list(after)
    assert torch.equal(after["fc.bias"], before["fc.bias"] + 1)


def test_what_holds_the_old_weights_another_way_is_left_out_and_named(tmp_path, caplog):
    folder = a_folder(tmp_path / "in", ("model.safetensors", "pytorch_model.bin"))
    checkpoint = read_checkpoint(folder)
    write_checkpoint(checkpoint, moved(checkpoint), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert "pytorch_model.bin is left out" in caplog.text


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    checkpoint = read_checkpoint(a_folder(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match="is there already"):
        write_checkpoint(checkpoint, moved(checkpoint), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_folder_is_not_written_into_itself(tmp_path):
    checkpoint = read_checkpoint(a_folder(tmp_path / "in"))
    with pytest.raises(CheckpointError, match="write it elsewhere"):
        write_checkpoint(checkpoint, moved(checkpoint), tmp_path / "in" / "out")


@pytest.mark.parametrize(
    ("files", "said"), [((), "without weights"), (("a.pt", "b.pt"), r"2 files of weights \(a.pt, b.pt\)")]
)
def test_a_folder_that_does_not_say_which_weights_is_refused(tmp_path, files, said):
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(a_folder(tmp_path / "in", files))


def test_a_missing_shard_is_named(tmp_path, transformers):
    folder = hf_folder("ViT", tmp_path, max_shard_size="40KB")
    shard = next(folder.glob("model-00001-*"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        read_checkpoint(folder)


def test_an_index_that_points_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside the folder"):
        read_checkpoint(folder)


def test_weights_that_did_not_move_keep_their_bits_in_the_precision_of_the_file(tmp_path, transformers):
    path = tmp_path / "half"
    hf_model("ViT").half().save_pretrained(path)
    checkpoint = read_checkpoint(path)
    write_checkpoint(checkpoint, build_from(checkpoint).state_dict(), tmp_path / "out")
    name = "model.safetensors"
    assert (path / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_classifier_whose_head_is_not_in_the_folder_is_refused_and_not_made_up(tmp_path, transformers):
    folder = hf_folder("ViT", tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "classifier" not in name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2 weights of its network are not in the folder \(first: classifier"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("kind", "does"),
    [
        ("SegformerForSemanticSegmentation", "segments images"),
        ("DetrForObjectDetection", "detects objects"),
        ("ViTModel", "has no classifier"),
        ("ViTForMaskedImageModeling", "restores masked images"),
    ],
)
def test_what_is_no_classifier_says_what_it_is(tmp_path, kind, does):
    folder = a_folder(tmp_path / "in")
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "architectures": [kind]}))
    with pytest.raises(CheckpointError, match=f"is a {kind}, which {does}"):
        read_checkpoint(folder)


def test_code_that_a_folder_brings_is_not_run(tmp_path):
    folder = a_folder(tmp_path / "in")
    said = {"model_type": "x", "architectures": ["XForImageClassification"], "auto_map": {"AutoConfig": "x.X"}}
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="code of its own"):
        read_checkpoint(folder)


def test_an_adapter_of_a_model_that_is_not_here_says_how_to_merge_it(tmp_path):
    folder = a_folder(tmp_path / "in", ("adapter_model.safetensors",))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "google/vit-base"}))
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        read_checkpoint(folder)


def test_a_network_of_volumes_is_refused_as_such_also_where_it_is_named(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\ndef net(): return nn.Sequential(nn.Conv3d(1, 2, 1))")
    torch.save(torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1)).state_dict(), tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match="takes volumes, of three dimensions"):
        load_checkpoint(tmp_path / "m.pt", arch=f"{tmp_path}/net.py:net")
