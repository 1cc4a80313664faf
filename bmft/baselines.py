"""The baselines a user would pick instead: every weight, the head alone, robust loss, pruning, another threshold."""

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from bmft import fairness
from bmft.audit import Predictions
from bmft.data import Attribute, GroupedData
from bmft.errors import ConfigError, GroupError
from bmft.finetune import Loss
from bmft.importance import weight_importances
from bmft.mask import WeightMask
from bmft.run import Run, from_original_head

Floats = NDArray[np.float64]

DFR_STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # inverse l1 strengths, as published
DFR_SUBSETS = 10  # heads that are averaged
DRO_RATE = 0.1  # of the group weights; published 0.01 is for runs of many thousand steps
PRUNED = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35)  # fractions that select is offered
PRUNE_BETA = 0.33  # weight of the better-off in the saliency
THRESHOLDS = 99  # quantiles of the select scores that are tried


def full(run: Run) -> WeightMask:
    """Fine-tune every weight on balanced batches; the bias term as the settings weigh it. One step, all epochs."""
    return _every_weight(run, run.settings.extractor_loss())


def selective(run: Run) -> WeightMask:
    """Plain fine-tuning of the weights that `tune` and `freeze` name, and of the head, in one step.

    The inner loop of FairTune (Dutt et al. 2024), whose outer search picks the weights.
    """
    mask = run.body_mask() | run.head_mask()
    step = replace(run.settings.step(0), epochs=sum(run.settings.epochs))
    run.tune_extractor(mask, run.settings.extractor_loss(), step)
    return mask


def bias_gradient_descent(run: Run) -> WeightMask:
    """Bias gradient descent (Marcinkevics, Ozkan and Vogt 2022): the gap alone, every weight, chosen on select.

    The published method descends or ascends by the sign of the bias; ours is the gap's size, so it only descends.
    """
    gap_alone = replace(run.settings.extractor_loss(), task_weight=0.0, bias_weight=1.0)
    return _every_weight(run, gap_alone)


def group_dro(run: Run) -> WeightMask:
    """Group distributionally robust optimisation (Sagawa et al. 2020) of every weight on the small fit set.

    The loss is the sum of each group x label cell's mean loss, weighted by q; after every batch q grows by
    exp(rate x loss) and is normalised, so that the cell with the largest loss comes to count most.
    """
    fit = _one_attribute(run.fit)
    loss = Loss(
        _RobustLoss(DRO_RATE, multi_label=run.multi_label), bias_weight=1.0, task_weight=0.0, whole_set=False
    )
    return _every_weight(replace(run, fit=fit), loss)


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
    cached = run.features(run.fit)
    features = np.asarray(cached.inputs(slice(None)), np.float64).reshape(len(cached), -1)
    mean, spread = features.mean(0), features.std(0)
    spread[spread == 0] = 1.0
    columns = _columns(run)
    subsets = [_balanced_subsets(run, column) for column in columns.T]
    for number, strength in enumerate(DFR_STRENGTHS, 1):
        with run.timed("head"):
            heads = [
                _mean_head((features - mean) / spread, column, rows, strength)
                for column, rows in zip(columns.T, subsets, strict=True)
            ]
            weights = np.stack([weight for weight, _ in heads]) / spread
            _write_head(run, weights, np.array([bias for _, bias in heads]) - weights @ mean)
        run.try_out(number, len(DFR_STRENGTHS))
    return run.head_mask()


def fairprune(run: Run) -> WeightMask:
    r"""Pruning by group saliency (FairPrune; Wu, Zeng, Xu, Shi and Hu 2022), without retraining.

    A weight's saliency for a group is the rise of its loss if the weight were zero, to second order:
    :math:`s = \tfrac12 h w^2` (LeCun, Denker and Solla 1990), with the squared gradient for the curvature h. Zeroed
    are the extractor's weights with the smallest :math:`s_{worse} - \beta s_{better}`: those that matter to
    everybody else more than to the group whose loss is largest. Select is offered several fractions.
    """
    worse, better = _worse_and_better(run)
    with run.timed("importance"):
        difference = {
            name: (worse_off - PRUNE_BETA * better_off[name]).cpu()
            for better_off in [_saliency(run, better)]
            for name, worse_off in _saliency(run, worse).items()
        }
    order = torch.cat([difference[name].flatten() for name in run.body]).argsort()
    mask = run.body_mask()
    for number, fraction in enumerate(PRUNED, 1):
        mask = _first(run, order, max(1, round(fraction * len(order))))
        with torch.no_grad():
            for name in run.body:
                parameter = run.model.get_parameter(name)
                parameter.masked_fill_(mask.tensors[name].to(parameter.device), 0)
        run.try_out(number, len(PRUNED))
    return mask


