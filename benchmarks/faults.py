"""What is left after a fault, and whether the run goes on from there: python -m benchmarks.faults [--quick]

A small network on generated images. Every run is a fork of this process, which has imported everything, so that a
kill meets the work and not the start of Python. A fault is counted against bmft when something half-written lies under
an output's name, when its message is not one clear line with the contract's exit code, or when the resumed run does
not end with the bytes of the undisturbed one.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has only the thread that made it

import argparse
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.common import footer, table

import torch  # isort: skip
import bmft as library
from bmft.comparison import runner as compare  # noqa: F401  (so that no fork imports what they need)
from bmft.data import load_manifest
from bmft.datasets import train_demo_model, write_demo
from bmft_cli.main import main as bmft

RUNTIME, IMAGES = 4, 800


@dataclass(frozen=True)
class Done:
    """How a run ended: its exit code (minus the signal that ended it), what it said, how long it took."""

    code: int
    said: str
    seconds: float

    @property
    def one_clear_line(self) -> bool:
        """Whether it ended with one line of error and no traceback."""
        errors = [line for line in self.said.splitlines() if line.startswith("bmft: error: ")]
        return len(errors) == 1 and "Traceback" not in self.said and "a bug in bmft" not in self.said


def forked(work: Callable[[], int], folder: Path, kill_after: float | None = None, limit: int | None = None) -> Done:
    """Run `work` in a fork in that folder; killed after so many seconds, with files limited to so many bytes."""
    reads, writes = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reads)
        os.dup2(writes, 1)
        os.dup2(writes, 2)
        os.chdir(folder)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os._exit(work())
    os.close(writes)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with open(reads, errors="replace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return Done(os.waitstatus_to_exitcode(status), said, time.monotonic() - start)


@dataclass
class World:
    """A folder with a biased checkpoint and its manifest, and what undisturbed runs made of them."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> "World":
        def prepare() -> int:
            manifest = write_demo(folder, IMAGES, 0)
            archive = load_manifest(manifest, target="label", sensitive="skin", split_column="split", split="train")
            torch.save({"state_dict": train_demo_model(archive, 0).state_dict()}, folder / "biased.pt")
            return 0

        done = forked(prepare, folder)
        if done.code:
            raise RuntimeError(f"the generated set could not be made: {done.said}")
        return cls(folder)

    @property
    def manifest(self) -> Path:
        return next(self.folder.glob("*.csv"))

    def options(self, checkpoint: Path | None = None, manifest: Path | None = None) -> list[str]:
        return [
            str(checkpoint or self.folder / "biased.pt"),
            "--data",
            str(manifest or self.manifest),
            "--label",
            "label",
            "--sensitive",
            "skin",
            "--split-column",
            "split",
            "--arch",
            "bmft.datasets.demo:build_model",
            "--images",
            str(self.folder),
            "--device",
            "cpu",
        ]

    def commands(self) -> dict[str, list[str]]:
        """The long jobs, each with what it needs to go on after a kill."""
        return {
            "debias": [
                "debias",
                *self.options(),
                "--out",
                "fair.pt",
                "--report",
                "report",
                "--keep",
                "last",
                "--epochs",
                "4,2",
                "--set",
                "path=[0.5, 1.0]",
            ],
            "search": [
                "search",
                *self.options(),
                "--out",
                "fair.pt",
                "--report",
                "report",
                "--trials",
                "4",
                "--epochs",
                "1,1",
                "--seed",
                "0",
            ],
            "compare": [
                "compare",
                *self.options(),
                "--report",
                "report",
                "--methods",
                "bmft,head,dfr",
                "--seeds",
                "1",
                "--epochs",
                "1,1",
                "--jobs",
                "1",
            ],
        }


