"""What small debiasing sets give on rows that chose nothing: python -m benchmarks.small_sets --cuts 0 1 2

The cuts of benchmarks/choice_on_cuts.py; of the rows to fit only some are used, whole lesions, in equal shares of every
group and label, the smaller sets being part of the larger ones. Each run's other rows are divided as often as --times
says into rows that choose and rows that measure (benchmarks/divisions.py), all of those that choose being used, or as
small a share of them as of the rows to fit. benchmarks/results/small_sets.json has the table, too.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.choice_on_cuts import PARTS, cut, measured, rows, told
from benchmarks.common import HERE, SHARED, cached, facts, footer, table
from benchmarks.divisions import KEPT, all_divided
from bmft.data import GroupedData

SIZES = (200, 400, 800, 1400)
Run = Mapping[str, Any]


def some_of(fit: GroupedData, size: int, seed: int) -> GroupedData:
    """About `size` rows of whole lesions, in every group and label the same share of what there is."""
    lesions, first, of = np.unique(np.asarray(fit.clusters), return_index=True, return_inverse=True)
    cells = np.stack([fit.groups[:, 0].numpy(), fit.targets.numpy()], 1)[first]
    order = np.random.default_rng(2000 + seed).permutation(len(lesions))
    place = np.empty(len(lesions))  # of a lesion in its cell, from 0 to 1
    for cell in np.unique(cells, axis=0):
        own = order[(cells[order] == cell).all(1)]
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    counts = np.bincount(of)
    way = np.lexsort((order, place))
    taken = way[: int(np.abs(np.cumsum(counts[way]) - size).argmin()) + 1]
    return fit.subset(torch.from_numpy(np.isin(of, taken)))


def cells_of(data: GroupedData) -> dict[str, int]:
    """Rows of each group and label, as in ``"<60, 1"``."""
    (attribute,) = data.attributes
    groups, targets = data.groups[:, 0], data.targets
    return {
        f"{group}, {label}": int(((groups == number) & (targets == label)).sum())
        for number, group in enumerate(attribute.groups)
        for label in (0, 1)
    }


def small(attribute: str, seed: int, size: int) -> dict[str, Any]:
    """One training; a cut's, where all its rows are wanted."""
    fit, choose, third = cut(rows(attribute), seed)
    of = len(fit)
    if size < of:
        fit = some_of(fit, size, seed)
        told(fit, choose, third, config={}, seed=seed)
    else:
        key = {"attribute": attribute, "cut": seed, "preset": "default"}
        cached("choice_on_cuts", key, partial(measured, attribute, seed, "default"))
    others = {cell: count + cells_of(third)[cell] for cell, count in cells_of(choose).items()}
    run = f"{attribute}_{seed}_{len(fit)}"
    return {"run": run, "rows": len(fit), "of": of, "cells": cells_of(fit), "others": others}


def summed_up(runs: Sequence[Run], times: int, whole: bool) -> dict[str, Any]:
    """A row of the curve: means over all divisions of these runs, and how far they spread."""
    found: list[Run] = []
    for run in runs:
        share = 1.0 if whole else min(1.0, run["rows"] / run["of"])
        found += all_divided(KEPT / f"{run['run']}.npz", times, share)

    def each(key: str) -> np.ndarray:
        return np.array([one[key] for one in found], float)

    words = [one["word"] for one in found]
    choosing = PARTS[1] / (1 - PARTS[0]) * share
    return {
        "rows_to_choose": "all" if whole else "in proportion",
        "rows": round(float(np.mean([run["rows"] for run in runs]))),
        "smallest_cell": round(float(np.mean([min(run["cells"].values()) for run in runs]))),
        "smallest_cell_to_choose": round(choosing * float(np.mean([min(run["others"].values()) for run in runs]))),
        "divisions": len(found),
        "accepted": round(float(each("accepted").mean()), 3),
        "words": {word: round(words.count(word) / len(words), 3) for word in ("shown", "likely", "none")},
        "before": round(float(each("before").mean()), 4),
        "claimed": round(float(each("claimed").mean()), 4),
        "reduction": round(float(each("reduction").mean()), 4),
        "reduction_sd": round(float(each("reduction").std()), 4),
        "larger_gap": round(float((each("reduction") < 0).mean()), 3),
        "within": round(float(each("within").mean()), 4),
        "worst": round(float(each("worst").mean()), 4),
    }


def line(row: Run) -> list[Any]:
    """One row of the table."""
    return [
        row["attribute"],
        row["rows"],
        row["smallest_cell"],
        row["rows_to_choose"],
        ", ".join(f"{word} {share:.0%}" for word, share in row["words"].items() if share),
        f"{row['before']:.3f} -> {row['before'] - row['reduction']:.3f}",
        f"{row['reduction'] / row['before']:.0%} (sd of the reduction {row['reduction_sd']:.3f})",
        f"{row['larger_gap']:.0%}",
        f"{row['within']:+.4f}, {row['worst']:+.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--attributes", nargs="*", default=["age_ge60", "sex"])
    parser.add_argument("--times", type=int, default=20, help="divisions of each run")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED} is missing: set BMFT_SHARED to the folder that holds data/ and models/")
    curve = []
    for attribute in options.attributes:
        for size in options.sizes:
            runs = []
            for seed in options.cuts:
                key = {"attribute": attribute, "cut": seed, "size": size}
                runs.append(cached("small_sets", key, partial(small, attribute, seed, size)))
                print(json.dumps({**key, **runs[-1]}), flush=True)
            of = {"attribute": attribute, "fit_rows": size, "cuts": options.cuts}
            choosing = (True, False) if min(run["rows"] / run["of"] for run in runs) < 1 else (True,)
            curve += [{**of, **summed_up(runs, options.times, whole)} for whole in choosing]
    found = {"data": "ham10000-64, fit + select", "model": "ResNet-18", "commit": facts()["commit"], "curve": curve}
    for path in (HERE / "results/small_sets.json", HERE.parent / "bmft/gate/small_sets.json"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    header = ["attribute", "fit rows", "in the smallest cell", "rows to choose", "evidence", "gap on the third part"]
    header += ["smaller by", "larger gap in", "within, worst group's AUC"]
    made = footer(cuts=options.cuts, divisions=options.times, data=found["data"])
    print(f"\n{table(header, map(line, curve))}\n\n{made}")


if __name__ == "__main__":
    main()