def threshold_shift(run: Run) -> WeightMask:
    """Another threshold for everybody, as a shift of the head's bias: the ranking, and so the ROC AUC, stays.

    Tried are quantiles of the select scores, from the largest gap to the smallest, as far as the balanced accuracy
    on select falls by no more than the limit on the ROC AUC.

    Raises:
        ConfigError: there are several classes or labels, or the head is no linear layer with a bias.
    """
    if run.select.task != "binary":
        raise ConfigError(
            f"method 'threshold' shifts the one threshold of a binary label, and this is {run.select.task}: "
            "take another --method"
        )
    layer = _linear(run)
    if layer.bias is None:
        raise ConfigError(f"method 'threshold' shifts the head's bias, and {run.head.name!r} has none")
    start = run.predict(run.model, run.select)
    cut = _logit(np.array([run.selection.threshold]))[0]
    shifts = cut - np.unique(_logit(np.quantile(start.scores, np.linspace(0.01, 0.99, THRESHOLDS))))
    original = layer.bias.detach().clone()
    tried = sorted(_harmless(run, start, shifts), key=lambda item: -run.selection.gap(item[1]))
    for number, (shift, shifted) in enumerate(tried, 1):
        with torch.no_grad():
            layer.bias.copy_(original)
            layer.bias[-1] += shift  # of two outputs the second's: the first is its reference
        run.try_out(number, len(tried), predictions=shifted)
    return WeightMask.by_name(run.model, next(n for n, p in run.model.named_parameters() if p is layer.bias))


def _every_weight(run: Run, loss: Loss) -> WeightMask:
    everything = WeightMask.by_name(run.model)
    run.tune_extractor(everything, loss, replace(run.settings.step(0), epochs=sum(run.settings.epochs)))
    return everything