def outputs(folder: Path, command: str) -> dict[str, Any]:
    """What a run promises to give alike every time: weights to the byte, figures without the time they took."""
    found: dict[str, Any] = {}
    for name in ("fair.pt", "fair.patch.safetensors"):
        if (folder / name).exists():
            found[name] = (folder / name).read_bytes()
    kept = folder / "report" / ("compare.json" if command == "compare" else "report.json")
    if kept.exists():
        found[kept.name] = _without_seconds(json.loads(kept.read_text()))
    return found


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_seconds(v) for k, v in value.items() if "seconds" not in k and k not in _NOT_THE_SAME}
    return [_without_seconds(entry) for entry in value] if isinstance(value, list) else value


_NOT_THE_SAME = ("search",)  # a search's own account counts the trial that was lost


def half_written(folder: Path, whole: dict[str, Any], command: str) -> int:
    """How many files under an output's name are there and not whole."""
    bad = 0
    for path in [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]:
        try:
            if path.suffix == ".pt":
                torch.load(path, weights_only=True)
            elif path.name.endswith(".json"):
                json.loads(path.read_text())
            elif path.name.endswith(".patch.safetensors"):
                library.WeightPatch.load(path)
            elif path.suffix == ".html":
                bad += not path.read_text().rstrip().endswith("</html>")
        except Exception:  # noqa: BLE001 whatever it is, the file is not whole
            bad += 1
    return bad


Row = tuple[str, int, int, int, str]  # fault, runs, half-written, unclear, resumed


def kills(world: World, command: str, times: int, draw: random.Random) -> Row:
    """Kill the command at random moments, then go on."""
    arguments = world.commands()[command]
    with tempfile.TemporaryDirectory() as name:
        undisturbed = forked(lambda: bmft(arguments), Path(name))
        whole = outputs(Path(name), command)
    if undisturbed.code not in (0, 1):
        raise RuntimeError(f"{command} fails undisturbed: {undisturbed.said}")
    half = unclear = same = 0
    for _ in range(times):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            forked(lambda: bmft(arguments), folder, kill_after=draw.uniform(0, undisturbed.seconds))
            half += half_written(folder, whole, command)
            again = [*arguments, *(["--resume"] if command == "debias" else [])]
            done = forked(lambda: bmft(again), folder)
            unclear += done.code != undisturbed.code
            same += outputs(folder, command) == whole
    return f"{command} killed (SIGKILL) at a random moment", times, half, unclear, f"{same} of {times}"


def refused(name: str, runs: Iterator[tuple[Path, Done]]) -> Row:
    """Runs that have to end with one clear line, exit code 4 and nothing half-written."""
    count = half = unclear = 0
    for folder, done in runs:
        count += 1
        half += half_written(folder, {}, "debias")
        unclear += not (done.code == RUNTIME and done.one_clear_line)
        if not (done.code == RUNTIME and done.one_clear_line):
            print(f"{name}: exit {done.code}: {done.said[-500:]}", file=sys.stderr)
    return name, count, half, unclear, "-"


def full_disk(world: World) -> Iterator[tuple[Path, Done]]:
    for limit in (0, 1_000, 30_000, 100_000):
        with tempfile.TemporaryDirectory() as name:
            yield Path(name), forked(lambda: bmft(world.commands()["debias"]), Path(name), limit=limit)


