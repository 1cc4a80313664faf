"""`bmft demo` for seeds 0 to 4, measured on the synthetic test split: python -m benchmarks.demo"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import cached, footer, table


def measure(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bmft_cli", "demo", "--out", folder, "--seed", str(seed), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = json.loads((Path(folder) / "report.json").read_text())
    sides = {}
    for side in ("before", "after"):
        gaps = next(iter(report[side]["gaps"].values()))
        sides[side] = {"gap": gaps["equalized_odds_difference"], "auc": report[side]["overall"]["roc_auc"]}
    return {"exit": done.returncode, "seconds": report["seconds"]["total"], **sides}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    rows = []
    for seed in range(parser.parse_args().seeds):
        result = cached("demo", {"seed": seed}, lambda: measure(seed))
        before, after = result["before"], result["after"]
        rows.append(
            [
                seed,
                f"{before['gap']:.3f}",
                f"{after['gap']:.3f}",
                f"{after['gap'] / before['gap']:.2f}",
                f"{before['auc']:.3f}",
                f"{after['auc']:.3f}",
                f"{result['seconds']:.0f}",
            ]
        )
    header = ["seed", "equalized-odds gap before", "after", "ratio", "AUC before", "after", "seconds"]
    print(f"{table(header, rows)}\n\n{footer(data='generated, test split')}")


if __name__ == "__main__":
    main()
