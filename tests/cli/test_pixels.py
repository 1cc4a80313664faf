"""Which pixels a network is shown: said by options, known, or guessed and then told, checked against the network."""

import json
import pickle
import re
import shutil

import pytest
import torch
from PIL import Image

from bmft import load_manifest
from bmft_cli.job import Transform
from tests.tiers import in_ci

MODULE = """
import numpy as np, torch
def good(image):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(np.array(image)) / 255 - mean) / std).permute(2, 0, 1)
def nothing(): pass
def raises(image): raise RuntimeError("first line\\nsecond line")
def leaves(image): return image
def last(image): return good(image).permute(1, 2, 0)
number = 7
"""


@pytest.fixture
def options(data_options):
    """The study's, without the image size."""
    return data_options[: data_options.index("--image-size")]


@pytest.fixture
def folder(study, tmp_path):
    """A folder of its own with the study's model and functions of a user."""
    shutil.copy(study / "model.pt", tmp_path / "model.pt")
    (tmp_path / "mine_of_pixels.py").write_text(MODULE)
    return tmp_path


def remarks(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "pixels: " in line]


def auc(path):
    return json.loads(path.read_text())["overall"]["roc_auc"]


def test_imagenets_normalization_is_told_to_be_a_guess_everywhere(bmft, folder, options, capsys):
    assert bmft("audit", "model.pt", *options, "--json", "a.json", "--report", "r") == 0
    (line,) = remarks(capsys)
    assert line.startswith("bmft: warning: pixels: normalized by imagenet (a guess: ")
    assert "--normalize" in line
    (said,) = json.loads((folder / "a.json").read_text())["assumed"]["pixels"]
    assert (said["value"], said["guess"]) == ("normalized by imagenet", True)
    for name in ("report.md", "report.html"):
        assert "normalized by imagenet" in (folder / "r" / name).read_text()
        assert "a guess: " in (folder / "r" / name).read_text()


def test_what_was_said_needs_no_remark(bmft, folder, options, capsys):
    assert bmft("audit", "model.pt", *options, "--normalize", "imagenet", "--json", "a.json") == 0
    assert not remarks(capsys)
    assert "pixels" not in json.loads((folder / "a.json").read_text())["assumed"]


@pytest.mark.parametrize("command", [["audit"], *in_ci((["debias", "--method", "threshold", "--report", "r"],))])
@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("half", "--normalize imagenet"),
        *in_ci(("none", "--normalize imagenet"), ("0/0.00392157", "--normalize imagenet")),
    ],
)
def test_pixels_unlike_those_of_the_training_are_a_warning_that_says_what_looks_right(
    bmft, folder, options, capsys, command, wrong, hint
):
    # Shown so, the model may well answer the same for every image, which debias refuses.
    assert bmft(command[0], "model.pt", *options, *command[1:], "--normalize", wrong) in (0, 1, 4)
    (line,) = remarks(capsys)
    assert line.startswith("bmft: warning: pixels: they do not look like those the network was trained on")
    assert f"; {hint} would look right" in line
    if wrong == "half" and command[0] == "debias":
        assert "do not look like" in (folder / "r" / "report.md").read_text()


def test_what_lies_beside_the_checkpoint_is_used_and_told(bmft, folder, options, capsys):
    config = {"input_size": [3, 32, 32], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "crop_pct": 1.0}
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    assert bmft("audit", "model.pt", *options, "--json", "a.json") == 0
    (line,) = remarks(capsys)
    assert "(from timm's config.json beside the checkpoint; say otherwise: " in line
    (folder / "config.json").unlink()
    assert bmft("audit", "model.pt", *options, "--normalize", "imagenet", "--json", "b.json") == 0
    assert auc(folder / "a.json") == auc(folder / "b.json")


def test_inspect_says_what_is_known_of_the_pixels(bmft, folder, capsys):
    assert bmft("inspect", "model.pt") == 0
    assert "nothing says how they were prepared" in capsys.readouterr().out
    torch.save({"state_dict": torch.load("model.pt"), "args": {"img_size": 32, "crop_pct": 0.5}}, "known.pt")
    assert bmft("inspect", "known.pt", "--json", "k.json") == 0
    assert "image size 32, crop fraction 0.5 (from the checkpoint's args)" in capsys.readouterr().out
    said = {"said": "image size 32, crop fraction 0.5", "from": "the checkpoint's args"}
    assert json.loads((folder / "k.json").read_text())["pixels"] == said


