"""BMFT and SWiFT: importance, a mask, the extractor under it, then the head."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from bmft import fairness
from bmft.errors import NothingFitsError
from bmft.masks import WeightMask, relative, weight_importances
from bmft.methods.losses import extractor_loss, graded, head_losses, objective_of, step_of
from bmft.methods.run import Run, from_original_head
from bmft.models import blocks, state_hash, tensors_of
from bmft.training import SelectedWeights


def bmft(run: Run) -> WeightMask:
    """Bias gradient-based masked fine-tuning (Xue et al. 2024).

    1. Score every extractor weight by its importance for the gap (and for the task, when ranked by their ratio).
    2. The top fraction is the mask.
    3. Move the masked weights against the gap.
    4. At each point of the path from the original to the moved extractor, train a new head on its features.
    """
    mask = importance_mask(run)
    two_steps(run, mask, reset=from_original_head(run))
    return mask | run.head_mask()


def two_steps(run: Run, mask: WeightMask, reset: Callable[[], None]) -> None:
    """Change the model: the extractor under `mask`, then the head from `reset` along the path.

    Where no weight of the extractor may move, the head is all there is to train. Given strengths, step 1 goes through
    them without a break, and where it is at the end of each is a candidate; one more is a head trained on top of the
    one that would be chosen so far.
    """
    if run.settings.strengths:
        step = graded(run.settings, len(run.fit))
        run.course.expected = step.epochs + (step_of(run.settings, 1).epochs if run.body else 0)
        run.tune_extractor(mask if run.body else run.head_mask(), extractor_loss(run.settings), step)
        run.course.begun = step.epochs
        run.prefer()
        if run.body and run.preferred:
            run.tune_head(reset)
        return
    if not run.body:
        run.tune_head(reset)
        return
    moved = SelectedWeights(run.model, mask)
    heads = len(run.settings.path) * len(head_losses(run.settings))
    run.course.expected = step_of(run.settings, 0).epochs + heads * step_of(run.settings, 1).epochs
    run.tune_extractor(mask, extractor_loss(run.settings), step_of(run.settings, 0))
    for _ in run.along(moved):
        run.tune_head(reset)


def swift(run: Run) -> WeightMask:
    """Soft-mask weight fine-tuning (Yan et al. 2025).

    1. Score every weight, the head's too, by the ratio of its importance for the gap to that for the task.
    2. The soft mask is the hyperbolic tangent of the ratio; the extractor's updates are scaled by it.
    3. Only head weights whose mask exceeds their tensor's mean are reset; then the head is trained alone.
    """
    mask = WeightMask({name: torch.tanh(scores) for name, scores in run_ratio(run).items()})
    rows = run.head.rows(run.model)
    marked = {name: own & (mask.tensors[name] > mask.tensors[name][own].mean()) for name, own in rows.items()}
    body = mask & run.body_mask()
    two_steps(run, body, from_original_head(run, marked))
    return body | run.head_mask()


def run_ratio(run: Run) -> dict[str, torch.Tensor]:
    """Relative importance of every weight: for the gap, by that for the task."""
    with run.course.timed("importance"):
        bias, task = _importances(run, [objective_of(run.settings), fairness.cross_entropy])
    return relative(bias, to=task, scale=run.settings.scale, floor=run.settings.floor)


def importance_mask(run: Run) -> WeightMask:
    """The mask of `bmft`: the top fraction of the extractor's weights, by default in whole layers.

    Where no layer is as small as that, it is the top fraction of single weights, and the report says so.
    """
    settings, body = run.settings, run.body
    if settings.score == "ones" or not body:
        return run.body_mask()
    if settings.rank == "ratio" and settings.score != "random":
        scores: Mapping[str, torch.Tensor] = run_ratio(run)
    else:
        with run.course.timed("importance"):
            (scores,) = _importances(run, [objective_of(settings)])
    owner = {name: block for block, names in blocks(run.model, run.head).items() for name in names}
    top = partial(WeightMask.top_fraction, scores, settings.fraction, within=body, unit_of=owner.__getitem__)
    try:
        return top(granularity=settings.granularity)
    except NothingFitsError:
        if settings.granularity != "layer":
            raise
        run.selection.remarks.append(
            f"no layer that carries the gap is as small as {settings.fraction:.3g} of the weights that may move: "
            "the most important single weights were taken instead (--granularity weight)"
        )
        return top(granularity="weight")


def _importances(run: Run, objectives: list[fairness.Objective]) -> list[dict[str, torch.Tensor]]:
    """Scores of every weight that may move, and of the head's; of all others 0.

    Runs that share activations share them: scores by the gradient do not depend on what else is scored.
    """
    settings = run.settings
    wanted = [*run.body, *run.head.parameters]
    by_gradient = settings.exact and settings.score not in ("integrated_gradients", "random")

    def scored() -> list[Mapping[str, torch.Tensor]]:
        tail, seen = run.above(wanted, run.viewed if run.stays_below else run.fit)
        # Those of the images as they are come first.
        fit = seen.subset(torch.arange(len(run.fit)))
        known = run.first_logits(tail, seen)[: len(fit)] if by_gradient and run.stays_below else None
        inside = "" if tail is None else "model."

        def work(size: int) -> tuple[Mapping[str, torch.Tensor], ...]:
            return weight_importances(
                tail or run.model,
                objectives,
                fit,
                score=settings.score,
                exact=settings.exact,
                seed=run.conditions.seed,
                only=[inside + name for name in wanted],
                batch_size=size,
                combine=settings.combine,
                multi_label=run.conditions.multi_label,
                logits=None if known is None else run.own(known),
                autocast=run.autocast,
                recompute=run.room.recompute,
            )

        # The published form depends on the batches: no smaller ones in their place.
        found = run.room(work, settings.batch_size) if settings.exact else work(settings.batch_size)
        return [{name: scores[inside + name] for name in wanted} for scores in found]

    if settings.score in ("random", "ones"):
        found = scored()
    else:
        with run.autocast():
            half = torch.is_autocast_enabled(run.device.type)
        told = (settings.score, settings.exact, settings.batch_size, settings.combine, run.conditions.multi_label)
        key = ("importance", state_hash(tensors_of(run.model)), *objectives, *told, half)
        found = run.activations.once(key, run.fit, scored, lambda there: there[0].keys() >= set(wanted))
        if by_gradient and run.stays_below:
            run.first_logits(run.tail, run.viewed)  # known by now, also where another run scored: step 1 begins there
    if settings.score != "random":
        run.importance = {name: float(found[0][name].double().sum()) for name in wanted}
    nothing = {name: torch.zeros(()).expand(parameter.shape) for name, parameter in run.model.named_parameters()}
    return [nothing | {name: scores[name] for name in wanted} for scores in found]
