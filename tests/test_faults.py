"""What a fault leaves: no half of a file under an output's name, one clear line, and a run that goes on from there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bmft.data import load_manifest
from bmft.datasets.demo import train_demo_model, write_demo

# Imports first, so that a kill meets the work. The limit is on the size of every file the run writes.
RUN = """
import os, resource, signal, sys, threading, time
import bmft, bmft.report, torch  # what torch imports may look for a temporary folder
from bmft_cli.main import main
kill_after, limit = {kill_after}, {limit}
if limit is not None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if kill_after is not None:
    killer = threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL))
    killer.daemon = True
    killer.start()
start = time.monotonic()
code = main(sys.argv[1:])
print("seconds", time.monotonic() - start, file=sys.stderr)
sys.exit(code)
"""
KILLED = -9


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    manifest = write_demo(folder, 800, image_size=32)
    archive = load_manifest(manifest, target="label", sensitive="skin", split_column="split", split="train")
    torch.save({"state_dict": train_demo_model(archive, epochs=10).state_dict()}, folder / "biased.pt")
    return folder


def options(world: Path, *, checkpoint: Path | None = None, manifest: Path | None = None) -> list[str]:
    return [
        str(checkpoint or world / "biased.pt"),
        "--data",
        str(manifest or world / "manifest.csv"),
        "--images",
        str(world),
        "--label",
        "label",
        "--sensitive",
        "skin",
        "--split-column",
        "split",
        "--arch",
        "bmft.datasets.demo:build_model",
        "--device",
        "cpu",
    ]


def commands(world: Path) -> dict[str, list[str]]:
    # --keep last: it is written whether or not so short a training did any good.
    return {
        "debias": ["debias", *options(world), "--report", "report", "--keep", "last", "--epochs", "4,2"],
        "search": [
            "search",
            *options(world),
            "--report",
            "report",
            "--keep",
            "last",
            "--epochs",
            "1,1",
            "--trials",
            "3",
            "--max-auc-drop",
            "0.5",
            "--max-group-auc-drop",
            "0.5",
            "--max-calibration-rise",
            "1",
        ],
        "compare": [
            "compare",
            *options(world),
            "--report",
            "report",
            "--methods",
            "head,random_mask",
            "--seeds",
            "1",
            "--epochs",
            "1,1",
            "--jobs",
            "1",
        ],
    }


def run(folder: Path, arguments: list[str], kill_after: float | None = None, limit: int | None = None) -> Any:
    code = RUN.format(kill_after=kill_after, limit=limit)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def seconds(done: Any) -> float:
    return float(done.stderr.rsplit("seconds ", 1)[1])


def result(folder: Path, command: str) -> dict[str, Any]:
    """What has to be alike every time: weights to the byte, a comparison's figures without the time they took."""
    if command == "compare":
        return dict(_without_seconds(json.loads((folder / "report/compare.json").read_text())))
    return {name: (folder / name).read_bytes() for name in ("fair.pt", "fair.patch.safetensors")}


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_seconds(entry) for name, entry in value.items() if "seconds" not in name}
    return [_without_seconds(entry) for entry in value] if isinstance(value, list) else value


def check_files_are_whole(folder: Path) -> None:
    """Raises where a file under an output's name cannot be read to its end."""
    for path in folder.rglob("*"):
        if path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> Any:
    """Command -> the seconds it takes after the imports, and its result."""
    found: dict[str, tuple[float, dict[str, Any]]] = {}

    def of(command: str) -> tuple[float, dict[str, Any]]:
        if command not in found:
            folder = tmp_path_factory.mktemp(command)
            done = run(folder, commands(world)[command])
            assert done.returncode == 0, done.stderr
            found[command] = seconds(done), result(folder, command)
        return found[command]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("command", ["debias", "search", "compare"])
def test_a_killed_run_leaves_whole_files_and_goes_on_to_the_same_result(command, moment, world, undisturbed, tmp_path):
    takes, whole = undisturbed(command)
    killed = run(tmp_path, commands(world)[command], kill_after=moment * takes)
    assert killed.returncode in (KILLED, 0)  # 0: this time it was quicker than the kill
    check_files_are_whole(tmp_path)
    again = run(tmp_path, commands(world)[command] + (["--resume"] if command == "debias" else []))
    assert again.returncode == 0, again.stderr
    assert result(tmp_path, command) == whole


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1_000, 100_000])
def test_a_full_disk_leaves_no_checkpoint_and_is_one_line(world, limit, tmp_path):
    done = run(tmp_path, commands(world)["debias"], limit=limit)
    check_error(done.returncode, done.stderr, r"File too large")
    check_files_are_whole(tmp_path)
    assert not (tmp_path / "fair.pt").exists()
    assert not list(tmp_path.rglob(".*.tmp"))


