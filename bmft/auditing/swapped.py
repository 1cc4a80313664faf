"""Whether the classes look swapped: an ROC AUC that lies wholly below one half."""

import logging

import numpy as np

from bmft.auditing.predictions import Predictions
from bmft.errors import DataError
from bmft.stats import auc_interval, delong

log = logging.getLogger(__name__)
LEVEL = 0.95
SWAPPED = "the classes look swapped"
TURN = "say which is positive (--positive NAME), or name them in the order of the outputs (--classes A,B,...)"


def looks_swapped(predictions: Predictions) -> str:
    """What speaks for swapped classes, in one sentence; empty where nothing does.

    Of several columns the level is shared out (Bonferroni), and rows of one patient count as one.

    >>> from bmft.tables import Attribute
    >>> n = np.arange(40)
    >>> print(looks_swapped(Predictions(n / 40, n < 20, n % 2, (Attribute("sex", ("f", "m")),))))
    the classes look swapped: the ROC AUC of 1 is 0.000 (95 % interval 0.000 to 0.101), wholly below 0.5
    """
    columns = list(zip(predictions.columns, predictions.scores.T, predictions.targets.T, strict=True))
    clusters = predictions.clusters
    alike = 1.0 if clusters is None else len(clusters) / max(1, len(np.unique(clusters)))
    found = []
    for name, scores, targets in columns:
        n_pos, n_neg = int((targets == 1).sum()), int((targets == 0).sum())
        if not n_pos or not n_neg:
            continue
        area = delong(scores[targets >= 0], targets[targets >= 0])
        if area.value >= 0.5:
            continue
        level = 1 - (1 - LEVEL) / len(columns)
        low, high = auc_interval(area.value, area.variance * alike, n_pos / alike, n_neg / alike, level)
        if high < 0.5:
            found.append(f"{name} is {area.value:.3f} ({100 * level:.3g} % interval {low:.3f} to {high:.3f})")
    more = f" and of {len(found) - 3} more" if len(found) > 3 else ""
    return f"{SWAPPED}: the ROC AUC of {', of '.join(found[:3])}{more}, wholly below 0.5" if found else ""


def refuse_swapped(predictions: Predictions) -> None:
    """Stop before a model is made better at what it should not say; several labels are only warned of.

    Raises:
        DataError: the classes look swapped.
    """
    why = looks_swapped(predictions)
    if why and predictions.task == "multilabel":
        log.warning("%s: is 1 the positive value of that label?", why)
    elif why:
        raise DataError(
            f"{why}: {TURN}; if that is right as it is, this model is worse than chance and nothing is tuned"
        )
