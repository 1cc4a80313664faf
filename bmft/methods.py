"""The named methods, each readable top to bottom, and the one call that runs them without doing harm."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bmft import fairness, processes
from bmft.audit import AuditReport, audit, predict
from bmft.baselines import (
    bias_gradient_descent,
    dfr,
    fairprune,
    full,
    group_dro,
    head_only,
    selective,
    threshold_shift,
)
from bmft.copies import copied, in_own_precision, tensors_of, working_copy
from bmft.data import GroupedData, as_grouped, skipped_images
from bmft.devices import Room, autocast_for, choose_device, laid_out_for_speed, room_for_pixels
from bmft.errors import ConfigError
from bmft.finetune import Activations, SelectedWeights
from bmft.importance import relative, weight_importances
from bmft.journal import Journal
from bmft.lora import installed as peft_installed
from bmft.lora import lora
from bmft.mask import WeightMask
from bmft.models import blocks, find_head
from bmft.patch import WeightPatch, state_hash
from bmft.report import DebiasReport, versions
from bmft.run import Method, Progress, Run, from_original_head
from bmft.selection import Limits, Selection, gap_of
from bmft.settings import Settings, unknown_name

__all__ = [
    "METHODS", "Activations", "Method", "Outcome", "Progress", "Run", "Settings", "debias", "gap_of",
    "installed_methods", "settings_for", "unknown_name",
]  # fmt: skip


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

    Where no weight of the extractor may move, the head is all there is to train.
    """
    if not run.body:
        run.tune_head(reset)
        return
    moved = SelectedWeights(run.model, mask)
    run.tune_extractor(mask, run.settings.extractor_loss(), run.settings.step(0))
    for _ in run.along(moved):
        run.tune_head(reset)


def swift(run: Run) -> WeightMask:
    """Soft-mask weight fine-tuning (Yan et al. 2025).

    1. Score every weight, the head's too, by the ratio of its importance for the gap to that for the task.
    2. The soft mask is the hyperbolic tangent of the ratio; the extractor's updates are scaled by it.
    3. Only head weights whose mask exceeds their tensor's mean are reset; then the head is trained alone.
    """
    mask = WeightMask({name: torch.tanh(scores) for name, scores in run_ratio(run).items()})
    marked = {name: mask.tensors[name] > mask.tensors[name].mean() for name in run.head.parameters}
    body = mask & run.body_mask()
    two_steps(run, body, from_original_head(run, marked))
    return body | run.head_mask()


def run_ratio(run: Run) -> dict[str, torch.Tensor]:
    """Relative importance of every weight: for the gap, by that for the task."""
    with run.timed("importance"):
        bias, task = _importances(run, [run.settings.gap(), fairness.cross_entropy])
    return relative(bias, to=task, scale=run.settings.scale, floor=run.settings.floor)


def importance_mask(run: Run) -> WeightMask:
    """The mask of `bmft`: the top fraction of the extractor's weights."""
    settings, body = run.settings, run.body
    if settings.score == "ones" or not body:
        return run.body_mask()
    if settings.rank == "ratio" and settings.score != "random":
        scores: Mapping[str, torch.Tensor] = run_ratio(run)
    else:
        with run.timed("importance"):
            (scores,) = _importances(run, [settings.gap()])
    owner = {name: block for block, names in blocks(run.model, run.head).items() for name in names}
    return WeightMask.top_fraction(
        scores, settings.fraction, granularity=settings.granularity, within=body, unit_of=owner.__getitem__
    )


def _importances(run: Run, objectives: list[fairness.Objective]) -> list[dict[str, torch.Tensor]]:
    """Scores of every weight that may move, and of the head's; of all others 0."""
    settings = run.settings
    wanted = [*run.body, *run.head.parameters]
    tail, fit = run.above(wanted)
    inside = "" if tail is None else "model."

    def work(size: int) -> tuple[Mapping[str, torch.Tensor], ...]:
        return weight_importances(
            tail or run.model, objectives, fit, score=settings.score, exact=settings.exact, seed=run.seed,
            only=[inside + name for name in wanted], batch_size=size, combine=settings.combine,
            multi_label=run.multi_label, autocast=run.autocast,
        )  # fmt: skip

    # The published form depends on the batches: no smaller ones in their place.
    found = run.room(work, settings.batch_size) if settings.exact else work(settings.batch_size)
    nothing = {name: torch.zeros(parameter.shape) for name, parameter in run.model.named_parameters()}
    return [{name: scores.get(inside + name, zeros) for name, zeros in nothing.items()} for scores in found]


