"""Damaged and forged files against every reader, a million in all: python -m benchmarks.fuzz (needs atheris)

Each reader runs in a process of its own under libFuzzer (pip install atheris), from small good files whose bytes,
headers and pickles are changed. A reader may refuse with one of bmft's own errors and nothing else; it may run no code
and open nothing for writing: Python's audit events are watched while it reads.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common import footer, table

import torch  # isort: skip  (the threads are pinned by benchmarks.common)
from safetensors.torch import save

from bmft import WeightMask, WeightPatch
from bmft.checkpoints import read_checkpoint
from bmft.errors import BmftError
from bmft.gate import parse_policy

INPUTS = {"policy": 500_000, "mask": 250_000, "patch": 250_000, "checkpoint": 100_000}
# What a reader of data has no business to raise: running programs or code, writing, deleting, connecting.
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "os.remove",
    "os.rename",
    "shutil.",
    "socket.connect",
    "ctypes.dlopen",
    "exec",
    "os.mkdir",
    "os.fork",
)
# What torch itself imports when a file first names such a tensor.
LAZY = ("torch.nested._internal.ops", "torch.nested._internal.sdpa", "torch._subclasses.schema_check_mode")
POLICY = b"""[gate]
alpha = 0.05
on_inconclusive = "fail"
cluster = "patient_id"
[[check]]
metric = "true_positive_rate"
sensitive = ["sex", "age"]
intersect = true
max_difference = 0.10
[[non_inferiority]]
metric = "roc_auc"
margin = 0.02
per_group = true
[[waiver]]
check = "true_positive_rate/sex*age"
group = "female*80+"
reason = "11 patients"
"""


def good_files(reader: str, folder: Path) -> list[bytes]:
    """Small files that the reader takes."""
    state = {"fc.weight": torch.arange(4.0).reshape(2, 2), "fc.bias": torch.zeros(2)}
    other = {"fc.weight": torch.arange(4.0).reshape(2, 2) + 1, "fc.bias": torch.zeros(2)}
    path = folder / "good"
    if reader == "policy":
        return [POLICY]
    if reader == "mask":
        WeightMask({"fc.weight": torch.tensor([[True, False], [False, True]]), "fc.bias": torch.ones(2)}).save(path)
        return [path.read_bytes()]
    if reader == "patch":
        WeightPatch.between(state, other, {"method": "bmft"}).save(path)
        return [path.read_bytes()]
    kept: list[bytes] = [save(state, {"who": "me"})]
    for content in (state, {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3, "lr": 0.1}):
        for new in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=new)
            kept.append(path.read_bytes())
    return kept


def readers(path: Path) -> dict[str, Callable[[bytes], Any]]:
    """What takes the bytes of a file; all but the policy's read it from memory's own disk."""

    def from_file(read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        def put_and_read(content: bytes) -> Any:
            path.write_bytes(content)
            watching[0] = True
            return read(path)

        return put_and_read

    def policy(content: bytes) -> Any:
        watching[0] = True
        return parse_policy(content.decode("utf-8", "replace"))

    return {
        "policy": policy,
        "mask": from_file(WeightMask.load),
        "patch": from_file(WeightPatch.load),
        "checkpoint": from_file(read_checkpoint),
    }


watching = [False]


def watch(seen: list[str]) -> None:
    """Note every forbidden event, and every opening of a file to write, while a reader runs."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not watching[0]:
            return
        writes = event == "open" and isinstance(args[1], str) and any(sign in args[1] for sign in "wax+")
        # A codec of Python's own library is imported when a pickle first names it.
        imports = event == "exec" and str(getattr(args[0], "co_filename", "")).startswith(sys.base_prefix)
        if (writes or event.startswith(FORBIDDEN)) and not imports:
            seen.append(f"{event} {str(args)[:200]}")

    sys.addaudithook(hook)


def changed(content: bytes, draw: random.Random) -> bytes:
    """The same file with its inside changed: a record of an archive, or the header of safetensors."""
    if content[:2] == b"PK":
        return _rezipped(content, draw)
    if len(content) > 16 and content[8:9] == b"{":
        return _new_header(content, draw)
    return _damaged(content, draw)


