"""What the settings say of each step: how it trains, what it minimises, how the gap is measured."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from bmft import fairness
from bmft.auditing import Predictions
from bmft.settings import Settings
from bmft.training import Loss, Step, gap_of

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def step_of(settings: Settings, number: int) -> Step:
    """How step 1 (`number` 0) or step 2 (1) trains."""
    return Step(
        epochs=settings.epochs[number],
        lr=settings.lr[number],
        trust=settings.trust,
        optimizer=settings.optimizer,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        batch_size=settings.batch_size,
        balance=settings.balance[number],
        augment=settings.augment if number == 0 else (),
        average=settings.average,
        norm_stats=settings.norm_stats if number == 0 else "frozen",
    )


def whole_step(settings: Settings) -> Step:
    """Step 1 with the epochs of both, for methods of one step."""
    return step_of(replace(settings, epochs=(sum(settings.epochs), 0)), 0)


def objective_of(settings: Settings) -> Objective:
    """The objective as a callable, for one attribute."""
    return fairness.OBJECTIVES[settings.objective] if isinstance(settings.objective, str) else settings.objective


def gap_measure(settings: Settings, threshold: float) -> Callable[[Predictions], float]:
    """The gap of predictions: a named one compares rates of decisions, a loss needs probabilities."""
    decides = isinstance(settings.objective, str) and settings.objective != "worst_group_loss"
    objective = fairness.over_attributes(objective_of(settings), combine=settings.combine)
    return gap_of(objective, threshold=threshold, on_decisions=decides)


def extractor_loss(settings: Settings) -> Loss:
    """What step 1 minimises."""
    loss = _loss(settings, settings.bias_weight[0], settings.task_weight[0])
    return replace(loss, others_weight=settings.others_weight)


def head_losses(settings: Settings) -> list[Loss]:
    """What step 2 minimises, one after the other."""
    return [_loss(settings, weight, settings.task_weight[1]) for weight in settings.bias_weight[1:]]


def _loss(settings: Settings, bias_weight: float, task_weight: float) -> Loss:
    return Loss(
        objective_of(settings),
        bias_weight=bias_weight,
        task_weight=task_weight,
        balance=settings.weigh,
        whole_set=settings.whole_set,
        combine=settings.combine,
    )
