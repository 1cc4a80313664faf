"""References that a debiased checkpoint is not: they need the attribute of every new case, or a second head."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from fairlearn.postprocessing import ThresholdOptimizer
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from bmft.auditing import Predictions
from bmft.data import GroupedData
from bmft.errors import ConfigError, MissingExtraError
from bmft.models import find_head, penultimate_features

# Near equality: OxonFair finds the best balanced accuracy whose mean gap on the select set is at most this.
OXONFAIR_GAP = 0.05


@dataclass(frozen=True)
class ReferenceInput:
    """What a reference sees: the untouched model, the sets, and its predictions on two of them."""

    model: nn.Module
    head: str | None
    fit: GroupedData
    select_set: GroupedData
    measured_set: GroupedData
    select: Predictions
    measured: Predictions
    threshold: float = 0.5


@dataclass(frozen=True)
class Reference:
    """How to get decisions for the measured rows, and what that needs of every new case."""

    decide: Callable[[ReferenceInput], Predictions]
    needs: Literal["attribute at inference", "extra head"]


def missing_references() -> dict[str, str]:
    """Reference -> why it takes no part."""
    if find_spec("oxonfair") is not None:
        return {}
    return dict.fromkeys(("oxonfair", "oxonfair_inferred"), "needs pip install 'bmft[references]'")


class _Scores(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator whose probabilities are its one input column."""

    def fit(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> "_Scores":
        """Nothing to learn."""
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of both classes."""
        return np.concatenate([1 - x, x], 1)

    def predict(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        """From one half on."""
        return (x[:, 0] >= 0.5).astype(np.int64)


def threshold_optimizer(case: ReferenceInput) -> Predictions:
    """Fairlearn's ThresholdOptimizer (Hardt, Price and Srebro 2016) fitted on select: its decisions for the measured.

    Equalized odds at the best balanced accuracy; decisions may be drawn at random. Rows of unknown group keep the
    model's own decision at the threshold.

    Raises:
        ConfigError: the label is not binary, or there is more than one attribute.
    """
    select, measured = case.select, case.measured
    known = _known(case, "threshold_optimizer")
    try:
        # float64: fairlearn 0.15 fails on float32 scores with pandas 3.
        rule = ThresholdOptimizer(
            estimator=_Scores().fit(select.scores, select.targets),
            constraints="equalized_odds",
            objective="balanced_accuracy_score",
            predict_method="predict_proba",
            prefit=True,
        ).fit(select.scores[known], select.targets[known, 0], sensitive_features=select.groups[known, 0])
    except ValueError as error:
        raise ConfigError(f"threshold_optimizer cannot be fitted on the select set: {error}") from error

    def decide(rows: NDArray[np.bool_]) -> Any:
        return rule.predict(measured.scores[rows], sensitive_features=measured.groups[rows, 0], random_state=0)

    return _decided(case, np.isin(measured.groups[:, 0], select.groups[known, 0]), decide)


def oxonfair(case: ReferenceInput) -> Predictions:
    """OxonFair (Delaney et al. 2024) fitted on select: a threshold per group, which must be told.

    Rows of unknown group keep the model's own decision at the threshold.

    Raises:
        ConfigError: the label is not binary, or there is more than one attribute or more than four groups.
        MissingExtraError: OxonFair is not installed.
    """
    known = _known(case, "oxonfair", most=4)
    groups = case.measured.groups[:, 0]
    rule = _oxonfair(case, known, _logits(case.select, case.threshold)[known], use_actual_groups=True)

    def decide(rows: NDArray[np.bool_]) -> Any:
        score = _logits(case.measured, case.threshold)[rows]
        return rule.predict({"data": score, "target": np.zeros(len(score)), "groups": groups[rows]})

    return _decided(case, np.isin(groups, case.select.groups[known, 0]), decide)


def oxonfair_inferred(case: ReferenceInput) -> Predictions:
    """OxonFair (Delaney et al. 2024) with a second head that guesses the attribute, here a linear one on the features.

    The head is a logistic regression on the standardized features of the fit set; the thresholds are found on select.

    Raises:
        ConfigError: the label is not binary, there is more than one attribute or more than three groups, or the model's
            head is not a layer whose output is the logits.
        MissingExtraError: OxonFair is not installed.
    """
    known = _known(case, "oxonfair_inferred", most=3)
    fit, select, measured = (_features(case, data) for data in (case.fit, case.select_set, case.measured_set))
    told = case.fit.groups[:, 0].numpy() >= 0
    guess = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    guess.fit(fit[told], case.fit.groups[told, 0].numpy())
    if set(guess.classes_) != set(case.select.groups[known, 0]):
        raise ConfigError("oxonfair_inferred needs every group on the fit set and on the select set")

    def scored(predictions: Predictions, features: NDArray[np.float64]) -> NDArray[np.float64]:
        guessed = guess.predict_proba(features)
        # Of two groups OxonFair takes the second's share alone.
        shares = guessed[:, 1:] if guessed.shape[1] == 2 else guessed
        return np.concatenate([_logits(predictions, case.threshold), shares], 1)

    rule = _oxonfair(case, known, scored(case.select, select)[known], use_actual_groups=False)
    scores = scored(case.measured, measured)
    decisions = rule.predict({"data": scores, "target": np.zeros(len(scores))})
    return replace(case.measured, scores=np.asarray(decisions, dtype=np.float64)[:, None])


REFERENCES: Mapping[str, Reference] = {
    "threshold_optimizer": Reference(threshold_optimizer, "attribute at inference"),
    "oxonfair": Reference(oxonfair, "attribute at inference"),
    "oxonfair_inferred": Reference(oxonfair_inferred, "extra head"),
}


def _known(case: ReferenceInput, name: str, most: int | None = None) -> NDArray[np.bool_]:
    """The select rows whose group is known.

    Raises:
        ConfigError: the reference does not take such labels or groups.
    """
    select = case.select
    if select.task != "binary" or len(select.attributes) != 1:
        raise ConfigError(
            f"{name} takes a binary label and one attribute (such as sex*age), and there are "
            f"{len(select.attributes)} attributes of a {select.task} label"
        )
    known: NDArray[np.bool_] = select.groups[:, 0] >= 0
    there = len(np.unique(select.groups[known, 0]))
    if most is not None and there > most:
        raise ConfigError(f"{name} searches every combination of thresholds: at most {most} groups, not {there}")
    return known


def _decided(case: ReferenceInput, rows: NDArray[np.bool_], decide: Callable[[NDArray[np.bool_]], Any]) -> Predictions:
    """The measured predictions as decisions: by the rule for these rows, by the model itself for the others."""
    decisions = case.measured.decisions(case.threshold).astype(np.float64)
    decisions[rows, 0] = decide(rows)
    return replace(case.measured, scores=decisions)


def _oxonfair(
    case: ReferenceInput, known: NDArray[np.bool_], scores: NDArray[np.float64], *, use_actual_groups: bool
) -> Any:
    if missing_references():
        raise MissingExtraError("OxonFair is not installed: pip install 'bmft[references]'")
    from oxonfair import DeepFairPredictor, group_metrics

    rule = DeepFairPredictor(
        case.select.targets[known, 0], scores, case.select.groups[known, 0], use_actual_groups=use_actual_groups
    )
    rule.fit(group_metrics.balanced_accuracy, group_metrics.equalized_odds, OXONFAIR_GAP)
    return rule


def _logits(predictions: Predictions, threshold: float) -> NDArray[np.float64]:
    """``(n, 1)``: how far a probability is above the threshold, on the logit scale."""
    inside = predictions.scores.astype(np.float64).clip(1e-6, 1 - 1e-6)
    found: NDArray[np.float64] = np.log(inside / (1 - inside)) - np.log(threshold / (1 - threshold))
    return found


def _features(case: ReferenceInput, data: GroupedData) -> NDArray[np.float64]:
    model = case.model
    device = next(model.parameters()).device
    head = find_head(model, data.take(slice(0, 2)).to(device).inputs, name=case.head)
    found = penultimate_features(model, head, data)
    if found is None:
        raise ConfigError(
            f"oxonfair_inferred guesses the attribute from what enters the head, and {head.name!r} does not give the "
            "logits"
        )
    features: NDArray[np.float64] = found.inputs(slice(None)).flatten(1).double().cpu().numpy()
    return features
