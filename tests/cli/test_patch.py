import pytest
import torch

from bmft.checkpoints import WeightPatch


@pytest.fixture
def pair(study, tmp_path):
    """Two checkpoints of one model and the patch between them."""
    before = torch.load(study / "model.pt", weights_only=True)
    after = {name: tensor.clone() for name, tensor in before.items()}
    after["fc.bias"] += 1
    torch.save(before, tmp_path / "a.pt")
    torch.save(after, tmp_path / "b.pt")
    WeightPatch.between(before, after, {"method": "by hand"}).save(tmp_path / "p.safetensors")
    return before, after


def test_show_tells_tensors_counts_and_norms(bmft, pair, capsys):
    assert bmft("patch", "show", "p.safetensors") == 0
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines()[1:3]] == [
        ["fc.bias", "1", "1", "100.0%", "1", "1"],
        ["all", "of", "these", "1", "1", "100.0%", "1", "1"],
    ]
    assert "method: by hand" in shown


def test_apply_and_revert_give_both_files_weights(bmft, pair, tmp_path):
    assert bmft("patch", "apply", "a.pt", "p.safetensors", "--out", "x.pt") == 0
    assert bmft("patch", "revert", "b.pt", "p.safetensors", "--out", "y.pt") == 0
    for name, expected in (("x.pt", pair[1]), ("y.pt", pair[0])):
        found = torch.load(tmp_path / name, weights_only=True)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_patch_for_another_checkpoint_is_refused(bmft, pair, tmp_path, capsys):
    assert bmft("patch", "apply", "b.pt", "p.safetensors", "--out", "x.pt") == 4
    assert "already applied" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


def test_a_file_that_is_no_patch_is_one_line(bmft, pair, capsys):
    assert bmft("patch", "show", "a.pt") == 4
    error = capsys.readouterr().err
    assert "cannot be read as a patch" in error
    assert error.count("\n") == 1


def test_weights_that_lie_channels_last_in_the_file_are_patched_too(bmft, study, tmp_path):
    before = torch.load(study / "model.pt", weights_only=True)
    before = {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in before.items()}
    # A 1 x 1 convolution passes for contiguous in both layouts, so a view of it may share its memory.
    name = next(k for k, v in before.items() if v.dim() == 4 and v.shape[1] > 1 and v.shape[2:] == (1, 1))
    before[name] = before[name].as_strided(before[name].shape, (before[name].shape[1], 1, *[before[name].shape[1]] * 2))
    after = {k: v + 1 if k == name else v for k, v in before.items()}
    torch.save(before, tmp_path / "a.pt")
    WeightPatch.between(before, after).save(tmp_path / "p.safetensors")
    assert bmft("patch", "apply", "a.pt", "p.safetensors", "--out", "b.pt") == 0
    assert torch.equal(torch.load(tmp_path / "b.pt", weights_only=True)[name], after[name])
