"""Group rates and gaps as pure functions: 0/1 decisions give the metric, probabilities the objective.

A rate is a mean of predictions over a cell (a group, or a group and a label), so one formula serves both: on
0/1 input it is the published metric, on probabilities its differentiable counterpart. Everywhere here

- `scores` are ``(n,)`` or ``(n, K)`` probabilities or 0/1 decisions; K columns are classes (one against the
  rest) or labels,
- `targets` have the shape of `scores` and hold 0 and 1 (see `one_vs_rest`); of several labels -1 is one that is not
  known, and left out of that label's figures,
- `groups` are ``(n,)`` ids from 0; -1 is unknown and left out,
- a cell without samples is skipped, never counted as rate 0, and what cannot be computed is NaN.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bmft.errors import ConfigError, DataError, GroupError

Pairs = Literal["all", "overall"]
Columns = Literal["mean", "worst"]
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def probabilities(logits: Tensor, *, multi_label: bool = False) -> Tensor:
    """Turn a model's logits into one probability per column.

    One output is a binary logit (sigmoid), two outputs are two classes (the softmax of the second, as one
    column), C outputs are C classes (softmax), or C independent labels with `multi_label` (sigmoid).

    Args:
        logits: ``(n,)`` or ``(n, outputs)``; half precision is raised to float32.
        multi_label: every output is a label of its own.

    Returns:
        ``(n, 1)`` for one output and for two classes, else ``(n, outputs)``.

    Raises:
        DataError: the logits have another number of dimensions.

    >>> probabilities(torch.tensor([0.0, 2.0]))
    tensor([[0.5000],
            [0.8808]])
    >>> probabilities(torch.tensor([[1.0, 3.0]]))
    tensor([[0.8808]])
    >>> probabilities(torch.zeros(1, 4))
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    if logits.ndim not in (1, 2):
        raise DataError(f"logits have the shape {tuple(logits.shape)}: expected (n,) or (n, outputs)")
    logits = _floating(logits if logits.ndim == 2 else logits[:, None])
    if logits.shape[1] == 2 and not multi_label:
        return torch.sigmoid(logits[:, 1:] - logits[:, :1])
    if logits.shape[1] == 1 or multi_label:
        return torch.sigmoid(logits)
    return torch.softmax(logits, dim=1)


def one_vs_rest(targets: Tensor, num_columns: int) -> Tensor:
    """Targets as ``(n, K)`` zeros and ones, one column per class or label.

    Args:
        targets: ``(n,)`` 0/1 where `num_columns` is 1, else class indices; or ``(n, K)`` 0/1, kept as is, -1 where a
            label is not known.
        num_columns: K, the columns of the scores.

    Raises:
        DataError: a class index or a shape that does not fit `num_columns`, or a value other than 0 and 1.

    >>> one_vs_rest(torch.tensor([0, 2]), 3)
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    >>> one_vs_rest(torch.tensor([0, 1]), 1)
    tensor([[0.],
            [1.]])
    """
    if targets.ndim == 1 and num_columns > 1:
        if bool(((targets < 0) | (targets >= num_columns)).any()):
            raise DataError(f"targets hold a class outside 0..{num_columns - 1}, the scores' columns")
        classes = torch.arange(num_columns, device=targets.device)
        return (targets[:, None] == classes).to(torch.get_default_dtype())
    columns = targets[:, None] if targets.ndim == 1 else targets
    if columns.ndim != 2 or columns.shape[1] != num_columns:
        raise DataError(f"targets have the shape {tuple(targets.shape)}: expected {num_columns} columns")
    if bool(((columns != 0) & (columns != 1) & ((columns != -1) | (targets.ndim == 1))).any()):
        raise DataError("targets hold a value other than 0 and 1: classes need one score each")
    return columns.to(torch.get_default_dtype())


