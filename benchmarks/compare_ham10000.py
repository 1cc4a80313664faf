"""`bmft compare` on the shared HAM10000 checkpoint, by age and by sex: python -m benchmarks.compare_ham10000

Every method, fit on the fit split, chosen and measured on the select split (so a little optimistic; the test split is
not used here). Finished trials are kept under benchmarks/cache/compare_ham10000 and not run again.
"""

import argparse
import json
import time

from benchmarks.common import HERE, SHARED, facts, footer, table
from bmft.checkpoints import load_checkpoint
from bmft.comparison import Budget, Comparison, MethodRow, World, compare, write_comparison
from bmft.data import load_manifest

FIGURES = {
    "gap": "mean gap",
    "equalized_odds_difference": "larger gap",
    "roc_auc": "AUC",
    "worst_group_roc_auc": "worst group's AUC",
    "balanced_accuracy": "balanced accuracy",
}


def world(attribute: str) -> World:
    folder = SHARED / "data/ham10000-64"
    fit, select = (
        load_manifest(
            folder / "metadata.csv",
            target="label",
            sensitive=attribute,
            split_column="split",
            split=split,
            cluster="lesion_id",
            image_size=64,
            normalize="0.76,0.55,0.57/0.14,0.15,0.17",
        )
        for split in ("fit", "select")
    )
    return World(load_checkpoint(SHARED / "models/ham10000_resnet18.pt"), fit, select, None)


def row(line: MethodRow) -> list[str]:
    cells = []
    for name in FIGURES:
        figure = line.figures.get(name)
        ends = figure["over_seeds"] if figure else None
        spread = f" ± {(ends[1] - ends[0]) / 2:.3f}" if ends else ""
        cells.append(f"{figure['mean']:.3f}{spread}" if figure else "-")
    cost = [f"{100 * line.moved:.1f} %"]
    if line.seeds is not None:
        cost += [f"{line.accepted}/{line.seeds}", f"{line.image_passes:.0f}", f"{line.seconds:.0f}"]
    needs = line.kind if line.kind in ("attribute at inference", "extra head") else ""
    name = f"{line.method} ({needs})" if needs else line.method
    return [name, *cells, *cost, *[""] * (4 - len(cost))]


def show(attribute: str, found: Comparison, seeds: int) -> None:
    header = [f"by {attribute}", *FIGURES.values(), "weights moved", "accepted", "image-passes", "seconds"]
    print(f"\n{table(header, [row(line) for line in [found.untouched, *found.rows]])}\n")
    print("\n".join(found.verdict()))
    print(f"\n± is half the 95 % interval over seeds. {footer(seeds=seeds, data='ham10000-64, select split')}\n")
    for line in found.rows:
        print(json.dumps({"attribute": attribute, **line.to_dict(), "facts": facts()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tuning", type=int, default=2)
    parser.add_argument("--epochs", type=int, nargs=2, default=[3, 5])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--attributes", nargs="*", default=["age_ge60", "sex"])
    options = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: the data are not at {SHARED} (set BMFT_SHARED)")
        return
    budget = Budget(tuple(options.epochs), tuning=options.tuning, seeds=options.seeds)
    for attribute in options.attributes:
        folder = HERE / "cache" / "compare_ham10000" / attribute
        at_hand, start = len(list(folder.glob("trials/*"))), time.perf_counter()
        found = compare(
            world(attribute), methods=options.methods, budget=budget, folder=folder / "trials", jobs=options.jobs
        )
        minutes = (time.perf_counter() - start) / 60
        write_comparison(found, folder)
        show(attribute, found, options.seeds)
        print(f"{minutes:.1f} minutes with --jobs {options.jobs}; trials at hand from earlier runs: {at_hand}")


if __name__ == "__main__":
    main()
