"""What small debiasing sets give on rows that chose nothing: python -m benchmarks.small_sets --cuts 0 1 2

The cuts of benchmarks/choice_on_cuts.py; of the rows to fit only some are used, whole lesions, in equal shares of every
group and label, the smaller sets being part of the larger ones. What chooses and what measures stays whole. Besides the
table, benchmarks/results/small_sets.json keeps a row per attribute and size, which `bmft plan --debias` reads.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.choice_on_cuts import cut, measured, rows, told
from benchmarks.common import HERE, SHARED, cached, footer, table
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
    """One run: a cut's, where all its rows are wanted."""
    fit, choose, third = cut(rows(attribute), seed)
    if size < len(fit):
        fit = some_of(fit, size, seed)
        found = told(fit, choose, third, config={}, seed=seed)
    else:
        key = {"attribute": attribute, "cut": seed, "preset": "default"}
        found = cached("choice_on_cuts", key, partial(measured, attribute, seed, "default"))
    return {**found, "rows": len(fit), "cells": cells_of(fit), "choose_cells": cells_of(choose)}


def summed_up(attribute: str, size: int, cuts: Sequence[int], runs: Sequence[Run]) -> dict[str, Any]:
    """A row of the curve: means over cuts, and what they spread."""

    def each(key: str) -> np.ndarray:
        return np.array([run[key] for run in runs], float)

    words = [run["word"] for run in runs]
    return {
        "attribute": attribute,
        "fit_rows": size,
        "rows": round(float(each("rows").mean())),
        "smallest_cell": round(float(np.mean([min(run["cells"].values()) for run in runs]))),
        "smallest_cell_to_choose": round(float(np.mean([min(run["choose_cells"].values()) for run in runs]))),
        "cuts": list(cuts),
        "accepted": round(float(each("accepted").mean()), 3),
        "words": {word: words.count(word) for word in ("shown", "likely", "none")},
        "before": round(float(each("before").mean()), 4),
        "reduction": round(float(each("reduction").mean()), 4),
        "reduction_sd": round(float(each("reduction").std(ddof=1)), 4) if len(runs) > 1 else None,
        "larger_gap": int((each("reduction") < 0).sum()),
        "within": round(float(each("within").mean()), 4),
        "worst": round(float(each("worst").mean()), 4),
    }


def line(row: Mapping[str, Any]) -> list[Any]:
    """One row of the table."""
    spread = "" if row["reduction_sd"] is None else f" (sd {row['reduction_sd']:.3f})"
    n = len(row["cuts"])
    return [
        row["attribute"],
        row["rows"],
        row["smallest_cell"],
        f"{row['accepted'] * n:.0f} of {n}",
        ", ".join(f"{count} {word}" for word, count in row["words"].items() if count),
        f"{row['before']:.3f} -> {row['before'] - row['reduction']:.3f}",
        f"{100 * row['reduction'] / row['before']:.0f} %{spread}",
        f"{row['larger_gap']} of {n}",
        f"{row['within']:+.4f}, {row['worst']:+.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--attributes", nargs="*", default=["age_ge60", "sex"])
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
            curve.append(summed_up(attribute, size, options.cuts, runs))
    found = {"data": "ham10000-64, fit + select", "model": "ResNet-18", "curve": curve}
    (HERE / "results/small_sets.json").write_text(json.dumps(found, indent=1) + "\n")
    header = ["attribute", "fit rows", "in the smallest cell", "accepted", "words", "gap on the third part"]
    header += ["smaller by", "larger gap", "within, worst group's AUC"]
    print(f"\n{table(header, map(line, curve))}\n\n{footer(cuts=options.cuts, data=found['data'])}")


if __name__ == "__main__":
    main()