class _RobustLoss:
    """Group DRO's loss of a batch; remembers how much each group x label cell counts."""

    def __init__(self, rate: float, *, multi_label: bool) -> None:
        self.rate, self.multi_label = rate, multi_label
        self.weights = torch.ones(0)

    def __call__(self, scores: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
        losses = nn.functional.binary_cross_entropy(scores, targets, reduction="none").mean(1)
        known = groups >= 0
        cells = self._cells(targets, groups)[known]
        size = max(int(cells.max()) + 1 if len(cells) else 0, len(self.weights))
        totals = losses.new_zeros(size).index_add(0, cells, losses[known])
        means = totals / torch.bincount(cells, minlength=size).clamp_min(1)
        weights = torch.ones(size, device=losses.device)
        weights[: len(self.weights)] = self.weights.to(losses.device)
        weights = weights * torch.exp(self.rate * means.detach())
        # Scaled to a mean of 1: a cell first seen later starts with the weight the others started with.
        self.weights = weights / weights.mean()
        return (self.weights / size * means).sum()

    def _cells(self, targets: Tensor, groups: Tensor) -> Tensor:
        """Group x label; with several labels per sample, the group."""
        if self.multi_label:
            return groups
        if targets.shape[1] == 1:
            return groups * 2 + targets[:, 0].long()
        return groups * targets.shape[1] + targets.argmax(1)


def _one_attribute(data: GroupedData) -> GroupedData:
    """The combinations of all attributes that occur, as one; unknown where any is."""
    if len(data.attributes) == 1:
        return data
    combined, ids = torch.unique(data.groups, dim=0, return_inverse=True)
    names = tuple(str(row) for row in combined.tolist())
    ids = torch.where((data.groups < 0).any(1), -1, ids)
    return replace(
        data, attributes=(Attribute("*".join(a.name for a in data.attributes), names),), groups=ids[:, None]
    )


def _linear(run: Run) -> nn.Linear:
    layer = run.model.get_submodule(run.head.name)
    if not isinstance(layer, nn.Linear):
        raise ConfigError(
            f"this method writes the weights of a linear head, and {run.head.name!r} is a {type(layer).__name__}: "
            "take another --method"
        )
    return layer


def _columns(run: Run) -> NDArray[np.int64]:
    """0/1 targets of the fit set, one column per logistic head."""
    outputs = run.head.num_outputs
    single = outputs <= 2 and run.fit.task != "multilabel"
    return fairness.one_vs_rest(run.fit.targets, 1 if single else outputs).numpy().astype(np.int64)


def _balanced_subsets(run: Run, column: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of each subset: every group x label cell that has both labels, drawn down to the smallest."""
    groups = _one_attribute(run.fit).groups[:, 0].numpy()
    cells = [
        np.flatnonzero((groups == group) & (column == label))
        for group in np.unique(groups[groups >= 0])
        for label in (0, 1)
    ]
    present = [cell for cell in cells if len(cell)]
    if len({int(column[cell[0]]) for cell in present}) < 2:
        raise GroupError("dfr needs both labels in the fit set, among samples whose group is known")
    size = min(map(len, present))
    random = np.random.default_rng(run.seed)
    return [
        np.concatenate([random.choice(cell, size, replace=False) for cell in present])
        for _ in range(DFR_SUBSETS)
    ]


def _mean_head(
    features: Floats, labels: NDArray[np.int64], subsets: list[NDArray[np.int64]], strength: float
) -> tuple[Floats, float]:
    heads = [_l1_logistic(strength).fit(features[rows], labels[rows]) for rows in _quietly(subsets)]
    return np.mean([head.coef_[0] for head in heads], axis=0), float(
        np.mean([head.intercept_[0] for head in heads])
    )


def _quietly(subsets: list[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """The subsets; meanwhile a head short of its optimum is no warning: select judges it like any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield from subsets


def _l1_logistic(strength: float) -> LogisticRegression:
    # scikit-learn 1.8 renamed the l1 penalty and warns about the old name.
    renamed = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8)
    options = {"l1_ratio": 1.0} if renamed else {"penalty": "l1"}
    return LogisticRegression(C=strength, solver="liblinear", max_iter=300, random_state=0, **options)


def _write_head(run: Run, weights: Floats, bias: Floats) -> None:
    """Change the model: the head's weights ``(outputs, features)`` and bias; two outputs share one logit evenly."""
    layer = _linear(run)
    if len(weights) == 1 and layer.out_features == 2:
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    if layer.bias is None:
        raise ConfigError(f"method 'dfr' writes the head's bias, and {run.head.name!r} has none")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
        layer.bias.copy_(torch.from_numpy(bias))


def _worse_and_better(run: Run) -> tuple[Tensor, Tensor]:
    """Rows of the fit set: the group with the largest mean loss, and everybody else of that attribute."""
    scores = run.predict(run.model, run.fit).scores
    targets = fairness.one_vs_rest(run.fit.targets, scores.shape[1]).double()
    loss = nn.functional.binary_cross_entropy(torch.from_numpy(scores), targets, reduction="none").mean(1)
    found: list[tuple[float, Tensor, Tensor]] = []
    for column in run.fit.groups.T:
        for group in torch.unique(column[column >= 0]):
            rows = column == group
            found.append((float(loss[rows].mean()), rows, (column >= 0) & ~rows))
    comparable = [entry for entry in found if bool(entry[2].any())]
    if not comparable:
        raise GroupError("fairprune compares two groups, and the fit set has one")
    return max(comparable, key=lambda entry: entry[0])[1:]


def _saliency(run: Run, rows: Tensor) -> dict[str, Tensor]:
    """Half the mean squared gradient of these rows' cross-entropy, over batches of 8, times the weight squared."""
    (scores,) = weight_importances(
        run.model, [fairness.cross_entropy], run.fit.subset(rows.nonzero()[:, 0]), score=_half_curvature,
        exact=False, batch_size=8, multi_label=run.multi_label, autocast=run.autocast,
    )  # fmt: skip
    return dict(scores)


def _half_curvature(weight: Tensor, gradient: Tensor) -> Tensor:
    return 0.5 * (weight * gradient).square()


def _first(run: Run, order: Tensor, count: int) -> WeightMask:
    """The first `count` weights of the body in this order."""
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:count]] = True
    shapes = {name: parameter.shape for name, parameter in run.model.named_parameters()}
    parts = dict(zip(run.body, torch.split(chosen, [shapes[name].numel() for name in run.body]), strict=True))
    return WeightMask(
        {n: parts[n].view(s) if n in parts else torch.zeros(s, dtype=torch.bool) for n, s in shapes.items()}
    )


def _logit(scores: Floats) -> Floats:
    inside = np.clip(scores, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(inside / (1 - inside)))


def _harmless(run: Run, start: Predictions, shifts: Floats) -> Iterator[tuple[float, Predictions]]:
    """Every shift and what it makes of the predictions, where the balanced accuracy does not fall too far."""
    lowest = _balanced_accuracy(start, run.selection.threshold) - run.selection.limits.max_auc_drop
    for shift in shifts:
        shifted = replace(start, scores=1 / (1 + np.exp(-(_logit(start.scores) + shift))))
        if _balanced_accuracy(shifted, run.selection.threshold) >= lowest:
            yield float(shift), shifted


def _balanced_accuracy(predictions: Predictions, threshold: float) -> float:
    right = predictions.decisions(threshold) == predictions.targets
    return float(np.mean([right[predictions.targets == label].mean() for label in (0, 1)]))