def group_rates(scores: Tensor, condition: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    r"""Mean score of each group over the samples where `condition` holds.

    For 0/1 scores and ``condition = targets == 1`` this is the true positive rate
    :math:`P(\hat Y = 1 \mid Y = 1, A = a)` (Hardt, Price and Srebro 2016), for ``targets == 0`` the false
    positive rate, for a condition that always holds the selection rate; for probabilities it is their
    differentiable counterpart. A group without such samples has no rate: NaN. Group -1 is left out.

    Args:
        scores: ``(n,)`` or ``(n, K)``, probabilities or 0/1.
        condition: bool, the shape of `scores`.
        groups: ``(n,)`` ids.
        num_groups: how many groups there are, with or without samples.

    Returns:
        ``(num_groups,)`` or ``(num_groups, K)``.

    Raises:
        DataError: the shapes do not belong together.
        GroupError: a group id is `num_groups` or more.

    >>> group_rates(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([True] * 3), torch.tensor([0, 0, 2]), 3)
    tensor([0.5000,    nan, 1.0000])
    """
    largest = _num_groups(groups) - 1
    if largest >= num_groups:
        raise GroupError(f"groups hold the id {largest}: expected ids below {num_groups}, or -1 for unknown")
    _check_shapes(scores, condition, groups)
    scores, condition = _floating(scores), condition.bool()
    columns = (scores, condition) if scores.ndim == 2 else (scores[:, None], condition[:, None])
    rates = _rates(*columns, groups, num_groups).number()
    return rates if scores.ndim == 2 else rates[:, 0]


def equalized_odds_gap(
    scores: Tensor, targets: Tensor, groups: Tensor, *, pairs: Pairs = "all", columns: Columns = "mean"
) -> Tensor:
    r"""How far the groups' true and false positive rates lie apart.

    The mean over pairs of groups of :math:`\tfrac12 (|\Delta FPR| + |\Delta TPR|)`: for two groups the
    published bias (Xue et al. 2024) with an absolute value on each term, so that opposite differences cannot
    cancel. 0 is ideal, 1 the worst. Where only one of the two rates can be compared, it stands alone.

    Args:
        scores: ``(n,)`` or ``(n, K)``, probabilities or 0/1.
        targets: 0/1 of the same shape.
        groups: ``(n,)`` ids, -1 unknown.
        pairs: ``"all"`` compares every two groups: none is the reference, and each pulls equally, however
            small; ``"overall"`` compares each group with everyone, whom a large group resembles by its size.
        columns: ``"mean"`` or ``"worst"`` over the K columns.

    Returns:
        A scalar; NaN when no two groups have samples to compare.

    Raises:
        ConfigError: `pairs` or `columns` is neither of its two values.
        DataError: the shapes do not belong together.

    >>> decisions, targets = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([1, 0, 0, 1])
    >>> equalized_odds_gap(decisions, targets, torch.tensor([0, 0, 1, 1]))
    tensor(1.)
    """
    scores, targets = _columns(scores, targets, groups)
    odds = [_gap(scores, targets == label, groups, pairs) for label in (0, 1)]
    return _over_columns(_mean(_stack(odds)), columns).number()


def equal_opportunity_gap(
    scores: Tensor, targets: Tensor, groups: Tensor, *, pairs: Pairs = "all", columns: Columns = "mean"
) -> Tensor:
    r"""The mean over pairs of groups of :math:`|\Delta TPR|`, a difference of true positive rates.

    Arguments, result and errors as in `equalized_odds_gap`.

    >>> equal_opportunity_gap(torch.tensor([0.9, 0.5]), torch.tensor([1, 1]), torch.tensor([0, 1]))
    tensor(0.4000)
    """
    scores, targets = _columns(scores, targets, groups)
    return _over_columns(_gap(scores, targets == 1, groups, pairs), columns).number()


def demographic_parity_gap(
    scores: Tensor, targets: Tensor, groups: Tensor, *, pairs: Pairs = "all", columns: Columns = "mean"
) -> Tensor:
    r"""The mean over pairs of groups of :math:`|\Delta P(\hat Y)|`, a difference of selection rates.

    Groups whose base rates differ have a gap here even under perfect prediction. Arguments, result and errors
    as in `equalized_odds_gap`.

    >>> demographic_parity_gap(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]), torch.tensor([0, 1]))
    tensor(0.4000)
    """
    scores, targets = _columns(scores, targets, groups)
    return _over_columns(_gap(scores, targets >= 0, groups, pairs), columns).number()


def false_positive_rate_gap(
    scores: Tensor, targets: Tensor, groups: Tensor, *, pairs: Pairs = "all", columns: Columns = "mean"
) -> Tensor:
    r"""The mean over pairs of groups of :math:`|\Delta FPR|`, a difference of false positive rates.

    Equal to the gap of true negative rates. Arguments, result and errors as in `equalized_odds_gap`.

    >>> false_positive_rate_gap(torch.tensor([0.9, 0.5]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    tensor(0.4000)
    """
    scores, targets = _columns(scores, targets, groups)
    return _over_columns(_gap(scores, targets == 0, groups, pairs), columns).number()


def false_negative_rate_gap(
    scores: Tensor, targets: Tensor, groups: Tensor, *, pairs: Pairs = "all", columns: Columns = "mean"
) -> Tensor:
    r"""The mean over pairs of groups of :math:`|\Delta FNR|`, a difference of false negative rates.

    Equal to `equal_opportunity_gap`, since FNR is 1 - TPR; kept because the literature names both. Arguments,
    result and errors as in `equalized_odds_gap`.

    >>> false_negative_rate_gap(torch.tensor([0.9, 0.5]), torch.tensor([1, 1]), torch.tensor([0, 1]))
    tensor(0.4000)
    """
    scores, targets = _columns(scores, targets, groups)
    return _over_columns(_gap(1 - scores, targets == 1, groups, pairs), columns).number()


def accuracy_gap(
    scores: Tensor, targets: Tensor, groups: Tensor, *, pairs: Pairs = "all", columns: Columns = "mean"
) -> Tensor:
    r"""The mean over pairs of groups of :math:`|\Delta P(\hat Y = Y)|`, a difference of accuracies.

    For probabilities the accuracy is the probability given to what is true. Arguments, result and errors as
    in `equalized_odds_gap`.

    >>> accuracy_gap(torch.tensor([0.75, 0.75]), torch.tensor([1, 0]), torch.tensor([0, 1]))
    tensor(0.5000)
    """
    scores, targets = _columns(scores, targets, groups)
    right = torch.where(targets == 1, scores, 1 - scores)
    return _over_columns(_gap(right, targets >= 0, groups, pairs), columns).number()


def worst_group_loss(
    scores: Tensor, targets: Tensor, groups: Tensor, *, pairs: Pairs = "all", columns: Columns = "mean"
) -> Tensor:
    """The mean log loss of the group that has the largest (Sagawa et al. 2020); smaller is better.

    Arguments and errors as in `equalized_odds_gap`; no two groups are compared, so `pairs` changes nothing
    and is there for a call like the others. The columns are averaged before the worst group is found, or with
    ``"worst"`` the worst of both is taken. NaN when every group is unknown.

    >>> worst_group_loss(torch.tensor([0.5, 1.0]), torch.tensor([1, 1]), torch.tensor([0, 1]))
    tensor(0.6931)
    """
    _check_option("pairs", pairs, ("all", "overall"))
    scores, targets = _columns(scores, targets, groups)
    losses = _rates(_log_loss(scores, targets), targets >= 0, groups, _num_groups(groups))  # (groups, K)
    return _max(_over_columns(losses, columns)).number()


def cross_entropy(
    scores: Tensor, targets: Tensor, groups: Tensor | None = None, *, columns: Columns = "mean"
) -> Tensor:
    r"""Log loss in which the two labels of every column count equally, however rare one is.

    :math:`\tfrac12 (\overline{-\log p}_{y=1} + \overline{-\log (1-p)}_{y=0})` by the frequencies in the whole
    set given; where a label is absent the other stands alone. `groups` is taken for a call like the
    objectives' and plays no part: samples of unknown groups count. Probabilities are kept one rounding step
    away from 0 and 1.

    >>> cross_entropy(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1, 0, 0]))
    tensor(0.6931)
    """
    everyone = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    scores, targets = _columns(scores, targets, everyone)
    loss = _log_loss(scores, targets)
    by_label = [_rates(loss, targets == label, everyone, 1) for label in (0, 1)]  # each (1, K)
    return _over_columns(_mean(_stack(by_label)), columns).number()[0]


OBJECTIVES: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "equalized_odds": equalized_odds_gap,
        "equal_opportunity": equal_opportunity_gap,
        "demographic_parity": demographic_parity_gap,
        "false_positive_rate": false_positive_rate_gap,
        "false_negative_rate": false_negative_rate_gap,
        "accuracy": accuracy_gap,
        "worst_group_loss": worst_group_loss,
    }
)


