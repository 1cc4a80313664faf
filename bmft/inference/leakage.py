"""How well a linear probe reads a sensitive attribute from the features just below the head."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import nn

from bmft.data import GroupedData
from bmft.models import find_head, penultimate_features
from bmft.stats import delong

FOLDS = 5


@dataclass(frozen=True)
class Leakage:
    """ROC AUC of the probe for one attribute; NaN where it could not be measured.

    Attributes:
        roc_auc: 0.5 where the features do not tell the attribute linearly; over several groups the mean of each
            against the rest.
        low, high: DeLong's 95 % interval of the cross-validated scores; only for two groups.
    """

    roc_auc: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def interval(self) -> list[float] | None:
        """Low and high, or None where there is no interval."""
        return None if np.isnan(self.low) else [self.low, self.high]


def attribute_leakage(
    model: nn.Module, data: GroupedData, *, head: str | None = None, seed: int = 0
) -> dict[str, Leakage]:
    """Attribute -> how well it can be read from the penultimate features, by a cross-validated linear probe.

    The probe is a logistic regression on standardized features. Samples of one patient are in one fold, so that it
    cannot read the patient instead. Samples of unknown group are left out.

    Args:
        model: used where it is and left as it was.
        head: module path of the layer that makes the logits; found by running the model otherwise.

    Returns:
        NaN for an attribute with fewer than two groups of `FOLDS` patients each, and for every attribute of a model
        whose head's output is not the logits.

    >>> import torch
    >>> from bmft.data import from_arrays
    >>> data = from_arrays(torch.eye(2).repeat(20, 1), [0, 1] * 20, [0, 1] * 20)
    >>> attribute_leakage(nn.Linear(2, 1), data)["group"].roc_auc
    1.0
    """
    device = next(model.parameters()).device
    cached = penultimate_features(model, find_head(model, data.take(slice(0, 2)).to(device).inputs, name=head), data)
    if cached is None:
        return {attribute.name: Leakage(float("nan")) for attribute in data.attributes}
    features = np.asarray(cached.inputs(slice(None)), np.float64).reshape(len(data), -1)
    clusters = np.arange(len(data)) if data.clusters is None else data.clusters.numpy()
    return {
        attribute.name: _probe(features, ids.numpy(), clusters, seed)
        for attribute, ids in zip(data.attributes, data.groups.T, strict=True)
    }


def compared_leakage(before: dict[str, Leakage], after: dict[str, Leakage]) -> dict[str, dict[str, Any]]:
    """Both as plain values, as reports have them: attribute -> ``before``, ``after`` and their intervals."""
    return {
        name: {
            "before": before[name].roc_auc,
            "after": after[name].roc_auc,
            "before_interval": before[name].interval,
            "after_interval": after[name].interval,
        }
        for name in before
    }


def _probe(features: NDArray[np.float64], ids: NDArray[np.int64], clusters: NDArray[Any], seed: int) -> Leakage:
    # Half a second, for what few runs ask for.
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    large = [group for group in np.unique(ids[ids >= 0]) if len(np.unique(clusters[ids == group])) >= FOLDS]
    if len(large) < 2:
        return Leakage(float("nan"))
    rows = np.isin(ids, large)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with threadpool_limits(1):  # small fits; threads that also serve torch only wait for each other
        scores = cross_val_predict(
            probe, features[rows], ids[rows], groups=clusters[rows], cv=folds, method="predict_proba"
        )
    if len(large) == 2:
        area = delong(scores[:, 1], (ids[rows] == large[1]).astype(np.int64))
        return Leakage(area.value, area.low, area.high)
    return Leakage(float(roc_auc_score(ids[rows], scores, multi_class="ovr", labels=large)))
