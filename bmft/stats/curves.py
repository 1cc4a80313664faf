"""The curves of scores against 0/1 targets: receiver operating characteristic and reliability."""

import numpy as np
from numpy.typing import NDArray


def roc_points(
    scores: NDArray[np.float64], targets: NDArray[np.int64], limit: int = 101
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates over all thresholds, thinned to about `limit` points along the curve.

    Both are empty where one of the two classes is absent: there is no curve.

    >>> roc_points(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    (array([0. , 0. , 0.5, 0.5, 1. ]), array([0. , 0.5, 0.5, 1. , 1. ]))
    """
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], targets[order] == 1
    if positive.all() or not positive.any():
        return np.empty(0), np.empty(0)
    last_of_tie = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    tpr = np.concatenate([[0], np.cumsum(positive)[last_of_tie] / positive.sum()])
    fpr = np.concatenate([[0], np.cumsum(~positive)[last_of_tie] / (~positive).sum()])
    if len(fpr) > limit:
        along = fpr + tpr
        keep = np.unique(np.searchsorted(along, np.linspace(0, 2, limit)).clip(max=len(along) - 1))
        fpr, tpr = fpr[keep], tpr[keep]
    return fpr, tpr


def reliability_bins(scores: NDArray[np.float64], targets: NDArray[np.int64], bins: int = 5) -> NDArray[np.float64]:
    """Rows of (mean score, positives, samples), one per bin of equal size; none for an empty bin.

    >>> reliability_bins(np.array([0.1, 0.2, 0.7, 0.9]), np.array([0, 0, 1, 1]), bins=2)
    array([[0.15, 0.  , 2.  ], [0.8 , 2.  , 2.  ]])
    """
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return np.array([[scores[part].mean(), (targets[part] == 1).sum(), len(part)] for part in parts]).reshape(-1, 3)
