import json

import pytest
import torch


def test_it_says_what_the_file_holds_and_what_would_be_tuned(bmft, study, tmp_path, capsys):
    weights = torch.load(study / "model.pt", weights_only=True)
    file = {"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}
    torch.save(file, tmp_path / "m.pth")
    assert bmft("inspect", "m.pth") == 0
    shown = capsys.readouterr().out
    for part in (
        "'state_dict'",
        "'module.'",
        "shufflenet_v2_x0_5",
        "342,817",
        "fc: 1 outputs, 1,025 weights",
        "epoch = 3",
    ):
        assert part in shown, part
    assert "at most 5% of the 334,160 weights in the upper blocks outside the head" in shown


def test_json_has_the_blocks_and_every_weight_is_in_one(bmft, study, capsys):
    assert bmft("inspect", study / "model.pt", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(block["parameters"] for block in found["blocks"].values()) == found["parameters"] == 342_817


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_checkpoint_is_one_line(bmft, tmp_path, content, capsys):
    (tmp_path / "m.pt").write_bytes(content)
    assert bmft("inspect", "m.pt") == 4
    error = capsys.readouterr().err
    assert "m.pt" in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(bmft, capsys):
    assert bmft("inspect", "none.pt") == 4
    assert "none.pt" in capsys.readouterr().err


def test_every_set_of_weights_is_listed_and_entry_picks_one(bmft, study, tmp_path, capsys):
    weights = torch.load(study / "model.pt", weights_only=True)
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    torch.save({"state_dict": weights, "state_dict_ema": average, "critic": {"a.b": torch.ones(1)}}, tmp_path / "m.pt")
    assert bmft("inspect", "m.pt", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["chosen"], one["same"]) for one in found["sets"]] == [
        ("state_dict", False, True),
        ("state_dict_ema", True, True),
        ("critic", False, False),
    ]
    assert bmft("inspect", "m.pt", "--entry", "state_dict") == 0
    shown = capsys.readouterr().out
    assert "weights under 'state_dict'" in shown
    assert "critic" in shown
    assert bmft("inspect", "m.pt", "--entry", "other") == 2
    assert "state_dict, state_dict_ema, critic" in capsys.readouterr().err
