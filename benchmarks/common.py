"""What every benchmark shares: pinned threads, the facts of the run, results kept as JSON lines, Markdown tables."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # must be set before torch is imported

import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("BMFT_SHARED", HERE.parent.parent / "shared"))
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
torch.set_num_threads(THREADS)


def facts() -> dict[str, Any]:
    """Commit, device, threads and versions: what a figure means nothing without."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return {
        "commit": git.stdout.strip() or "unknown",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {THREADS} threads",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": version("torch"),
        "captum": version("captum"),
    }


def cached(name: str, key: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result for `key`, from benchmarks/cache/NAME.jsonl if this code measured it before, so that a run resumes."""
    key = {**key, "code": _code(name)}
    path = HERE / "cache" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for line in lines:
        if line["key"] == key:
            return dict(line["result"])
    result = measure()
    with path.open("a") as file:
        file.write(json.dumps({"key": key, "result": result, "facts": facts()}) + "\n")
    return result


def _code(name: str) -> str:
    """A digest of what a result comes from: the package and the benchmark."""
    digest = hashlib.sha256(version("torch").encode())
    for path in sorted([*(HERE.parent / "bmft").rglob("*.py"), HERE / f"{name}.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def spread_answers(layer: nn.Linear, logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Change an untrained network's head of one output, which says the same of everyone: its answers get apart.

    They lie on both sides of the threshold, those of positives above: the other way round the classes look swapped.
    """
    spread, positive = logits.std(), targets[: len(logits)].bool()
    if logits[positive].mean() < logits[~positive].mean():
        spread = -spread
    layer.bias.copy_((layer.bias - logits.median()) / spread)
    layer.weight.div_(spread)


def mean_and_spread(values: Iterable[float]) -> str:
    """Mean and standard deviation over seeds, as the tables print them."""
    array = np.array(list(values), dtype=float)
    return f"{array.mean():.3f} ± {array.std(ddof=1):.3f}" if len(array) > 1 else f"{array.mean():.3f}"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def footer(**more: Any) -> str:
    """The line under a table that says how it was made."""
    return ", ".join(f"{name} {value}" for name, value in {**facts(), **more}.items())
