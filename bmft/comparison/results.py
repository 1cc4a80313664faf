"""What the trials of a comparison add up to: one row per method, with intervals, and which is best in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from bmft._common import html_table, humanise, short, with_interval
from bmft.comparison.references import REFERENCES
from bmft.comparison.trials import FIGURES, ONE_STEP, SCHEMA
from bmft.training import Limits

if TYPE_CHECKING:
    from bmft.auditing import charts

Json = Mapping[str, Any]


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
            (row["method"], *(_shown(row["figures"].get(name)) for name in FIGURES))
            for row in (self.untouched, *self.rows)
            if row
        ]
        return html_table(" ".join(self.verdict()), ("method", *map(humanise, FIGURES)), lines)

    def to_frame(self) -> pd.DataFrame:
        """One row per method and figure: its mean over the seeds with their interval, and how many seeds ``n``."""
        rows = [
            {
                "method": row["method"],
                "metric": name,
                "value": figure["mean"],
                "low": (figure["over_seeds"] or (math.nan, math.nan))[0],
                "high": (figure["over_seeds"] or (math.nan, math.nan))[1],
                "n": row.get("seeds", 0),
            }
            for row in (self.untouched, *self.rows)
            for name, figure in row.get("figures", {}).items()
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
            charts.methods(comparison_page.spots([row for row in (self.untouched, *self.rows) if row])), ax
        )

    @property
    def chosen(self) -> dict[str, list[Json]]:
        """Method -> its result of every seed: the tuning trial with the smallest gap on select."""
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
    def untouched(self) -> dict[str, Any]:
        """The row of the original model."""
        first = next(iter(self.chosen.values()), None)
        if first is None:
            return {}
        figures = {
            name: {"mean": f["value"], "over_seeds": None, "on_data": f["interval"]}
            for name, f in first[0]["before"].items()
        }
        leakage = {name: sides["before"] for name, sides in first[0]["leakage"].items()}
        return {
            "method": "untouched",
            "kind": "original",
            "figures": figures,
            "moved": 0.0,
            "leakage": leakage,
            "evaluations": _elsewhere(first, "before"),
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One per method, the smallest mean gap first, references last."""
        rows = [self._row(method, results) for method, results in self.chosen.items()]
        return sorted(rows, key=lambda row: (row["method"] in REFERENCES, _mean(row, "gap")))

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
        if not original:
            return ["No method gave a result, so there is nothing to compare."]
        drop, group_drop = self.limits.max_auc_drop, self.limits.max_group_auc_drop
        limits = f"ROC AUC at most {drop:g} lower overall and {group_drop:g} for the worst group"
        eligible = [row for row in self.rows if self._harmless(row) and _mean(row, "gap") < _mean(original, "gap")]
        if not eligible:
            return [
                f"No method made the gap smaller than the untouched model's {_mean(original, 'gap'):.3f} within the "
                f"conditions ({limits}). Keep the original, collect more fit data, or relax the conditions."
            ]
        best, others = eligible[0], eligible[1:]
        said = [
            f"Under these conditions ({limits}) {best['method']} leaves the smallest gap: {_mean(best, 'gap'):.3f} "
            f"against {_mean(original, 'gap'):.3f} untouched, at ROC AUC {_mean(best, 'roc_auc'):.3f} against "
            f"{_mean(original, 'roc_auc'):.3f}, moving {best['moved']:.1%} of the weights."
        ]
        return [*said, *self._apart(best, others), *self._beside()]

    def to_dict(self) -> dict[str, Any]:
        """The content of ``compare.json``."""
        return {
            "schema": SCHEMA,
            "sensitive": self.sensitive,
            "budget": self.budget,
            "limits": asdict(self.limits),
            "untouched": self.untouched,
            "methods": self.rows,
            "not_run": self.problems,
            "verdict": self.verdict(),
            "where": self.where,
            "trials": self.results,
            "versions": self.versions,
            "assumed": self.assumed,
        }

    def _row(self, method: str, results: Sequence[Json]) -> dict[str, Any]:
        every = [r for r in self.results if r["method"] == method and "problem" not in r]
        return {
            "method": method,
            "kind": _kind(method),
            "seeds": len(results),
            "accepted": sum(bool(result["accepted"]) for result in results),
            "figures": {
                n: _over_seeds([r["after"].get(n) for r in results]) for n in FIGURES if n in results[0]["after"]
            },
            "change": {
                n: _over_seeds([r["change"].get(n) for r in results], -1.0)
                for n in FIGURES
                if n in results[0]["change"]
            },
            "moved": float(np.mean([result["moved"] for result in results])),
            "image_passes": float(np.mean([result["image_passes"] for result in every])),
            "seconds": float(np.mean([result.get("seconds", result["wall_seconds"]) for result in every])),
            "trials": len(every),
            "leakage": {
                name: float(np.mean([_number(r["leakage"][name]["after"]) for r in results]))
                for name in results[0]["leakage"]
            },
            "evaluations": _elsewhere(results, "after"),
        }

    def _harmless(self, row: Json) -> bool:
        if row["method"] in REFERENCES:
            return False
        limits = {"roc_auc": self.limits.max_auc_drop, "worst_group_roc_auc": self.limits.max_group_auc_drop}
        # Written so that what could not be measured is not harmless.
        return all(_mean(row, n) >= _mean(self.untouched, n) - drop for n, drop in limits.items())

    def _apart(self, best: Json, others: Sequence[Json]) -> list[str]:
        """Paired over seeds: whose gap is larger beyond the seeds' noise, and whose is not."""
        larger: list[str] = []
        like: list[str] = []
        for row in others:
            low = _paired_low(self.chosen[best["method"]], self.chosen[row["method"]])
            (larger if low > 0 else like).append(row["method"])
        said = []
        if larger:
            said.append(f"Over the seeds its gap is smaller than that of {', '.join(larger)} (paired 95 % interval).")
        if like:
            said.append(f"These seeds do not tell it from {', '.join(like)}: take the one that moves or costs least.")
        return said

    def _beside(self) -> list[str]:
        refs = [row for row in self.rows if row["method"] in REFERENCES]
        price = {
            "attribute at inference": "must be told the attribute of every new case",
            "extra head": "needs a second head that guesses the attribute of every new case",
        }
        return [
            f"{row['method']} reaches {_mean(row, 'gap'):.3f} at a balanced accuracy of "
            f"{_mean(row, 'balanced_accuracy'):.3f}, but {price[row['kind']]}."
            for row in refs
        ]


def _shown(figure: Json | None) -> str:
    return with_interval(figure["mean"], figure["over_seeds"]) if figure else "-"


def _kind(method: str) -> str:
    if method in REFERENCES:
        return REFERENCES[method].needs
    alone = {"head": "head", "dfr": "head", "fairprune": "pruned", "threshold": "threshold"}
    return "one step" if method in ONE_STEP else alone.get(method, "two steps")


def _on_select(result: Json) -> float:
    return _number(result.get("select", {}).get("gap"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _mean(row: Json, name: str) -> float:
    return _number(row["figures"].get(name, {}).get("mean"))


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
