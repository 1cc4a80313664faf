"""What the trials of a comparison add up to: one row per method, with intervals, and which is best in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from bmft._common import html_table, humanise, in_words, short, with_interval
from bmft.comparison.references import REFERENCES
from bmft.comparison.trials import FIGURES, ONE_STEP, SCHEMA
from bmft.training import Limits

if TYPE_CHECKING:
    from bmft.auditing import charts

Json = Mapping[str, Any]


@dataclass(frozen=True)
class MethodRow:
    """The results of one method over its seeds; for the original model those of them that it has.

    Attributes:
        method: its name; ``"untouched"`` for the original.
        kind: what it moves, or what it needs of every new case.
        seeds: repetitions.
        accepted: in how many of them select found a result that does no harm.
        harmful: in how many of them the result does harm on the rows that everything is measured on.
        figures: figure -> ``mean``, ``over_seeds`` and ``on_data`` (intervals or None), and ``values`` of the seeds.
        change: the same of the change from the original.
        moved: share of the weights.
        image_passes, seconds: of one trial, on average.
        trials: with those that chose its learning rate.
        leakage: attribute -> ROC AUC of a linear probe.
        evaluations: site -> figures.
    """

    method: str
    kind: str
    figures: Json
    moved: float
    leakage: Json
    evaluations: Json
    seeds: int | None = None
    accepted: int | None = None
    harmful: int | None = None
    change: Json | None = None
    image_passes: float | None = None
    seconds: float | None = None
    trials: int | None = None

    def mean(self, name: str) -> float:
        """Of a figure, over the seeds; NaN without one."""
        return _number(self.figures.get(name, {}).get("mean"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what there is."""
        return {name: value for name in _IN_ORDER if (value := getattr(self, name)) is not None}


