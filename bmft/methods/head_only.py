"""Methods that train a new head and leave the extractor: balanced head, deep feature reweighting."""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from bmft import fairness
from bmft.errors import ConfigError, GroupError
from bmft.masks import WeightMask
from bmft.methods.full_network import one_attribute
from bmft.methods.linear_head import Floats, linear_head
from bmft.methods.run import Run, from_original_head
from bmft.models import reading_of

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

DFR_STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # inverse l1 strengths, as published

DFR_SUBSETS = 10  # heads that are averaged


def head_only(run: Run) -> WeightMask:
    """Train a new head on balanced batches of cached features; the extractor stays."""
    run.tune_head(from_original_head(run))
    return run.head_mask()


def dfr(run: Run) -> WeightMask:
    """Deep feature reweighting (Kirichenko, Izmailov and Wilson 2023).

    1. Cache the penultimate features and standardize them.
    2. Fit an l1 logistic head on each of several subsets in which every group x label cell is as large.
    3. Average the heads, fold the standardization into their weights.
    4. The strength of the l1 is chosen on select.

    Several classes or labels get one head each, against the rest.
    """
    if reading_of(run.model).one_vs_rest:
        raise ConfigError(
            "method 'dfr' fits a logit of its own, and this output is read as one class against all others: take "
            "another --method"
        )
    cached = run.features(run.fit)
    features = np.asarray(cached.inputs(slice(None)), np.float64).reshape(len(cached), -1)
    mean, spread = features.mean(0), features.std(0)
    spread[spread == 0] = 1.0
    columns = _columns(run)
    subsets = [_balanced_subsets(run, column) for column in columns.T]
    for number, strength in enumerate(DFR_STRENGTHS, 1):
        with run.course.timed("head"):
            heads = [
                _mean_head((features - mean) / spread, column, rows, strength)
                for column, rows in zip(columns.T, subsets, strict=True)
            ]
            weights = np.stack([weight for weight, _ in heads]) / spread
            _write_head(run, weights, np.array([bias for _, bias in heads]) - weights @ mean)
        run.try_out(number, len(DFR_STRENGTHS))
    return run.head_mask()


def _columns(run: Run) -> NDArray[np.int64]:
    """0/1 targets of the fit set, one column per logistic head."""
    outputs = run.head.num_outputs
    single = (outputs <= 2 or run.head.output is not None) and run.fit.task != "multilabel"
    return fairness.one_vs_rest(run.fit.targets, 1 if single else outputs).numpy().astype(np.int64)


def _balanced_subsets(run: Run, column: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of each subset: every group x label cell that has both labels, drawn down to the smallest."""
    groups = one_attribute(run.fit).groups[:, 0].numpy()
    cells = [
        np.flatnonzero((groups == group) & (column == label))
        for group in np.unique(groups[groups >= 0])
        for label in (0, 1)
    ]
    present = [cell for cell in cells if len(cell)]
    if len({int(column[cell[0]]) for cell in present}) < 2:
        raise GroupError("dfr needs both labels in the fit set, among samples whose group is known")
    size = min(map(len, present))
    random = np.random.default_rng(run.conditions.seed)
    return [np.concatenate([random.choice(cell, size, replace=False) for cell in present]) for _ in range(DFR_SUBSETS)]


def _mean_head(
    features: Floats, labels: NDArray[np.int64], subsets: list[NDArray[np.int64]], strength: float
) -> tuple[Floats, float]:
    heads = [_l1_logistic(strength).fit(features[rows], labels[rows]) for rows in _quietly(subsets)]
    return np.mean([head.coef_[0] for head in heads], axis=0), float(np.mean([head.intercept_[0] for head in heads]))


def _quietly(subsets: list[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """The subsets; meanwhile a head short of its optimum is no warning: select judges it like any other."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield from subsets


def _l1_logistic(strength: float) -> "LogisticRegression":
    import sklearn
    from sklearn.linear_model import LogisticRegression

    # scikit-learn 1.8 renamed the l1 penalty and warns about the old name.
    renamed = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8)
    options = {"l1_ratio": 1.0} if renamed else {"penalty": "l1"}
    return LogisticRegression(C=strength, solver="liblinear", max_iter=300, random_state=0, **options)


def _write_head(run: Run, weights: Floats, bias: Floats) -> None:
    """Change the model: the head's weights ``(outputs, features)`` and bias; two outputs share one logit evenly."""
    layer, place = linear_head(run), run.head.output
    if place is None and len(weights) == 1 and layer.out_features == 2:
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    if layer.bias is None:
        raise ConfigError(f"method 'dfr' writes the head's bias, and {run.head.name!r} has none")
    with torch.no_grad():
        rows = slice(None) if place is None else slice(place, place + 1)
        layer.weight[rows].copy_(torch.from_numpy(weights))
        layer.bias[rows].copy_(torch.from_numpy(bias))