_PAPER = Settings(
    objective="equalized_odds", epochs=(10, 10), patience=0, lr=(1e-4, 1e-3), optimizer="sgd", momentum=0.9,
    weight_decay=5e-4, batch_size=64, bias_weight=(1.0, 0.1), path=(1.0,), task_weight=(0.0, 1.0), weigh="label",
    balance=("none", "group_in_label"),
    operating_point="free", whole_set=False, average=0.0, score="fisher", rank="ratio", scale="tensor", floor=1e-10,
    exact=False, depth=1.0, fraction=0.5,
)  # fmt: skip
_PAPER_SWIFT = replace(
    _PAPER, bias_weight=(0.9, 0.1), task_weight=(0.1, 0.9), balance=("group", "group"), reset="partial"
)
_DEFAULTS = Settings()
_FULL = replace(_DEFAULTS, depth=1.0)
_HEAD = replace(_DEFAULTS, bias_weight=(0.0, 0.0), epochs=(0, 20))
_RW = replace(_PAPER, task_weight=(1.0, 1.0), balance=("group_in_label", "group_in_label"), reset="keep")
METHODS: Mapping[str, Method] = {
    "bmft": Method(bmft, _DEFAULTS, _PAPER),
    "swift": Method(swift, replace(_FULL, rank="ratio", reset="partial"), _PAPER_SWIFT),
    "random_mask": Method(bmft, replace(_FULL, score="random"), replace(_PAPER, score="random")),
    "head": Method(head_only, _HEAD, replace(_RW, bias_weight=(0.0, 0.0), reset="zero", epochs=(0, 20))),
    "rw": Method(full, replace(_FULL, bias_weight=(0.0, 0.0)), replace(_RW, bias_weight=(0.0, 0.0))),
    "reg": Method(full, replace(_FULL, balance=("none", "none")), replace(_RW, balance=("none", "none"))),
    "rwreg": Method(full, _FULL, _RW),
    "selective": Method(
        selective,
        replace(_FULL, bias_weight=(0.0, 0.0)),
        replace(_PAPER, task_weight=(1.0, 1.0), bias_weight=(0.0, 0.0), balance=("none", "none"), reset="keep"),
    ),
    "lora": Method(lora, _FULL, replace(_RW, bias_weight=(0.0, 0.0), balance=("none", "none"))),
    "group_dro": Method(group_dro, _FULL, replace(_PAPER, balance=("cell", "cell"))),
    "bias_gradient_descent": Method(
        bias_gradient_descent, replace(_FULL, task_weight=(0.0, 1.0)), replace(_PAPER, optimizer="adam")
    ),
    "dfr": Method(dfr, _DEFAULTS, _PAPER),
    "fairprune": Method(fairprune, _FULL, _PAPER),
    "threshold": Method(threshold_shift, _DEFAULTS, _PAPER),
}


def installed_methods() -> tuple[str, ...]:
    """Names in `METHODS` of those that can run here: ``lora`` needs peft."""
    return tuple(name for name in METHODS if name != "lora" or peft_installed())