def _damaged(content: bytes, draw: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(found) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            found[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del found[at : at + draw.randint(1, 8)]
        elif kind == 2:
            found[at:at] = found[draw.randrange(len(found) + 1) :][: draw.randint(1, 16)]
        else:
            found[at:at] = draw.choice([b"\x80\x04", b"cos\nsystem\n", b"\xff" * 8, b"-1", b"1e999", b'"', b"]", b"\0"])
    return bytes(found)


def _rezipped(content: bytes, draw: random.Random) -> bytes:
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
            names = old.namelist()
            target = draw.choice(names)
            for name in names:
                data = old.read(name)
                new.writestr(name, _damaged(data, draw) if name == target else data)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError, OverflowError):
        return _damaged(content, draw)
    return out.getvalue()


def _new_header(content: bytes, draw: random.Random) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    header = _damaged(content[8:end], draw)
    return len(header).to_bytes(8, "little") + header + content[end:]


def fuzz(reader: str, inputs: int, seed: int, result: Path) -> None:
    """Run one reader until it has had so many inputs; what was seen is written to `result`."""
    import atheris

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    good, read = good_files(reader, folder), readers(folder / "input")[reader]
    for content in good:
        read(content)  # also imports what is imported on first use
    for name in LAZY:
        import_module(name)
    watching[0] = False
    seen: list[str] = []
    watch(seen)
    draw, start, outcome = random.Random(seed), time.monotonic(), {"read": 0, "refused": 0}
    crashes: list[str] = []

    def finish() -> None:
        left = sorted(path.name for path in folder.iterdir() if path.name not in ("input", "good"))
        found = {"crashes": crashes, "events": seen, "files": left, "seconds": time.monotonic() - start}
        result.write_text(json.dumps({"reader": reader, **outcome, **found}))
        os._exit(0)

    def one(raw: bytes) -> None:
        content = changed(draw.choice(good), draw) if draw.random() < 0.5 else raw
        try:
            read(content)
            outcome["read"] += 1
        except BmftError:
            outcome["refused"] += 1
        except Exception as error:  # noqa: BLE001 this is what is being looked for
            if len(crashes) < 20:
                crashes.append(f"{type(error).__name__}: {error} for {content[:2000]!r}")
        finally:
            watching[0] = False
        if sum(outcome.values()) + len(crashes) >= inputs:
            finish()

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(good):
        (corpus / str(number)).write_bytes(content)
    atheris.instrument_func(one)
    atheris.Setup([sys.argv[0], f"-seed={seed + 1}", "-max_len=8192", "-verbosity=0", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", nargs="*", default=list(INPUTS), choices=list(INPUTS))
    parser.add_argument("--share", type=float, default=1.0, help="of the million inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=2, metavar=("READER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if find_spec("atheris") is None:
        print("skipped: atheris is not installed (pip install atheris)")
        return
    if options.one:
        fuzz(options.one[0], round(INPUTS[options.one[0]] * options.share), options.seed, Path(options.one[1]))
    rows = []
    for reader in options.readers:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "result.json")
            command = [
                sys.executable,
                "-m",
                "benchmarks.fuzz",
                "--one",
                reader,
                str(path),
                "--share",
                str(options.share),
                "--seed",
                str(options.seed),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not path.exists():
                print(f"{reader}: the process ended early ({done.returncode}): {done.stderr[-2000:]}")
                continue
            found = json.loads(path.read_text())
        print(json.dumps({"benchmark": "fuzz", **found}))
        files = [name for name in found["files"] if name != "corpus"]
        counts = [f"{found['read'] + found['refused']:,}", f"{found['read']:,}", len(found["crashes"])]
        rows.append([reader, *counts, len(found["events"]), len(files), f"{found['seconds']:.0f}"])
    header = [
        "reader",
        "inputs",
        "read",
        "outside bmft's errors",
        "code run or files opened to write",
        "files left",
        "seconds",
    ]
    print(f"\n{table(header, rows)}\n\n{footer(seed=options.seed)}")


if __name__ == "__main__":
    main()