def test_a_transform_of_ones_own_is_named_and_gives_the_same_as_the_options(bmft, folder, options, capsys):
    assert bmft("audit", "model.pt", *options, "--normalize", "imagenet", "--json", "a.json") == 0
    mine = ["--transform", "mine_of_pixels:good"]
    assert bmft("audit", "model.pt", *options, *mine, "--json", "b.json", "--report", "r") == 0
    assert auc(folder / "a.json") == auc(folder / "b.json")
    assert len(remarks(capsys)) == 1
    (said,) = json.loads((folder / "b.json").read_text())["assumed"]["pixels"]
    assert said["value"] == "prepared by mine_of_pixels:good"
    assert "mine_of_pixels:good" in (folder / "r" / "report.md").read_text()


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("there_is_none:good", 2, "No module named 'there_is_none'. Expected package.module:name"),
        ("mine_of_pixels:gone", 2, "has no attribute 'gone'. Expected package.module:name"),
        ("mine_of_pixels", 2, "Expected package.module:name"),
        ("", 2, "Expected package.module:name"),
        ("mine_of_pixels:number", 2, "is a int: expected a function of a PIL image"),
        ("mine_of_pixels:nothing", 4, "raises TypeError: nothing() takes 0 positional arguments but 1 was given"),
        ("mine_of_pixels:raises", 4, "raises RuntimeError: first line"),
        ("mine_of_pixels:leaves", 4, "the transform gives a Image: expected a tensor (3, height, width)"),
        ("mine_of_pixels:last", 4, "the transform gives (32, 32, 3): expected a tensor (3, height, width)"),
    ],
)
def test_a_transform_that_does_not_work_is_one_line(bmft, folder, options, capsys, name, code, reason):
    assert bmft("audit", "model.pt", *options, "--transform", name) == code
    error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(error) == 1
    assert reason in error[0]


@pytest.mark.parametrize("content", ["raise SystemExit(3)", "1 / 0", "def f(:"])
def test_a_module_that_fails_when_imported_is_one_line(bmft, folder, options, capsys, content):
    name = f"failing_{len(content)}"
    (folder / f"{name}.py").write_text(content)
    assert bmft("audit", "model.pt", *options, "--transform", f"{name}:good") == 2
    assert re.search(rf"--transform {name}:good: .*Expected package\.module:name\.", capsys.readouterr().err)


def test_a_transform_beside_other_settings_is_refused(bmft, folder, options, capsys):
    assert bmft("audit", "model.pt", *options, "--transform", "mine_of_pixels:good", "--normalize", "half") == 2
    assert "leave out --normalize" in capsys.readouterr().err


SAME = '[[non_inferiority]]\nmetric = "roc_auc"\nmargin = 0.5\n'
POLICY = f'[[check]]\nmetric = "false_positive_rate"\nsensitive = ["sex"]\nmax_difference = 0.9\n{SAME}'


@pytest.mark.parametrize(("mean", "alike"), [(0.9, False), *in_ci((0.485, True), (None, True))])
def test_each_side_of_a_gate_sees_its_own_pixels_and_the_others_where_nothing_says_them(
    bmft, folder, options, mean, alike
):
    """Equal answers of the two sides are told: the same weights under the same pixels give them."""
    weights = torch.load(folder / "model.pt")
    said = [{"mean": [mean, 0.456, 0.406], "std": [0.229, 0.224, 0.225]} if mean else {} for mean in (0.485, mean)]
    for name, args in zip(("new.pt", "old.pt"), said, strict=True):
        torch.save({"state_dict": weights, "args": args, "file": name}, folder / name)
    (folder / "p.toml").write_text(POLICY)
    for one, other in (("new.pt", "old.pt"), ("old.pt", "new.pt")):
        bmft("gate", one, *options, "--policy", "p.toml", "--baseline", other, "--json", "g.json")
        found = {check["id"]: check for check in json.loads((folder / "g.json").read_text())["checks"]}
        assert ("the same scores" in found["roc_auc/baseline"]["reason"]) == alike


@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_data_with_a_transform_go_to_other_processes(folder, study, monkeypatch, cache):
    monkeypatch.chdir(folder)
    transform = Transform("mine_of_pixels:good")
    data = load_manifest(
        study / "isic.csv",
        target="malignant",
        sensitive="sex",
        split_column="split",
        split="fit",
        transform=transform,
        cache_bytes=cache,
    )
    there = pickle.loads(pickle.dumps(data))
    assert torch.equal(there.inputs(slice(0, 2)), data.inputs(slice(0, 2)))


@pytest.mark.ci
def test_another_sites_images_are_checked_too(bmft, study, folder, options, capsys):
    rows = [row for row in (study / "isic.csv").read_text().splitlines() if not row.startswith("img/fit")]
    (folder / "dark.csv").write_text("\n".join(rows[:41]))
    (folder / "img").mkdir()
    for row in rows[1:41]:
        name = row.split(",")[0]
        Image.open(study / name).point(lambda value: value // 4).save(folder / name)
    how = ["--normalize", "imagenet", "--eval", "dark=dark.csv", "--method", "threshold", "--report", "r"]
    assert bmft("debias", "model.pt", *options, *how) in (0, 1)
    (line,) = remarks(capsys)
    assert line.startswith("bmft: warning: pixels: of dark.csv, they do not look like those the network was trained on")


@pytest.mark.parametrize(
    "option", [["--resize", "pad"], ["--transform", "a:b"], ["--crop-fraction", 0.5], ["--bits", 12]]
)
def test_predictions_have_no_pixels(bmft, option, capsys):
    assert bmft("audit", "--predictions", "p.csv", "--sensitive", "sex", *option) == 2
    assert f"{option[0]}: goes with a CHECKPOINT" in capsys.readouterr().err
