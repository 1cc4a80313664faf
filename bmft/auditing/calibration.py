"""A temperature and a shift after which probabilities mean what they say, and what they do for rows left out of it."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bmft.auditing.predictions import Predictions
from bmft.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FOLDS = 5
_STEEPEST = math.log(64.0)  # of the slope's logarithm: what needs more is no question of calibration
_FARTHEST = 20.0  # of the shift
_TINY = 1e-15


@dataclass(frozen=True)
class Rescaling:
    """A change of every logit to ``slope * logit + shift``; there is a shift for a yes or no only.

    >>> Rescaling(2.0, 0.0).threshold(0.5), round(Rescaling(1.0, 1.0).threshold(0.5), 3)
    (0.5, 0.731)
    """

    slope: float = 1.0
    shift: float = 0.0

    def of(self, predictions: Predictions) -> Predictions:
        """The predictions that such a model would make."""
        return replace(predictions, scores=self._scores(_margins(predictions)))

    def threshold(self, before: float) -> float:
        """Where a model has to be cut after it to decide the same."""
        return float(_sigmoid(np.array(self.slope * _logit(before) + self.shift)))

    def rounded(self, before: float, digits: int = 4) -> "Rescaling":
        """The same, shifted so little that the `threshold` comes to have so many digits."""
        wanted = min(max(self.threshold(before), _TINY), 1 - _TINY)
        wanted = float(f"{wanted:.{digits}g}") if wanted < 0.5 else 1 - float(f"{1 - wanted:.{digits}g}")
        return replace(self, shift=_logit(wanted) - self.slope * _logit(before))

    def _scores(self, margins: Floats) -> Floats:
        if margins.shape[1] == 1:
            return _sigmoid(self.slope * margins + self.shift)
        raised = np.exp(self.slope * margins)
        return np.asarray(raised / raised.sum(1, keepdims=True))


def fitted_rescaling(predictions: Predictions, *, tempered: bool = True) -> Rescaling:
    """The change of least log loss: of a yes or no slope and shift (Platt 1999), of classes a slope (Guo et al. 2017).

    A yes or no is fitted to Platt's targets, a little inside 0 and 1, so that a perfect ranking gives a finite slope.

    Args:
        predictions: of one label or of several classes.
        tempered: otherwise the slope stays 1.

    Raises:
        DataError: there are only positives or only negatives.

    >>> from bmft.tables import Attribute
    >>> sex, certain = Attribute("sex", ("f", "m")), np.tile([0.9, 0.1], 50)
    >>> right = np.where(np.arange(100) % 5, np.tile([1, 0], 50), np.tile([0, 1], 50))  # four times in five
    >>> found = fitted_rescaling(Predictions(certain, right, np.zeros(100, int), (sex,)))
    >>> found.slope < 1, found.of(Predictions(certain, right, np.zeros(100, int), (sex,))).scores[:2].round(2).tolist()
    (True, [[0.79], [0.21]])
    """
    from scipy.optimize import minimize

    margins, targets = _margins(predictions), predictions.targets.astype(np.float64)
    single = margins.shape[1] == 1
    if single:
        positive, n = int(targets.sum()), len(targets)
        if not 0 < positive < n:
            raise DataError("probabilities cannot be calibrated: there are only positives or only negatives")
        targets = np.where(targets == 1, (positive + 1) / (positive + 2), 1 / (n - positive + 2))

    def rescaling(values: Floats) -> Rescaling:
        return Rescaling(math.exp(values[0]) if tempered else 1.0, float(values[-1]) if single else 0.0)

    def loss(values: Floats) -> float:
        return _log_loss(rescaling(values)._scores(margins), targets)

    bounds = [(-_STEEPEST, _STEEPEST)] * tempered + [(-_FARTHEST, _FARTHEST)] * single
    if not bounds:
        return Rescaling()
    return rescaling(minimize(loss, np.zeros(len(bounds)), method="L-BFGS-B", bounds=bounds).x)


def rescaled_left_out(
    predictions: Predictions, *, tempered: bool = True, folds: int = FOLDS, seed: int = 0
) -> tuple[Predictions, int]:
    """The predictions that `fitted_rescaling` makes of each fold's rows without them, and the number of folds.

    Patients stay in one fold; a yes or no is spread evenly over them. There are fewer folds where a label has fewer
    patients.

    Raises:
        DataError: a label has rows of one patient only.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    n = len(predictions)
    units = np.arange(n) if predictions.clusters is None else predictions.clusters
    labels = predictions.targets[:, 0] if predictions.task == "binary" else np.zeros(n, np.int64)
    folds = min(folds, *(len(np.unique(units[labels == label])) for label in np.unique(labels)))
    if folds < 2 or (predictions.task == "binary" and len(np.unique(labels)) < 2):
        raise DataError("probabilities cannot be calibrated: each label needs rows of at least two patients")
    scores = np.empty_like(predictions.scores)
    for rest, own in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(scores, labels, units):
        found = fitted_rescaling(predictions.subset(rest), tempered=tempered)
        scores[own] = found._scores(_margins(predictions)[own])
    return replace(predictions, scores=scores), folds


def log_loss(predictions: Predictions) -> float:
    """The log loss: the mean of minus the logarithm of the probability that was given to the true class."""
    return _log_loss(predictions.scores, predictions.targets.astype(np.float64))


def _margins(predictions: Predictions) -> Floats:
    """``(n, K)`` logits of a yes or no, logarithms of the probabilities of classes."""
    inside = np.clip(predictions.scores, _TINY, 1 - _TINY)
    return np.asarray(np.log(inside) if predictions.scores.shape[1] > 1 else np.log(inside) - np.log1p(-inside))


def _log_loss(scores: Floats, targets: Floats) -> float:
    inside = np.clip(scores, _TINY, 1 - _TINY)
    each = targets * np.log(inside)
    if scores.shape[1] == 1:
        each = each + (1 - targets) * np.log1p(-inside)
    return float(-each.sum(1).mean())


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))))
