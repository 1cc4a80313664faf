"""What the settings say of each step: how it trains, what it minimises, how the gap is measured."""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from bmft import fairness
from bmft.settings import Settings
from bmft.training import Gap, Loss, Step

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
ENOUGH = 40  # steps at each strength
LONG = 0.97  # decay of the average where the steps are few


def step_of(settings: Settings, number: int) -> Step:
    """How step 1 (`number` 0) or step 2 (1) trains."""
    views = 2 ** len(settings.views) if number == 0 else 1
    extractors = ("augment", "norm_stats", "warmup") if number == 0 else ()
    alike = ("trust", "optimizer", "momentum", "weight_decay", "batch_size", "average", *extractors)
    return Step(
        **{name: getattr(settings, name) for name in alike},
        **{name: getattr(settings, name)[number] for name in ("epochs", "lr", "balance")},
        share=1 / views,
        copies=views,
    )


def graded(settings: Settings, samples: int) -> Step:
    """Step 1 at the settings' rising strengths: how many epochs at each.

    The epochs are shared out evenly, the first strengths taking what is left over; of more strengths than epochs some
    are left out. Where an epoch is short there are as many more as take `ENOUGH` steps at each, at half the rate and
    with a longer average, which a path of few and noisy steps needs. The rate is found in finer steps than elsewhere:
    all strengths go at the same one.

    >>> graded(Settings(strengths=(1.0, 2.0), epochs=(5, 0), batch_size=1), 40).strengths
    (1.0, 1.0, 1.0, 2.0, 2.0)
    >>> graded(Settings(strengths=(1.0, 2.0), epochs=(2, 0), batch_size=1), 20).strengths
    (1.0, 1.0, 2.0, 2.0)
    """
    step, strengths = step_of(settings, 0), settings.strengths
    number = min(step.epochs, len(strengths))
    taken = [strengths[(place + 1) * len(strengths) // number - 1] for place in range(number)]
    shares = [step.epochs // number + (place < step.epochs % number) for place in range(number)]
    steps = step.epochs * math.ceil(samples / step.batch_size) / max(number, 1)
    if steps < ENOUGH and number:
        more = math.ceil(ENOUGH / steps)
        shares = [share * more for share in shares]
        step = replace(step, trust=step.trust / 2, average=max(step.average, LONG))
    each = tuple(strength for strength, share in zip(taken, shares, strict=True) for _ in range(share))
    return replace(step, epochs=len(each), strengths=each, rate_factor=2.0, rate_between=True)


def whole_step(settings: Settings) -> Step:
    """Step 1 with the epochs of both, for methods of one step."""
    return step_of(replace(settings, epochs=(sum(settings.epochs), 0)), 0)


def objective_of(settings: Settings) -> Objective:
    """The objective as a callable, for one attribute."""
    return fairness.OBJECTIVES[settings.objective] if isinstance(settings.objective, str) else settings.objective


def gap_measure(settings: Settings, threshold: float) -> Gap:
    """The gap of predictions: a named one compares rates of decisions, a loss needs probabilities."""
    decides = isinstance(settings.objective, str) and settings.objective != "worst_group_loss"
    objective = fairness.over_attributes(objective_of(settings), combine=settings.combine)
    name = settings.objective if isinstance(settings.objective, str) and decides else ""
    return Gap(objective, threshold, decides, name, settings.combine)


def extractor_loss(settings: Settings) -> Loss:
    """The loss that step 1 minimises."""
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
        order_weight=settings.order_weight,
    )
