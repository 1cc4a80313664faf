"""References that a debiased checkpoint is not: they need the attribute of every new case at inference."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
from fairlearn.postprocessing import ThresholdOptimizer
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from bmft.audit import Predictions
from bmft.errors import ConfigError

ATTRIBUTE_AT_INFERENCE: Mapping[str, str] = {
    "threshold_optimizer": "fairlearn's ThresholdOptimizer: a threshold per group",
}


def missing_references() -> dict[str, str]:
    """Reference -> why it takes no part."""
    if find_spec("oxonfair") is None:
        return {"oxonfair": "OxonFair is not installed"}
    return {"oxonfair": "OxonFair is installed, but this version of bmft does not run it"}


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


def threshold_optimizer(select: Predictions, measured: Predictions, *, threshold: float = 0.5) -> Predictions:
    """Fairlearn's ThresholdOptimizer (Hardt, Price and Srebro 2016) fitted on `select`: its decisions for `measured`.

    Equalized odds at the best balanced accuracy; decisions may be drawn at random. Rows of unknown group keep the
    model's own decision at `threshold`.

    Raises:
        ConfigError: the label is not binary, or there is more than one attribute.
    """
    if select.task != "binary" or len(select.attributes) != 1:
        raise ConfigError(
            f"threshold_optimizer takes a binary label and one attribute (such as sex*age), and there are "
            f"{len(select.attributes)} attributes of a {select.task} label"
        )
    known = select.groups[:, 0] >= 0
    try:
        # float64: fairlearn 0.15 fails on float32 scores with pandas 3.
        rule = ThresholdOptimizer(
            estimator=_Scores().fit(select.scores, select.targets), constraints="equalized_odds",
            objective="balanced_accuracy_score", predict_method="predict_proba", prefit=True,
        ).fit(select.scores[known], select.targets[known, 0], sensitive_features=select.groups[known, 0])  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"threshold_optimizer cannot be fitted on the select set: {error}") from error
    seen = np.isin(measured.groups[:, 0], select.groups[known, 0])
    decisions = measured.decisions(threshold).astype(np.float64)
    decisions[seen, 0] = rule.predict(
        measured.scores[seen], sensitive_features=measured.groups[seen, 0], random_state=0
    )
    return replace(measured, scores=decisions)