_IN_ORDER = (
    *("method", "kind", "seeds", "accepted", "harmful", "figures", "change", "moved", "image_passes", "seconds"),
    *("trials", "leakage", "evaluations"),
)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The results of every trial and the conditions they were made under.

    Attributes:
        results: one per trial, plain values, see `bmft.comparison.trials.run_trial`.
        budget: as plain values.
        missing: reference -> why it took no part.
        sensitive: the attributes compared.
        assumed: subject -> what was inferred about the model and the rows, and from where.
    """

    results: tuple[Json, ...]
    budget: Json
    limits: Limits
    missing: Mapping[str, str]
    versions: Mapping[str, str]
    sensitive: tuple[str, ...]
    assumed: Json = field(default_factory=dict)

    def __repr__(self) -> str:
        return short(f"Comparison({len(self.chosen)} methods by {', '.join(self.sensitive)}: {self.verdict()[0]})", 300)

    def _repr_html_(self) -> str:
        lines = [
            (row.method, *(_shown(row.figures.get(name)) for name in FIGURES))
            for row in (self.untouched, *self.rows)
            if row
        ]
        caption = " ".join([*self.verdict(), *in_words(self.assumed)])
        return html_table(caption, ("method", *map(humanise, FIGURES)), lines)

    def to_frame(self) -> pd.DataFrame:
        """One row per method and figure: its mean over the seeds with their interval, and how many seeds ``n``."""
        rows = [
            {
                "method": row.method,
                "metric": name,
                "value": figure["mean"],
                "low": (figure["over_seeds"] or (math.nan, math.nan))[0],
                "high": (figure["over_seeds"] or (math.nan, math.nan))[1],
                "n": row.seeds or 0,
            }
            for row in (self.untouched, *self.rows)
            if row
            for name, figure in row.figures.items()
        ]
        return pd.DataFrame(rows, columns=["method", "metric", "value", "low", "high", "n"])

    def plot(self, ax: charts.Axes | None = None) -> charts.Axes:
        """The trade-off: gap against ROC AUC of every method, 0 the untouched model, numbered as in the table.

        Args:
            ax: Matplotlib axes to draw on; by default those of a new figure.
        """
        from bmft.auditing import charts
        from bmft.report import comparison_page

        return charts.on_axes(
            charts.methods(comparison_page.spots([row.to_dict() for row in (self.untouched, *self.rows) if row])), ax
        )

    @property
    def chosen(self) -> dict[str, list[Json]]:
        """Method -> its result of every seed, which is the tuning trial with the smallest gap on select."""
        found: dict[str, dict[int, Json]] = {}
        for result in self.results:
            if "problem" in result:
                continue
            best = found.setdefault(result["method"], {}).get(result["seed"])
            if best is None or _on_select(result) < _on_select(best):
                found[result["method"]][result["seed"]] = result
        return {method: [seeds[seed] for seed in sorted(seeds)] for method, seeds in found.items()}

    @property
    def problems(self) -> dict[str, str]:
        """Method -> why it gave no result at all, or took no part."""
        failed = {r["method"]: r["problem"] for r in self.results if "problem" in r and r["method"] not in self.chosen}
        return {**failed, **self.missing}

    @property
    def untouched(self) -> MethodRow | None:
        """The original model; None where no method gave a result."""
        first = next(iter(self.chosen.values()), None)
        if first is None:
            return None
        figures = {
            name: {"mean": f["value"], "over_seeds": None, "on_data": f["interval"]}
            for name, f in first[0]["before"].items()
        }
        leakage = {name: sides["before"] for name, sides in first[0]["leakage"].items()}
        return MethodRow("untouched", "original", figures, 0.0, leakage, _elsewhere(first, "before"))

    @property
    def rows(self) -> list[MethodRow]:
        """One per method, the smallest mean gap first, references last."""
        rows = [self._row(method, results) for method, results in self.chosen.items()]
        return sorted(rows, key=lambda row: (row.method in REFERENCES, row.mean("gap")))

    @property
    def where(self) -> str:
        """What every figure was measured on, in words; empty where nothing was."""
        result = next((results[0] for results in self.chosen.values()), None)
        if result is None:
            return ""
        rows = f"measured on the {result['evaluated_on']} rows (n = {result['n']:,})"
        chose = "; they also chose the epochs and settings: expect somewhat less on new data"
        return rows + (chose if result["evaluated_on"] == "select" else "")

    def verdict(self) -> list[str]:
        """Which method is best under these conditions, in sentences; what cannot be told apart is named."""
        original = self.untouched
        if original is None:
            return ["No method gave a result, so there is nothing to compare."]
        limits = f"in most seeds no harm: {self.limits}"
        eligible = [row for row in self.rows if _harmless(row) and row.mean("gap") < original.mean("gap")]
        if not eligible:
            return [
                f"No method made the gap smaller than the untouched model's {original.mean('gap'):.3f} within the "
                f"conditions ({limits}). Keep the original, collect more fit data, or relax the conditions.",
                *self._beside(),
            ]
        best, others = eligible[0], eligible[1:]
        said = [
            f"Under these conditions ({limits}) {best.method} leaves the smallest gap: {best.mean('gap'):.3f} "
            f"against {original.mean('gap'):.3f} untouched, at ROC AUC {best.mean('roc_auc'):.3f} against "
            f"{original.mean('roc_auc'):.3f}, moving {best.moved:.1%} of the weights."
        ]
        return [*said, *self._apart(best, others), *self._beside()]

    def to_dict(self) -> dict[str, Any]:
        """The content of ``compare.json``."""
        return {
            "schema": SCHEMA,
            "sensitive": self.sensitive,
            "budget": self.budget,
            "limits": asdict(self.limits),
            "untouched": {} if self.untouched is None else self.untouched.to_dict(),
            "methods": [row.to_dict() for row in self.rows],
            "not_run": self.problems,
            "verdict": self.verdict(),
            "where": self.where,
            "trials": self.results,
            "versions": self.versions,
            "assumed": self.assumed,
        }

    def _row(self, method: str, results: Sequence[Json]) -> MethodRow:
        every = [r for r in self.results if r["method"] == method and "problem" not in r]
        first = results[0]

        def over_seeds(side: str, lowest: float = 0.0) -> Json:
            return {n: _over_seeds([r[side].get(n) for r in results], lowest) for n in FIGURES if n in first[side]}

        return MethodRow(
            method=method,
            kind=_kind(method),
            seeds=len(results),
            accepted=sum(bool(result["accepted"]) for result in results),
            harmful=sum(bool(result["harm"]) for result in results),
            figures=over_seeds("after"),
            change=over_seeds("change", -1.0),
            moved=float(np.mean([result["moved"] for result in results])),
            image_passes=float(np.mean([result["image_passes"] for result in every])),
            seconds=float(np.mean([result.get("seconds", result["wall_seconds"]) for result in every])),
            trials=len(every),
            leakage={
                name: float(np.mean([_number(r["leakage"][name]["after"]) for r in results]))
                for name in first["leakage"]
            },
            evaluations=_elsewhere(results, "after"),
        )

    def _apart(self, best: MethodRow, others: Sequence[MethodRow]) -> list[str]:
        """Paired over seeds: whose gap is larger beyond the seeds' noise, and whose is not."""
        larger: list[str] = []
        like: list[str] = []
        for row in others:
            low = _paired_low(self.chosen[best.method], self.chosen[row.method])
            (larger if low > 0 else like).append(row.method)
        said = []
        if larger:
            said.append(f"Over the seeds its gap is smaller than that of {', '.join(larger)} (paired 95 % interval).")
        if like:
            said.append(f"These seeds do not tell it from {', '.join(like)}: take the one that moves or costs least.")
        return said

    def _beside(self) -> list[str]:
        price = {
            "attribute at inference": "must be told the attribute of every new case",
            "extra head": "needs a second head that guesses the attribute of every new case",
        }
        return [
            f"{row.method} reaches {row.mean('gap'):.3f} at a balanced accuracy of "
            f"{row.mean('balanced_accuracy'):.3f}, but {price[row.kind]}."
            for row in self.rows
            if row.kind in price
        ]


