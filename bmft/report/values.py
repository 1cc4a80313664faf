"""The values that reports are made of, as JSON; no picture is drawn for them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from bmft._common import html_table, humanise, in_words, plain, short, with_interval
from bmft.auditing import HEADLINE, AuditReport, Drift, Epoch, auc_splits

if TYPE_CHECKING:
    import pandas as pd

    from bmft.auditing import charts

SCHEMA = 1
_OWN_WAY = ("extra", "other_outputs")  # how they are in JSON
SIDES = ("before", "after")
OUT_OF_FOLD = "out of fold"
_KINDS: Mapping[str, str] = {
    "held out": "rows that neither trained nor chose",
    "corrected": "rows that chose, and corrected for the choice, which was resampled for it",
    OUT_OF_FOLD: (
        "predictions out of fold, each by a model that learned from the other folds, and corrected for the choice they "
        "made; the model that is written learned from every row"
    ),
    "uncorrected": "rows that chose, and not corrected for the choice: expect somewhat less on new data",
    "shared": "rows of which fit or select may hold some, as was allowed",
    "unchosen": "rows that only looked on: the last epoch was kept as asked",
    "original": "rows that chose nothing better than the original",
}
_PACKAGES = ("bmft", "torch", "torchvision", "captum", "fairlearn", "numpy", "scikit-learn", "timm", "optuna")


@dataclass(frozen=True, repr=False)
class DebiasReport:
    """What a report shows of one debiasing: audits before and after, the settings, the history and the evidence.

    Attributes:
        method: its name.
        accepted: whether a candidate met the conditions; otherwise the original was kept.
        reason: why, in one sentence.
        before: the original's audit.
        after: the returned model's audit on the same rows (the original's where it was kept).
        evaluated_on: the split both were measured on, ``"test"`` or ``"select"``; or ``"out of fold"``: every row, by
            models that did not learn from it.
        config: every setting, as plain values.
        history: one entry per epoch; step 0 is the untouched model.
        mask: ``{"density": .., "by_layer": {layer: {"selected", "total", "fraction"}}, "by_block": {block:
            {"importance", "selected", "moved", "total"}}}``, blocks from input to output, or None. The importance is
            the share of the gap's that the block carries, None where it was not scored.
        seconds: how long each part took.
        versions: of the packages, see `versions`.
        hashes: of the checkpoint and of each split.
        skipped: unreadable images that were left out.
        other_outputs: where one output of many was debiased: set -> name of another output -> how far it moved there,
            see `bmft.auditing.Drift`.
        claim: what may be claimed of the reduction on the rows that chose, as `bmft.auditing.Claim` has it, and under
            ``rows`` how many of each group would show it; None where the choice was among too many to say.
        calibration: what ``calibrate`` folded into the head, as `bmft.methods.Calibration` has it; None where nothing.
        extra: optional pages, each as plain values:

            - ``pixels``: a list of `bmft.inference.Explanation`
            - ``evaluations``: site -> ``before`` and ``after``, two audits (at the top of the file)
            - ``leakage``: attribute -> ``before``, ``after``, and if known ``before_interval``,
              ``after_interval`` (at the top of the file)
            - ``search``: ``objective``, ``direction``, ``trials`` (``number``, ``value``, ``state`` of each),
              and if known ``pareto`` (``number``, ``gap``, ``roc_auc``, ``chosen`` of each), ``importances``,
              ``mask`` (block -> component -> bool), ``select``, ``test``, ``image_passes`` (at the top of the file)
    """

    method: str
    accepted: bool
    reason: str
    before: AuditReport
    after: AuditReport
    evaluated_on: str
    config: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Epoch] = ()
    mask: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str | None] = field(default_factory=dict)
    skipped: int = 0
    other_outputs: Mapping[str, Mapping[str, Drift]] = field(default_factory=dict)
    claim: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return short(f"DebiasReport({self.summary})", 300)

    @property
    def kind(self) -> str:
        """Which kind of figure the results are, as `kind_in_words` tells it."""
        if self.evaluated_on == "test":
            inferred = [one for entries in self.before.assumed.values() for one in entries]
            shared = any(one.get("option") == "--allow-shared-rows" for one in inferred)
            return "shared" if shared else "held out"
        if not self.accepted:
            return "original"
        if self.config.get("keep") == "last":
            return "unchosen"
        if self.evaluated_on == OUT_OF_FOLD:
            return OUT_OF_FOLD
        return "uncorrected" if self.claim is None else "corrected"

    @property
    def kind_in_words(self) -> str:
        """The rows that the results were measured on, such as "rows that neither trained nor chose"."""
        return _KINDS[self.kind]

    @property
    def calibrated_in_words(self) -> list[str]:
        """What was folded into the head, and where the new model has to be cut; empty where nothing was."""
        found = self.calibration
        if found is None:
            return []
        losses = " -> ".join(f"{found['log_loss'][side]:.3f}" for side in SIDES)
        moved = f" and moved by {found['shift']:+.3f}" if found["shift"] else ""
        said = [
            f"Calibrated: logits are divided by {found['temperature']:.3f}{moved}, fitted to {found['rows']:,} rows "
            f"(log loss of rows left out {losses})."
        ]
        if found["threshold"] is None:
            return [*said, "The largest probability decides, as before."]
        cut, old = (f"{found[name]:.12g}" for name in ("threshold", "threshold_before"))
        said.append(
            f"THRESHOLD {cut}: that probability of {found['positive']} decides as {old} did. Cut there wherever the "
            f"new model runs; bmft does where its patch lies beside it, else say --threshold {cut}."
        )
        lost = found["reordered"]
        return [*said, *([f"By rounding, {lost} neighbours in the ranking tie or change places."] if lost else [])]

    @property
    def corrected(self) -> Sequence[Mapping[str, Any]]:
        """The figures that are results where the rows measured on also chose, see `bmft.auditing.Claim`."""
        return self.claim["figures"] if self.kind in ("corrected", OUT_OF_FOLD) and self.claim is not None else ()

    def _gap_after(self, attribute: str) -> float | None:
        found = [one["after"] for one in self.corrected if (one["attribute"], one["figure"]) == (attribute, HEADLINE)]
        after: float | None = found[0] if found else self.after.gaps.get(attribute, {}).get(HEADLINE)
        return after

    @property
    def summary(self) -> str:
        """The method, whether it was accepted, each gap and the ROC AUC before and after, in one line."""
        said = [f"{self.method}, {'accepted' if self.accepted else 'original kept'}"]
        for name, gaps in self.before.gaps.items():
            after = self._gap_after(name)
            said.append(f"{name}: odds gap {with_interval(gaps[HEADLINE], None)} -> {with_interval(after, None)}")
        auc = [with_interval(side.overall["roc_auc"], None) for side in (self.before, self.after)]
        said += [] if self.claim is None else [f"evidence {self.claim['word']}"]
        return ", ".join([*said, f"ROC AUC {' -> '.join(auc)}", f"{self.before.n} {rows_of(self.evaluated_on)}"])

    def _repr_html_(self) -> str:
        shown: list[tuple[str, tuple[str, ...]]] = [("everyone", ("overall", "roc_auc"))]
        shown += [(name, ("gaps", name, HEADLINE)) for name in self.before.gaps]
        lines = [
            (who, humanise(path[-1]), *(with_interval(*audit.figure(*path)) for audit in (self.before, self.after)))
            for who, path in shown
        ]
        caption = ". ".join([self.summary, *in_words(self.before.assumed)])
        return html_table(caption, ("", "", *SIDES), [*lines, ("why", self.reason, "", "")])

    def to_frame(self) -> pd.DataFrame:
        """Both audits as rows, as `AuditReport.to_frame` has them, after a column ``side``: ``before``, ``after``."""
        import pandas as pd

        frames = {"before": self.before.to_frame(), "after": self.after.to_frame()}
        return pd.concat(frames, names=["side"]).reset_index("side").reset_index(drop=True)

    def plot(self, ax: charts.Axes | None = None) -> charts.Axes:
        """The trade-off: gap against ROC AUC of every epoch on the selection data, the chosen one ringed.

        Args:
            ax: Matplotlib axes to draw on; by default those of a new figure.
        """
        from bmft.auditing import charts
        from bmft.report.extras import epoch_points

        points = epoch_points(plain(self.history))
        return charts.on_axes(charts.tradeoff(points, x="gap on the selection data", y="ROC AUC"), ax, above=True)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``report.json``: plain values, None for what could not be measured, no pictures."""
        top = {name: plain(self.extra[name]) for name in ("evaluations", "leakage", "search") if name in self.extra}
        if self.other_outputs:
            top["other_outputs"] = self._others()
        rest = {name: value for name, value in self.extra.items() if name not in top}
        values = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name not in _OWN_WAY}
        old, new = auc_splits(self.before), auc_splits(self.after)
        split = {name: {"before": old[name]._asdict(), "after": new[name]._asdict()} for name in old if name in new}
        word = None if self.claim is None else self.claim["word"]
        values |= {"kind": self.kind, "evidence": word, "claim": plain(self.claim)}
        more = {"auc_split": plain(split), "assumed": plain(self.before.assumed), "extra": plain(rest)}
        return {"schema": SCHEMA, **values, **more, **top}

    def _others(self) -> dict[str, Any]:
        sets = {
            where: {name: moved._asdict() for name, moved in found.items()}
            for where, found in self.other_outputs.items()
        }
        return {"limit": self.config.get("max_other_drift"), **plain(sets)}


def rows_of(evaluated_on: str) -> str:
    """The rows in words.

    >>> rows_of("test"), rows_of("out of fold")
    ('rows of test', 'rows out of fold')
    """
    return f"rows {evaluated_on}" if evaluated_on == OUT_OF_FOLD else f"rows of {evaluated_on}"


Report = DebiasReport | AuditReport


def to_json(obj: Any) -> str:
    """JSON of a report or of any value with ``to_dict``: numbers are numbers, NaN and infinity are null.

    >>> to_json({"gap": float("nan"), "n": 3}).split()
    ['{', '"gap":', 'null,', '"n":', '3', '}']
    """
    return json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