def settings_for(method: str, config: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a named method with these values; ``preset = "paper"`` starts from the published ones.

    Raises:
        ConfigError: the method, the preset or a value is not known.

    >>> settings_for("bmft", {"preset": "paper"}).fraction
    0.5
    """
    if method not in METHODS:
        raise ConfigError(unknown_name("method", method, METHODS))
    values = dict(config or {})
    preset = values.pop("preset", "default")
    if preset not in ("default", "paper"):
        raise ConfigError(f"preset is {preset!r}: expected 'default' or 'paper'")
    return (METHODS[method].paper if preset == "paper" else METHODS[method].defaults).with_values(values)


@dataclass(frozen=True)
class Outcome:
    """What `debias` gives back.

    Attributes:
        model: a new model of the class that came in; the original's weights where nothing was accepted.
        mask: the weights the method was allowed to move.
        patch: from the original's state dict to this model's.
        history: one entry per epoch, the untouched model first.
        before, after: audits of the original and of `model` on the same samples.
        accepted: whether an epoch met the conditions.
        reason: why this epoch, or why none.
        evaluated_on: ``"test"`` or ``"select"``.
        seconds: time spent, by part.
    """

    model: nn.Module
    mask: WeightMask
    patch: WeightPatch
    history: list[dict[str, Any]]
    before: AuditReport
    after: AuditReport
    accepted: bool
    reason: str
    method: str
    config: dict[str, Any]
    seconds: dict[str, float]
    evaluated_on: Literal["test", "select"]
    hashes: dict[str, str]
    skipped: int = 0

    @property
    def report(self) -> DebiasReport:
        """The same as a report, for `bmft.report.write_report`."""
        return DebiasReport(
            method=self.method, accepted=self.accepted, reason=self.reason, before=self.before, after=self.after,
            evaluated_on=self.evaluated_on, config=self.config, history=self.history,
            mask={"density": self.mask.density, "by_layer": self.mask.by_layer()}, seconds=self.seconds,
            versions=versions(), hashes=self.hashes, skipped=self.skipped, extra={},
        )  # fmt: skip


def debias(
    model: nn.Module,
    fit: Any,
    select: Any,
    *,
    method: str = "bmft",
    sensitive: str | list[str] | None = None,
    test: Any = None,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    threshold: float = 0.5,
    max_auc_drop: float = 0.01,
    max_group_auc_drop: float = 0.02,
    keep: Literal["best", "last"] = "best",
    device: str = "auto",
    batch_fn: Callable[[Any], tuple[Any, torch.Tensor, torch.Tensor]] | None = None,
    head: str | None = None,
    multi_label: bool = False,
    intervals: bool = True,
    activations: Activations | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Give back a model of the same class whose gap between groups is smaller, moving only the weights that carry it.

    `model` itself is not changed. The fit set trains, the select set chooses, and what is reported is measured on
    `test` if given, else on the select set.

    Args:
        fit, select, test: each a `GroupedData`, or anything that yields ``(inputs, targets, groups)`` batches
            (through `batch_fn` if they look otherwise), which is then read once into memory.
        method: a name in `METHODS`.
        sensitive: the attributes to take from the data; all by default.
        config: values for the method's `Settings`, and ``preset``.
        threshold: probability from which a decision is positive.
        max_auc_drop, max_group_auc_drop: see `bmft.selection.Limits`.
        keep: ``"best"`` is chosen on select, ``"last"`` is the final epoch, whatever it is.
        head: module path of the layer that makes the logits; found by running the model otherwise.
        intervals: of the audits before and after; they take seconds, which a search or a study saves.
        journal: a folder, made when it is needed, in which the run keeps how far it got. It is yours to remove.
        resume: go on with what the journal holds, to the same bytes; it must be of the same run.
        activations: kept from other runs of the same weights and sets, see `bmft.finetune.Activations`.

    Raises:
        ConfigError: a method, setting or option is not known or not possible.
        GroupError: there is nothing to compare.
        ConstantPredictorError: the model decides the same for everybody.
        NonFiniteError: a logit or a loss is not finite.
    """
    start = time.perf_counter()
    settings = settings_for(method, config)
    if settings.on_out_of_memory == "halve" and processes.count() > 1:
        raise ConfigError("on_out_of_memory = 'halve' (--batch-size auto) is for one process: name a batch size")
    if settings.norm_stats == "update" and processes.count() > 1:
        raise ConfigError("norm_stats = 'update' is for one process: each of several would keep statistics of its own")
    sets = {"fit": fit, "select": select} | ({} if test is None else {"test": test})
    data = {name: _prepared(value, batch_fn, sensitive) for name, value in sets.items()}
    multi_label = multi_label or data["fit"].task == "multilabel"
    where = choose_device(device)
    tuned = laid_out_for_speed(working_copy(model, where))
    placed = {name: part.on(where, room_for_pixels(where)) for name, part in data.items()}
    run = Run(
        model=tuned,
        head=find_head(tuned, placed["fit"].take(slice(0, 2)).to(where).inputs, name=head),
        fit=placed["fit"],
        select=placed["select"],
        settings=settings,
        selection=Selection(
            tuned,
            gap_of(
                fairness.over_attributes(settings.gap(), combine=settings.combine),
                threshold=threshold,
                on_decisions=settings.on_decisions,
            ),
            Limits(max_auc_drop, max_group_auc_drop),
            threshold,
            keep,
            tensors_of(model),
            settings.choose,
        ),
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
        multi_label=multi_label,
        autocast=autocast_for(where, settings.precision, tuned),
        progress=progress,
        activations=Activations() if activations is None else activations,
        room=Room(shrinks=settings.on_out_of_memory == "halve"),
    )
    described = settings.to_dict() | {
        "seed": seed, "threshold": threshold, "max_auc_drop": max_auc_drop, "max_group_auc_drop": max_group_auc_drop,
        "keep": keep, "head": run.head.name, "sensitive": [a.name for a in data["fit"].attributes],
    }  # fmt: skip
    hashes = {name: part.content_hash for name, part in data.items()}
    recipe = {
        "method": method,
        "config": described,
        "fit_hash": hashes["fit"],
        "select_hash": hashes["select"],
    }
    if journal is not None:
        decides = described | {"method": method, "model": state_hash(tensors_of(model)), "versions": versions()}
        data_hashes = {"fit rows": hashes["fit"], "select rows": hashes["select"]}
        run.journal = Journal(Path(journal), decides | data_hashes | {"device": str(where)}, resume=resume)
    evaluated_on: Literal["test", "select"] = "test" if "test" in data else "select"
    with run.timed("audit"):
        run.selection.start(run.predict(tuned, placed["select"]))
    mask = METHODS[method].run(run)
    accepted = run.selection.finish()
    # As the model came, layout and all: what is reported is then what an audit of the file says, to the last bit.
    result = copied(model)
    if accepted:
        result.load_state_dict(in_own_precision(tuned.state_dict(), model.state_dict()))
    with run.timed("audit"):
        before, after = (
            audit(run.predict(m, placed[evaluated_on]), threshold=threshold, intervals=intervals, seed=seed)
            for m in (model, result)
        )
    run.seconds["total"] = time.perf_counter() - start
    return Outcome(
        model=result,
        mask=mask,
        patch=WeightPatch.between(tensors_of(model), tensors_of(result), recipe),
        history=run.selection.history,
        before=before,
        after=after,
        accepted=accepted,
        reason=run.selection.reason(),
        method=method,
        config=described,
        seconds=run.seconds,
        evaluated_on=evaluated_on,
        hashes=hashes,
        skipped=skipped_images(*data.values()),
    )


def remeasured(
    outcome: Outcome,
    model: nn.Module,
    data: GroupedData,
    evaluated_on: Literal["test", "select"],
    *,
    threshold: float,
    seed: int,
    device: str,
    multi_label: bool,
) -> Outcome:
    """The same outcome of `model`, with the audits, intervals included, that `debias` makes of this set."""
    where, start = str(choose_device(device)), time.perf_counter()
    many = multi_label or data.task == "multilabel"
    before, after = (
        audit(predict(m, data, multi_label=many, device=where), threshold=threshold, seed=seed)
        for m in (model, outcome.model)
    )
    spent = time.perf_counter() - start
    seconds = outcome.seconds | {part: outcome.seconds[part] + spent for part in ("audit", "total")}
    hashes = outcome.hashes | {evaluated_on: data.content_hash}
    return replace(
        outcome, before=before, after=after, evaluated_on=evaluated_on, seconds=seconds, hashes=hashes,
        skipped=outcome.skipped + (skipped_images(data) if evaluated_on == "test" else 0),
    )  # fmt: skip


def _prepared(data: Any, batch_fn: Any, sensitive: str | list[str] | None) -> GroupedData:
    grouped = as_grouped(data, batch_fn=batch_fn)
    if sensitive is None:
        return grouped
    return grouped.with_attributes(*([sensitive] if isinstance(sensitive, str) else sensitive))
