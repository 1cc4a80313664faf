"""What the first answer costs, against the packages it cannot do without: python -m benchmarks.first_use

The shortest of several runs in turn, each in a fresh process, since whatever else the machine does only ever adds.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import facts

REPETITIONS = 7
# A start of Python is hundredths of a second, of which another process easily adds half: more often, in turn.
QUICK, QUICKLY = ("python", "import bmft"), 8
BASES = {
    "python": ("-c", "pass"),
    "pandas, scipy.stats": ("-c", "import pandas, scipy.stats"),
    "torch, torchvision": ("-c", "import torch, torchvision"),
}
# What is run -> the base it is measured by, and at most how many times that it may take.
BOUNDS = {
    "import bmft": ("python", 1.2),
    "bmft plan": ("pandas, scipy.stats", 2.5),
    "bmft patch show": ("pandas, scipy.stats", 2.5),
    "bmft gate --predictions": ("pandas, scipy.stats", 2.5),
    "bmft audit --predictions": ("pandas, scipy.stats", 2.5),
    "bmft audit --predictions --report": ("pandas, scipy.stats", 2.5),
    "bmft inspect": ("torch, torchvision", 1.5),
}


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """The arguments of Python for each of `BOUNDS`, with small files to read in `folder`."""
    write_files(folder)
    cli, table = ("-m", "bmft_cli"), ("--predictions", str(folder / "p.csv"))
    return {
        "import bmft": ("-c", "import bmft"),
        "bmft plan": (*cli, "plan", "--tolerance", "0.1", "--rate", "0.8"),
        "bmft patch show": (*cli, "patch", "show", str(folder / "p.safetensors")),
        "bmft gate --predictions": (*cli, "gate", *table, "--policy", str(folder / "p.toml")),
        "bmft audit --predictions": (*cli, "audit", *table, "--sensitive", "sex"),
        "bmft audit --predictions --report": (
            *(*cli, "audit", *table, "--sensitive", "sex"),
            *("--report", str(folder / "r"), "--json", str(folder / "a.json")),
        ),
        "bmft inspect": (*cli, "inspect", str(folder / "model.pt")),
    }


def write_files(folder: Path) -> None:
    """Predictions of 600 rows, a policy that they pass, a checkpoint and a patch for it."""
    import torch
    from torchvision.models import shufflenet_v2_x0_5

    from bmft.checkpoints import WeightPatch

    rng = np.random.default_rng(0)
    with (folder / "p.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["y_true", "y_score", "sex"])
        for label, group in zip(rng.integers(0, 2, 600), rng.integers(0, 2, 600), strict=True):
            rows.writerow([label, np.clip(0.2 + 0.6 * label + rng.normal(0, 0.15), 0, 1), "fm"[group]])
    (folder / "p.toml").write_text(
        '[[check]]\nmetric = "true_positive_rate"\nsensitive = ["sex"]\nmax_difference = 0.2\n'
    )
    state = shufflenet_v2_x0_5(num_classes=1).state_dict()
    torch.save(state, folder / "model.pt")
    WeightPatch.between(state, {**state, "fc.bias": state["fc.bias"] + 1}).save(folder / "p.safetensors")


def measure(repetitions: int = REPETITIONS) -> dict[str, float]:
    """Seconds of each base and each of `BOUNDS`."""
    with tempfile.TemporaryDirectory() as name:
        runs = BASES | commands(Path(name))
        found = dict.fromkeys(runs, float("inf"))
        for _ in range(repetitions):
            for what, arguments in [*runs.items(), *((what, runs[what]) for what in QUICK * QUICKLY)]:
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], capture_output=True, check=True, cwd=name)
                found[what] = min(found[what], time.perf_counter() - start)
    return found


def main() -> None:
    seconds = measure()
    ratios = {what: seconds[what] / seconds[base] for what, (base, _) in BOUNDS.items()}
    print("| command | seconds | of | times | at most |\n|---|---|---|---|---|")
    for what, (base, most) in BOUNDS.items():
        print(f"| {what} | {seconds[what]:.2f} | {base} ({seconds[base]:.2f}) | {ratios[what]:.2f} | {most} |")
    print(json.dumps({"benchmark": "first_use", "seconds": seconds, "ratios": ratios, **facts()}))
    if over := [what for what, (_, most) in BOUNDS.items() if ratios[what] > most]:
        sys.exit(f"over the bound: {', '.join(over)}")


if __name__ == "__main__":
    main()