def bad_images(world: World, damage: Callable[[Path], None]) -> Iterator[tuple[Path, Done]]:
    for row in (0, IMAGES // 2, IMAGES - 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            copy = folder / "set"
            shutil.copytree(world.folder, copy)
            damage(copy / pd.read_csv(world.manifest)["path"][row])
            options = [str(copy) if value == str(world.folder) else value for value in world.commands()["debias"]]
            if pd.read_csv(world.manifest)["split"][row] == "train":  # no row of a debiasing: measure it
                options = ["audit", *options[1 : options.index("--device") + 2], "--test", "train"]
            yield folder, forked(lambda: bmft(options), folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_size(path: Path) -> None:
    Image.fromarray(np.zeros((9, 17, 3), np.uint8)).save(path)


def nan_pixel(path: Path) -> None:
    values = np.full((28, 28), 0.5, np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(path, "TIFF")


def nan_weights(world: World) -> Iterator[tuple[Path, Done]]:
    for name in ("head.weight", None):
        with tempfile.TemporaryDirectory() as where:
            folder = Path(where)
            content = torch.load(world.folder / "biased.pt", weights_only=True)
            state = content["state_dict"]
            state[name if name in state else next(iter(state))].flatten()[0] = float("nan")
            torch.save(content, folder / "nan.pt")
            options = ["debias", *world.options(folder / "nan.pt"), "--out", "fair.pt"]
            yield folder, forked(lambda: bmft(options), folder)


def bad_labels(world: World) -> Iterator[tuple[Path, Done]]:
    for value in ("", "nan", "inf", "maybe"):
        with tempfile.TemporaryDirectory() as where:
            folder = Path(where)
            rows = pd.read_csv(world.manifest, dtype=str)
            rows.loc[rows["split"] == "fit", "label"] = [value, *rows.loc[rows["split"] == "fit", "label"][1:]]
            rows.to_csv(folder / "set.csv", index=False)
            options = ["debias", *world.options(manifest=folder / "set.csv"), "--out", "fair.pt"]
            yield folder, forked(lambda: bmft(options), folder)


def cut_checkpoints(world: World, every: int) -> Iterator[tuple[Path, Done]]:
    whole = (world.folder / "biased.pt").read_bytes()
    ends = {*range(0, 200, 40), *range(0, len(whole), every), *range(len(whole) - 200, len(whole), 40)}
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        for end in sorted(ends):
            (folder / "cut.ckpt").write_bytes(whole[:end])
            options = ["audit", *world.options(folder / "cut.ckpt")]
            yield folder, forked(lambda: bmft(options), folder)


def dead_worker(world: World) -> Iterator[tuple[Path, Done]]:
    """One of compare's two processes is killed while it works."""
    options = [*world.commands()["compare"][:-1], "2"]
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)

        def work() -> int:
            if not os.fork():
                _kill_a_child_of(os.getppid())
                os._exit(0)
            return bmft(options)

        yield folder, forked(work, folder)


def _kill_a_child_of(parent: int) -> None:
    for _ in range(600):
        time.sleep(0.1)
        if not list(Path("report/trials").glob("*.json")):
            continue  # not at work yet
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text, line = status.read_text(), (status.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if f"PPid:\t{parent}\n" in text and b"spawn_main" in line:
                os.kill(int(status.parent.name), signal.SIGKILL)
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few moments of each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    times, every = (3, 20_000) if options.quick else (20, 2_000)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        world = World.made(Path(name))
        jobs: list[Callable[[], Row]] = [
            *(partial(kills, world, command, times, draw) for command in world.commands()),
            lambda: refused("disk full (files limited to 0 to 100,000 bytes)", full_disk(world)),
            lambda: refused("an image cut short", bad_images(world, cut)),
            lambda: refused("an image of another size", bad_images(world, other_size)),
            lambda: refused("an image that is missing", bad_images(world, Path.unlink)),
            lambda: refused("NaN in an image", bad_images(world, nan_pixel)),
            lambda: refused("NaN in a weight", nan_weights(world)),
            lambda: refused("a label that is missing or no label", bad_labels(world)),
            lambda: refused("a checkpoint cut short", cut_checkpoints(world, every)),
            lambda: refused("a worker of compare that dies", dead_worker(world)),
        ]
        rows = []
        for job in jobs:
            rows.append(job())
            print(rows[-1], file=sys.stderr, flush=True)
    header = ["fault", "runs", "half-written files", "unclear endings", "resumed to the same bytes"]
    print(f"{table(header, rows)}\n\n{footer(seed=options.seed, data=f'generated, {IMAGES} images')}")


if __name__ == "__main__":
    main()