def check_error(code: int, said: str, *parts: str) -> None:
    errors = [line for line in said.splitlines() if line.startswith("bmft: error: ")]
    assert code == 4
    assert len(errors) == 1, said
    assert "Traceback" not in said
    assert "a bug in bmft" not in said
    assert all(part in said for part in parts), said


def damaged(world: Path, folder: Path, damage: Any) -> tuple[Path, str]:
    """A manifest in which the last row of fit names an image that `damage` was done to."""
    rows = pd.read_csv(world / "manifest.csv")
    last = rows.index[rows["split"] == "fit"][-1]
    image = folder / "damaged.png"
    image.write_bytes((world / rows.loc[last, "path"]).read_bytes())
    damage(image)
    rows.loc[last, "path"] = str(image)
    rows.to_csv(folder / "set.csv", index=False)
    return folder / "set.csv", image.name


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def made_empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_size(path: Path) -> None:
    Image.fromarray(np.zeros((9, 17, 3), np.uint8)).save(path)


@pytest.mark.parametrize("damage", [cut_short, made_empty, of_another_size, Path.unlink])
def test_an_image_that_cannot_be_used_is_named_and_nothing_is_written(bmft, world, tmp_path, capsys, damage):
    manifest, image = damaged(world, tmp_path, damage)
    code = bmft("debias", *options(world, manifest=manifest), "--out", "fair.pt")
    check_error(code, capsys.readouterr().err, image)
    assert not (tmp_path / "fair.pt").exists()


@pytest.mark.parametrize("value", ["inf", "maybe", "0.5"])
def test_a_label_that_is_none_is_named_and_nothing_is_written(bmft, world, tmp_path, capsys, value):
    rows = pd.read_csv(world / "manifest.csv", dtype=str)
    rows.loc[rows.index[rows["split"] == "fit"][2], "label"] = value
    rows.to_csv(tmp_path / "set.csv", index=False)
    code = bmft("debias", *options(world, manifest=tmp_path / "set.csv"), "--out", "fair.pt")
    check_error(code, capsys.readouterr().err, "label")
    assert not (tmp_path / "fair.pt").exists()


def test_an_npz_of_images_with_nan_is_refused(bmft, world, tmp_path, capsys):
    rows = pd.read_csv(world / "manifest.csv").drop(columns="path")
    rows.to_csv(tmp_path / "set.csv", index=False)
    images = np.full((len(rows), 32, 32, 3), 0.5, np.float32)
    images[7, 3, 3, 0] = np.nan
    np.savez(tmp_path / "set.npz", images=images)
    code = bmft("debias", *options(world, manifest=tmp_path / "set.npz"), "--out", "fair.pt")
    check_error(code, capsys.readouterr().err, "set.npz")
    assert not (tmp_path / "fair.pt").exists()


def test_a_weight_that_is_nan_is_named_and_nothing_is_written(bmft, world, tmp_path, capsys):
    content = torch.load(world / "biased.pt", weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name].view(-1)[0] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    code = bmft("debias", *options(world, checkpoint=tmp_path / "nan.pt"), "--out", "fair.pt")
    check_error(code, capsys.readouterr().err, name)
    assert not (tmp_path / "fair.pt").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_checkpoint_cut_short_is_named_and_nothing_is_written(bmft, world, tmp_path, capsys, share):
    whole = (world / "biased.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
    code = bmft("debias", *options(world, checkpoint=tmp_path / "cut.pt"), "--out", "fair.pt")
    check_error(code, capsys.readouterr().err, "cut.pt")
    assert not (tmp_path / "fair.pt").exists()


def test_a_file_cut_short_is_noticed_here(tmp_path):
    torch.save({"a": torch.zeros(50)}, tmp_path / "a.pt")
    check_files_are_whole(tmp_path)
    cut_short(tmp_path / "a.pt")
    with pytest.raises(RuntimeError):
        check_files_are_whole(tmp_path)
