"""How far to go, chosen among a few candidates by what they say of the select set, and what may be claimed of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmft.auditing import Claim, Predictions, weigh
from bmft.stats import Units, resampled_rows

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
Floats = NDArray[np.float64]
RESAMPLES = 300
WIDTH = 0.5  # of the smoothing, in standard deviations of the original's margins


@dataclass(frozen=True)
class Gap:
    """An objective as a measure of predictions: of 0/1 decisions at `threshold`, or of the probabilities.

    Attributes:
        objective: ``(scores, targets, groups)`` to a number, such as those of `bmft.fairness`.
        threshold: probability from which a decision is positive.
        on_decisions: whether decisions are compared.
    """

    objective: Objective
    threshold: float
    on_decisions: bool

    def __call__(self, predictions: Predictions) -> float:
        """The gap on all rows."""
        return self.of(self.values(predictions), predictions, slice(None))

    def values(self, predictions: Predictions) -> Floats:
        """What is compared between groups: ``(n, K)``."""
        found = predictions.decisions(self.threshold) if self.on_decisions else predictions.scores
        return np.asarray(found, np.float64)

    def smoothed(self, predictions: Predictions, width: float) -> Floats:
        """The same with decisions near the threshold counted in part, which is less noisy: ``(n, K)``."""
        if not self.on_decisions or not width > 0:
            return self.values(predictions)
        return np.asarray(1 / (1 + np.exp(-margins(predictions, self.threshold) / width)))

    def of(self, values: Floats, predictions: Predictions, rows: NDArray[np.intp] | slice) -> float:
        """The gap of these rows, each of which may occur several times."""
        parts = (values[rows], predictions.targets[rows], predictions.groups[rows])
        return float(self.objective(*(torch.from_numpy(part) for part in parts)))


def margins(predictions: Predictions, threshold: float) -> Floats:
    """How far each score is on the positive side, on the logit scale, ``(n, K)``; of classes, ahead of all others."""
    scores = np.clip(predictions.scores, 1e-7, 1 - 1e-7)
    if predictions.task != "multiclass":
        return np.asarray(np.log(scores / (1 - scores)) - np.log(threshold / (1 - threshold)))
    logs = np.log(scores)
    others = np.stack([np.delete(logs, k, axis=1).max(1) for k in range(logs.shape[1])], axis=1)
    return np.asarray(logs - others)


def weigh_candidates(
    gap: Gap, candidates: Sequence[Predictions], eligible: Sequence[bool], *, confidence: float, seed: int
) -> tuple[int, Claim]:
    """Choose among candidates on a path, and say what may be claimed.

    The choice looks at the gap of smoothed decisions, what is claimed is that of the decisions themselves; patients are
    resampled within groups, alike for all candidates.

    Args:
        gap: what is to become smaller.
        candidates: predictions of the same rows, the original's first, then in the order of how far they go.
        eligible: which do no harm.
        confidence: of the evidence, see `bmft.auditing.Claim`.
        seed: of the resamples.

    Returns:
        The chosen candidate's number and the evidence.
    """
    original = candidates[0]
    width = WIDTH * float(margins(original, gap.threshold).std())
    units = Units.of(original.clusters, strata=np.unique(original.groups, axis=0, return_inverse=True)[1].reshape(-1))
    samples: list[NDArray[np.intp] | slice] = [slice(None), *resampled_rows(units, resamples=RESAMPLES, seed=seed)]

    def drawn(values: Sequence[Floats]) -> Floats:
        found = [[gap.of(one, original, rows) for rows in samples] for one in values]
        return np.asarray(found)  # (candidates, 1 + resamples)

    plain = drawn([gap.values(one) for one in candidates])
    smooth = drawn([gap.smoothed(one, width) for one in candidates]) if gap.on_decisions else plain
    return weigh(plain, smooth, np.asarray(eligible), confidence=confidence)