def over_attributes(objective: Objective, combine: Literal["mean", "worst"] = "mean") -> Objective:
    """An objective for several attributes at once: its mean or its worst over the columns of `groups`.

    The function returned takes groups ``(n, attributes)``, or ``(n,)`` for one attribute. An attribute that
    cannot be compared is skipped; NaN when none can.

    Raises:
        ConfigError: `combine` is neither ``"mean"`` nor ``"worst"``.

    >>> groups = torch.tensor([[0, 0], [1, 0]])
    >>> over_attributes(equal_opportunity_gap)(torch.tensor([0.9, 0.5]), torch.tensor([1, 1]), groups)
    tensor(0.4000)
    """
    _check_option("combine", combine, ("mean", "worst"))

    @functools.wraps(objective)
    def combined(scores: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
        if groups.ndim == 1:
            return objective(scores, targets, groups)
        values = [objective(scores, targets, groups[:, a]) for a in range(groups.shape[1])]
        if not values:
            raise GroupError("groups have no column: name at least one sensitive attribute")
        return _combined(torch.stack(values), combine)

    return combined


# The objectives that compare rates among samples of one label, and of which labels.
WITHIN_LABEL: Mapping[Objective, tuple[int, ...]] = MappingProxyType(
    {
        equalized_odds_gap: (0, 1),
        equal_opportunity_gap: (1,),
        false_positive_rate_gap: (0,),
        false_negative_rate_gap: (1,),
    }
)


def gap_of_rates(
    rates: Sequence[tuple[Tensor, Tensor]], labels: Sequence[int], combine: Literal["mean", "worst"] = "mean"
) -> Tensor:
    """An objective of `WITHIN_LABEL` over attributes, from rates that are known: nothing waits for a device.

    Args:
        rates: for each attribute the mean score ``(groups, 2, K)`` of every group x label cell, and which cells have
            samples.
        labels: those that are compared.

    >>> rates = torch.tensor([[0.2, 0.9], [0.4, 0.5]])[:, :, None]
    >>> gap_of_rates([(rates, rates > 0)], (0, 1))
    tensor(0.3000)
    """
    values = []
    for means, known in rates:
        odds = [_between_pairs(_Figures(means[:, label], known[:, label])) for label in labels]
        values.append(_over_columns(_mean(_stack(odds)), "mean").number())
    return _combined(torch.stack(values), combine)


def _combined(values: Tensor, combine: str) -> Tensor:
    figures = _Figures(values, ~values.isnan())
    return (_mean(figures) if combine == "mean" else _max(figures)).number()


class _Figures(NamedTuple):
    """Values, and which of them exist: NaN cannot say so, as a NaN score has to show, not be skipped."""

    values: Tensor
    defined: Tensor

    def number(self) -> Tensor:
        return torch.where(self.defined, self.values, torch.nan)


def _rates(values: Tensor, condition: Tensor, groups: Tensor, num_groups: int) -> _Figures:
    """Mean of `values` (n, K) per group where `condition` (n, K) holds: (num_groups, K)."""
    # A product with the membership matrix, not index_add: the same bits on every run, on CUDA too. Float64,
    # since autocast and TF32 would otherwise round the sums.
    member = (torch.arange(num_groups, device=groups.device)[:, None] == groups).double()  # (groups, n)
    counts = member @ condition.double()
    sums = member @ torch.where(condition, values, 0).double()
    # Divided by at least 1: the gradient of 0 / 0 is NaN even where the quotient is not used.
    return _Figures((sums / counts.clamp(min=1)).to(values.dtype), counts > 0)


def _gap(values: Tensor, condition: Tensor, groups: Tensor, pairs: Pairs) -> _Figures:
    """Mean absolute difference of the groups' rates, per column: (K,)."""
    _check_option("pairs", pairs, ("all", "overall"))
    rates, defined = _rates(values, condition, groups, _num_groups(groups))  # (groups, K)
    if pairs == "overall":
        overall = _rates(values, condition, torch.where(groups < 0, -1, 0), 1).values
        return _Figures(_mean(_Figures((rates - overall).abs(), defined)).values, defined.sum(0) > 1)
    return _between_pairs(_Figures(rates, defined))


def _between_pairs(figures: _Figures) -> _Figures:
    """Mean absolute difference of every two of ``(groups, K)``."""
    rates, defined = figures
    first, second = torch.triu_indices(len(rates), len(rates), offset=1, device=rates.device)
    return _mean(_Figures((rates[first] - rates[second]).abs(), defined[first] & defined[second]))


def _stack(figures: Sequence[_Figures]) -> _Figures:
    return _Figures(torch.stack([f.values for f in figures]), torch.stack([f.defined for f in figures]))


def _mean(figures: _Figures) -> _Figures:
    """Mean over the first axis of what is defined."""
    count = figures.defined.sum(0)
    return _Figures(torch.where(figures.defined, figures.values, 0).sum(0) / count.clamp(min=1), count > 0)


def _max(figures: _Figures) -> _Figures:
    """Largest over the first axis of what is defined."""
    if not len(figures.values):
        return _mean(figures)
    values = torch.where(figures.defined, figures.values, -torch.inf)
    return _Figures(values.amax(0), figures.defined.any(0))


def _over_columns(figures: _Figures, columns: Columns) -> _Figures:
    """One figure per row of (..., K)."""
    _check_option("columns", columns, ("mean", "worst"))
    columns_first = _Figures(figures.values.movedim(-1, 0), figures.defined.movedim(-1, 0))
    return _mean(columns_first) if columns == "mean" else _max(columns_first)


def _log_loss(scores: Tensor, targets: Tensor) -> Tensor:
    smallest = torch.finfo(scores.dtype).eps
    return -torch.where(targets == 1, scores, 1 - scores).clamp(min=smallest).log()


def _columns(scores: Tensor, targets: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and targets as (n, K), their shapes checked."""
    scores = _floating(scores)
    if scores.ndim == 2 and targets.ndim == 1:
        targets = one_vs_rest(targets, scores.shape[1])
    elif scores.ndim == 1 and targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    _check_shapes(scores, targets, groups)
    return (scores, targets) if scores.ndim == 2 else (scores[:, None], targets[:, None])


def _check_shapes(scores: Tensor, others: Tensor, groups: Tensor) -> None:
    if scores.ndim not in (1, 2) or others.shape != scores.shape:
        raise DataError(
            f"scores have the shape {tuple(scores.shape)} and what goes with them {tuple(others.shape)}: "
            "expected both (n,) or both (n, columns)"
        )
    if groups.shape != scores.shape[:1]:
        raise DataError(
            f"groups have the shape {tuple(groups.shape)}: expected ({len(scores)},), one id per sample; "
            "for several attributes use over_attributes"
        )


def _check_option(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}: expected {' or '.join(map(repr, allowed))}")


def _num_groups(groups: Tensor) -> int:
    return max(int(groups.max()) + 1, 0) if groups.numel() else 0


def _floating(values: Tensor) -> Tensor:
    """Float32 or float64: half precision is raised, 0/1 integers and booleans become float64."""
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.float() if values.is_floating_point() else values.double()
