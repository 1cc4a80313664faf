"""The gap as a measure of predictions, of a sample and of its resamples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmft.auditing import Predictions, Resampled, resampled_figures, units_of
from bmft.stats import resampled_rows

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
Floats = NDArray[np.float64]
ROW_BY_ROW = 300  # where a gap of one's own is called anew for every resample


@dataclass(frozen=True)
class Gap:
    """An objective as a measure of predictions: of 0/1 decisions at `threshold`, or of the probabilities.

    Attributes:
        objective: ``(scores, targets, groups)`` to a number, such as those of `bmft.fairness`.
        threshold: probability from which a decision is positive.
        on_decisions: whether decisions are compared.
        name: of the objective, if it is one that compares rates; then all resamples are counted at once.
        combine: what several attributes' gaps count as there.
    """

    objective: Objective
    threshold: float
    on_decisions: bool
    name: str = ""
    combine: str = "mean"

    def __call__(self, predictions: Predictions) -> float:
        """The gap on all rows."""
        return self._of(self._values(predictions), predictions, slice(None))

    def resampled(self, predictions: Predictions, resamples: int, seed: int) -> Floats:
        """The gap on all rows and on each resample of them, ``(1 + resamples,)``."""
        values, units = self._values(predictions), units_of(predictions)
        drawn = resampled_rows(units, resamples=resamples, seed=seed)
        return np.array([self(predictions), *(self._of(values, predictions, rows) for rows in drawn)])

    def _values(self, predictions: Predictions) -> Floats:
        found = predictions.decisions(self.threshold) if self.on_decisions else predictions.scores
        return np.asarray(found, np.float64)

    def _of(self, values: Floats, predictions: Predictions, rows: NDArray[np.intp] | slice) -> float:
        parts = (values[rows], predictions.targets[rows], predictions.groups[rows])
        return float(self.objective(*(torch.from_numpy(part) for part in parts)))


def figures_of(gap: Gap, candidates: Sequence[Predictions], seed: int) -> Resampled:
    """The figures that a choice among candidates needs: `bmft.auditing.resampled_figures` for this gap."""
    figures = partial(resampled_figures, candidates, threshold=gap.threshold, seed=seed)
    if gap.name:
        return figures(gap=gap.name, combine=gap.combine)
    return figures(gap=partial(gap.resampled, resamples=ROW_BY_ROW, seed=seed), resamples=ROW_BY_ROW)
