"""The search in a report: every trial, the front of gap and AUC, what mattered, what the winner tunes."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from bmft._common import humanise
from bmft.auditing import charts
from bmft.report import figures
from bmft.report.extras import MOST_BARS
from bmft.report.page import Block, Card, Cards, Folded, Section, Table
from bmft.report.svg import Caption
from bmft.report.wording import Json, count, number

_FACTS = {
    "select": "What was kept, on the selection data",
    "test": "What was kept, on the test data",
    "image_passes": "Cost in image-passes",
}


def search_section(search: Json) -> Section:
    """One card per picture the search has; only ``trials`` must be there."""
    cards = [_trials_card(search)]
    if search.get("pareto"):
        cards.append(_front_card(search["pareto"]))
    if search.get("importances"):
        cards.append(_importance_card(search["importances"]))
    if search.get("mask"):
        cards.append(_switches_card(search["mask"]))
    facts = tuple((name, _fact(search[key])) for key, name in _FACTS.items() if search.get(key) is not None)
    if None not in (search.get("select"), search.get("test")):
        facts += (("Optimism, selection minus test", number(search["select"] - search["test"], signed=True)),)
    table: tuple[Block, ...] = (Table("The search in numbers", ("What", "Value"), facts),) if facts else ()
    ends = (_finals_table(search["finals"], search.get("finals_failed", {})),) if search.get("finals") else ()
    every = Folded("Every trial as a table", (_trials_table(search["trials"]),))
    return Section("search", "The search", (*table, *ends, Cards(tuple(cards)), every))


def _fact(value: float) -> str:
    return number(value) if abs(value) <= 1 else count(value)


def _trials_card(search: Json) -> Card:
    trials: Sequence[Json] = search["trials"]
    objective = humanise(str(search.get("objective", "objective")))
    values = np.array([np.nan if trial.get("value") is None else trial["value"] for trial in trials], dtype=float)
    best = (np.fmin if search.get("direction") == "minimize" else np.fmax).accumulate(values)
    done = int(np.isfinite(values).sum())
    top = number(float(best[-1]))
    text = f"{objective}: {done} of {len(trials)} trials were completed; the best reached {top}."
    chart = partial(figures.trials, values, best, Caption("trials", "Every trial", text), y=objective)
    return Card("Every trial", text, chart)


def _trials_table(trials: Sequence[Json]) -> Table:
    rows = tuple(
        (str(trial.get("number", place)), number(trial.get("value"), 4), str(trial.get("state", "")))
        for place, trial in enumerate(trials)
    )
    return Table("Trials", ("Trial", "Value", "State"), rows)


def _finals_table(finals: Sequence[Json], failed: Mapping[str, str]) -> Table:
    rows = tuple(
        (
            str(final["name"]),
            number(final["value"], 4),
            "no" if final["harmless"] else "yes",
            count(final["image_passes"]),
            "kept" if final["kept"] else "",
        )
        for final in finals
    )
    rows += tuple((name, "–", "–", "–", f"failed: {reason}") for name, reason in failed.items())
    header = ("Run at the end", "Value on selection", "Does harm", "Image-passes", "")
    return Table("The runs at the end, of which the best is kept", header, rows)


def _front_card(front: Sequence[Json]) -> Card:
    text = f"The {len(front)} trials that no other beats in both gap and ROC AUC."
    points = [
        charts.Point(trial["gap"], trial["roc_auc"], "trial", chosen=bool(trial.get("chosen"))) for trial in front
    ]
    chart = partial(figures.tradeoff, points, Caption("front", "Pareto front", text), x="gap", y="ROC AUC")
    rows = tuple((str(trial.get("number", "")), number(trial["gap"]), number(trial["roc_auc"])) for trial in front)
    return Card("Pareto front", text, chart, Table("Trials on the front", ("Trial", "Gap", "ROC AUC"), rows))


def _importance_card(importances: Mapping[str, float]) -> Card:
    ranked = sorted(importances.items(), key=lambda item: -item[1])[:MOST_BARS]
    names, values = [name for name, _ in ranked], [value for _, value in ranked]
    text = f"Share of the variation between trials that each setting accounts for; the largest is {names[0]}."
    chart = partial(figures.bars, names, values, Caption("switches", "What mattered", text), x="importance")
    rows = tuple((name, number(value)) for name, value in ranked)
    return Card("What mattered", text, chart, Table("Importance of each setting", ("Setting", "Importance"), rows))


def _switches_card(mask: Mapping[str, Mapping[str, bool]]) -> Card:
    parts = list(dict.fromkeys(part for block in mask.values() for part in block))
    values = np.array([[float(block.get(part, np.nan)) for part in parts] for block in mask.values()])
    text = f"{int(np.nansum(values))} of {int(np.isfinite(values).sum())} components are fine-tuned (shaded)."
    caption = Caption("winner", "What the winner fine-tunes", text)
    chart = partial(figures.grid, values, list(mask), parts, caption)
    words = {True: "tuned", False: "frozen", None: "–"}
    rows = tuple((name, *(words[block.get(part)] for part in parts)) for name, block in mask.items())
    table = Table("Components by block", ("Block", *parts), rows, text_columns=1 + len(parts))
    return Card("What the winner fine-tunes", text, chart, table)
