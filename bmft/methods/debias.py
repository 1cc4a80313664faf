"""The named methods, each readable top to bottom, and the one call that runs them without doing harm."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bmft import fairness
from bmft.auditing import AuditReport, audit_predictions
from bmft.checkpoints import WeightPatch
from bmft.compute import Room, autocast_for, choose_device, laid_out_for_speed, room_for_pixels
from bmft.compute import distributed as processes
from bmft.data import GroupedData, as_grouped, assumed_of, skipped_images
from bmft.errors import ConfigError
from bmft.inference import predict
from bmft.masks import WeightMask
from bmft.methods.run import Progress, Run
from bmft.methods.table import METHODS, settings_for
from bmft.models import Activations, copied, find_head, in_own_precision, state_hash, tensors_of, working_copy
from bmft.report import DebiasReport, versions
from bmft.training import Journal, Limits, Selection, gap_of


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
            method=self.method,
            accepted=self.accepted,
            reason=self.reason,
            before=self.before,
            after=self.after,
            evaluated_on=self.evaluated_on,
            config=self.config,
            history=self.history,
            mask={"density": self.mask.density, "by_layer": self.mask.by_layer()},
            seconds=self.seconds,
            versions=versions(),
            hashes=self.hashes,
            skipped=self.skipped,
            extra={},
        )


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
        max_auc_drop, max_group_auc_drop: see `bmft.training.Limits`.
        keep: ``"best"`` is chosen on select, ``"last"`` is the final epoch, whatever it is.
        head: module path of the layer that makes the logits; found by running the model otherwise.
        intervals: of the audits before and after; they take seconds, which a search or a study saves.
        journal: a folder, made when it is needed, in which the run keeps how far it got. It is yours to remove.
        resume: go on with what the journal holds, to the same bytes; it must be of the same run.
        activations: kept from other runs of the same weights and sets, see `bmft.models.Activations`.

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
    assumed = assumed_of(*data.values())
    data = {name: replace(part, assumed=assumed) for name, part in data.items()}
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
        "seed": seed,
        "threshold": threshold,
        "max_auc_drop": max_auc_drop,
        "max_group_auc_drop": max_group_auc_drop,
        "keep": keep,
        "head": run.head.name,
        "sensitive": [a.name for a in data["fit"].attributes],
    }
    hashes = {name: part.content_hash for name, part in data.items()}
    recipe = {"method": method, "config": described, "fit_hash": hashes["fit"], "select_hash": hashes["select"]}
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
            audit_predictions(run.predict(m, placed[evaluated_on]), threshold=threshold, intervals=intervals, seed=seed)
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
        audit_predictions(predict(m, data, multi_label=many, device=where), threshold=threshold, seed=seed)
        for m in (model, outcome.model)
    )
    spent = time.perf_counter() - start
    seconds = outcome.seconds | {part: outcome.seconds[part] + spent for part in ("audit", "total")}
    hashes = outcome.hashes | {evaluated_on: data.content_hash}
    return replace(
        outcome,
        before=before,
        after=after,
        evaluated_on=evaluated_on,
        seconds=seconds,
        hashes=hashes,
        skipped=outcome.skipped + (skipped_images(data) if evaluated_on == "test" else 0),
    )


def _prepared(data: Any, batch_fn: Any, sensitive: str | list[str] | None) -> GroupedData:
    grouped = as_grouped(data, batch_fn=batch_fn)
    if sensitive is None:
        return grouped
    return grouped.with_attributes(*([sensitive] if isinstance(sensitive, str) else sensitive))
