"""`bmft demo` for seeds 0 to 4, measured on the synthetic test split: python -m benchmarks.demo"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import cached, footer, table


def measure(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bmft_cli", "demo", "--out", folder, "--seed", str(seed), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = json.loads((Path(folder) / "report.json").read_text())
    sides = {}
    for side in ("before", "after"):
        ((attribute, gaps),) = report[side]["gaps"].items()
        groups = report[side]["by_group"][attribute].values()
        sides[side] = {
            "mean gap": gaps["average_odds_difference"],
            "larger gap": gaps["equalized_odds_difference"],
            "auc": [group["roc_auc"] for group in groups],
            "false positive rates": [group["false_positive_rate"] for group in groups],
        }
    return {"exit": done.returncode, "word": report["evidence"], "seconds": report["seconds"]["total"], **sides}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    rows = []
    for seed in range(parser.parse_args().seeds):
        result = cached("demo", {"seed": seed}, lambda: measure(seed))
        before, after = result["before"], result["after"]
        gaps = [f"{before[gap]:.3f} -> {after[gap]:.3f}" for gap in ("mean gap", "larger gap")]
        less = [f"{100 * (1 - after[gap] / before[gap]):.0f} %" for gap in ("mean gap", "larger gap")]
        change = np.subtract(after["auc"], before["auc"])
        rates = [", ".join(f"{rate:.2f}" for rate in side["false positive rates"]) for side in (before, after)]
        within = f"{change.mean():+.3f}, {change.min():+.3f}"
        rows.append([seed, result["word"], *gaps, *less, within, " -> ".join(rates), f"{result['seconds']:.0f}"])
    header = ["seed", "evidence", "mean gap", "larger gap", "mean gap less by", "larger gap less by"]
    header += ["mean, worst change of the groups' AUCs", "false positive rate of each group", "seconds"]
    print(f"{table(header, rows)}\n\n{footer(data='generated, test split')}")


if __name__ == "__main__":
    main()
