"""Every table: python -m benchmarks [NAME ...]"""

import subprocess
import sys

from benchmarks.common import HERE

NAMES = (
    "demo",
    "first_use",
    "speed",
    "scale",
    "ham10000",
    "choice_on_cuts",
    "divisions",
    "small_sets",
    "mask_study",
    "search",
    "search_speed",
    "vit_search",
    "compare_ham10000",
    "many_groups",
    "limit",
    "precision",
    "gpu",
    "report_speed",
    "interval_coverage",
    "gate_simulation",
    "bootstrap_speed",
)


def main() -> int:
    chosen = sys.argv[1:] or NAMES
    if unknown := [name for name in chosen if name not in NAMES]:
        print(f"no benchmark {unknown[0]!r}: there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in chosen:
        print(f"\n## {name}\n", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent, check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