def _shown(figure: Json | None) -> str:
    return with_interval(figure["mean"], figure["over_seeds"]) if figure else "-"


def _harmless(row: MethodRow) -> bool:
    """Whether it is a checkpoint that does harm in fewer than half of the seeds."""
    return row.method not in REFERENCES and 2 * (row.harmful or 0) < (row.seeds or 0)


def _kind(method: str) -> str:
    if method in REFERENCES:
        return REFERENCES[method].needs
    alone = {"head": "head", "dfr": "head", "fairprune": "pruned", "threshold": "threshold"}
    return "one step" if method in ONE_STEP else alone.get(method, "two steps")


def _on_select(result: Json) -> float:
    return _number(result.get("select", {}).get("gap"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _over_seeds(figures: Sequence[Json], lowest: float = 0.0) -> dict[str, Any]:
    """Mean over seeds; its t interval over the seeds, and the mean ends of each seed's bootstrap over the data."""
    values = np.array([_number(figure["value"]) for figure in figures])
    ends = [figure["interval"] for figure in figures if figure["interval"] is not None]
    reach = _t_interval(values)
    return {
        "mean": float(values.mean()),
        # Figures are rates: of the t interval only what is possible.
        "over_seeds": None if reach is None else np.clip(reach, lowest, 1.0).tolist(),
        "on_data": np.mean(ends, axis=0).tolist() if len(ends) == len(figures) else None,
        "values": values.tolist(),
    }


def _t_interval(values: Any) -> list[float] | None:
    """95 % interval of the mean; None for fewer than two values."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    reach = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - reach), float(values.mean() + reach)]


def _paired_low(best: Sequence[Json], other: Sequence[Json]) -> float:
    """Lower end of the mean difference of the gaps, other minus best, over the seeds both have; NaN below two."""
    gaps = [{r["seed"]: _number(r["after"]["gap"]["value"]) for r in results} for results in (best, other)]
    shared = sorted(set(gaps[0]) & set(gaps[1]))
    found = _t_interval(np.array([gaps[1][seed] - gaps[0][seed] for seed in shared]))
    return math.nan if found is None else found[0]


def _elsewhere(results: Sequence[Json], side: str) -> dict[str, Any]:
    """Site -> figure -> mean over the seeds, with intervals."""
    sites = results[0]["evaluations"]
    return {
        site: {name: _over_seeds([r["evaluations"][site][side][name] for r in results]) for name in FIGURES}
        for site in sites
    }
