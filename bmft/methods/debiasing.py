"""The one call that runs a named method without doing harm: prepare, run, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from bmft._common import as_json, short, watched
from bmft.auditing import (
    AuditReport,
    Drift,
    Predictions,
    Violation,
    audit_predictions,
    moved_others,
    other_drifts,
    refuse_swapped,
)
from bmft.checkpoints import WeightPatch, plain_inputs
from bmft.compute import (
    Room,
    autocast_for,
    choose_device,
    distributed as processes,
    laid_out_for_speed,
    room_for_pixels,
)
from bmft.data import GroupedData, apart, as_grouped, skipped_images
from bmft.errors import ConfigError
from bmft.inference import predict
from bmft.masks import WeightMask
from bmft.methods.calibrating import Calibration, check_calibrates, fold_in
from bmft.methods.course import Course, Progress
from bmft.methods.located import by_block
from bmft.methods.losses import gap_measure
from bmft.methods.run import Run
from bmft.methods.table import METHODS, settings_for
from bmft.methods.turning import positive_last
from bmft.methods.views import known_views, told_views
from bmft.models import (
    Activations,
    copied,
    find_head,
    in_own_precision,
    mark,
    reading_of,
    settle,
    state_hash,
    tensors_of,
    working_copy,
)
from bmft.report import DebiasReport, versions
from bmft.settings import Settings
from bmft.training import Conditions, Journal, Selection

if TYPE_CHECKING:
    import pandas as pd

    from bmft.auditing import charts

POINT_KEPT = "candidates call as many positive as the original does: --operating-point free lets that change"


@dataclass(frozen=True, repr=False)
class Outcome:
    """The result of `debias`.

    Attributes:
        model: A new model of the same class as the original; it has the original's weights where no epoch was accepted.
        mask: The weights that the method was allowed to move.
        patch: The difference between the original's state dict and this model's.
        report: Audits, settings and history of the run; `bmft.write_report` writes it to a folder.
    """

    model: nn.Module
    mask: WeightMask
    patch: WeightPatch
    report: DebiasReport

    def __repr__(self) -> str:
        kind = type(self.model).__name__
        return f"Outcome({kind}, {short(self.report.summary, 240)}, {self.mask.density:.2%} of the weights in the mask)"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def to_frame(self) -> pd.DataFrame:
        """The figures before and after, see `DebiasReport.to_frame`."""
        return self.report.to_frame()

    def plot(self, ax: charts.Axes | None = None) -> charts.Axes:
        """The trade-off of every epoch, see `DebiasReport.plot`."""
        return self.report.plot(ax)

    @property
    def accepted(self) -> bool:
        """Whether an epoch met the conditions."""
        return self.report.accepted

    @property
    def reason(self) -> str:
        """Why this epoch, or why none."""
        return self.report.reason

    @property
    def before(self) -> AuditReport:
        """The audit of the original."""
        return self.report.before

    @property
    def after(self) -> AuditReport:
        """The audit of `model` on the same samples."""
        return self.report.after


@positive_last
def debias(
    model: nn.Module,
    fit: Any,
    select: Any,
    *,
    method: str = "bmft",
    sensitive: str | list[str] | None = None,
    test: Any = None,
    config: Mapping[str, Any] | Settings | None = None,
    conditions: Conditions | None = None,
    batch_fn: Callable[[Any], tuple[Any, torch.Tensor, torch.Tensor]] | None = None,
    allow_shared_rows: bool = False,
    activations: Activations | None = None,
    calibrate: bool = False,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: bool | Callable[[Progress], None] = False,
    **but: Any,
) -> Outcome:
    """Give back a model of the same class whose gap between groups is smaller, moving only the weights that carry it.

    `model` itself is not changed. The fit set trains, the select set chooses, and what is reported is measured on
    `test` if given, else on the select set.

    Args:
        model: a classifier that gives logits; what else it gives is said by `bmft.read_as`.
        fit, select, test: each a `GroupedData`, or anything that yields ``(inputs, targets, groups)`` batches
            (through `batch_fn` if they look otherwise), which is then read once into memory.
        method: a name in `METHODS`.
        sensitive: the attributes to take from the data; all by default.
        config: values for the method's `Settings`, and ``preset``; or whole `Settings`.
        conditions: see `bmft.Conditions`; any of them can be given by its own name, too: ``seed=1``.
        allow_shared_rows: take sets that share pictures or patients, which is an error otherwise; the report says so.
        activations: kept from other runs of the same weights and sets, see `bmft.models.Activations`.
        calibrate: fold a temperature and a shift into the head of a result that is accepted, so that probabilities mean
            what they say; it decides the same at another threshold, which ``outcome.after.threshold`` is.
        journal: a folder, made when it is needed, in which the run keeps how far it got. It is yours to remove.
        resume: go on with what the journal holds, to the same bytes; it must be of the same run.
        progress: shows a bar (tqdm's), or is a function that is called after every epoch.

    Raises:
        ConfigError: a method, setting or condition is not known or not possible.
        DataError: two sets share rows.
        GroupError: there is nothing to compare.
        ConstantPredictorError: the model decides the same for everybody.
        DataError: the classes look swapped: the ROC AUC on select lies wholly below one half.
        NonFiniteError: a logit or a loss is not finite.

    >>> from bmft.data import from_arrays
    >>> labels = torch.arange(200) % 2
    >>> inputs = torch.linspace(-1, 1, 200)[:, None] * torch.tensor([1.0, -0.5]) + labels[:, None] - 0.5
    >>> fit, select = from_arrays(inputs, labels, torch.arange(200) // 2 % 2).split(0.5, 0.5)
    >>> network = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(network.weight, 0.5)
    >>> outcome = debias(network, fit, select, method="head", config={"epochs": (0, 2)})
    >>> outcome.report.evaluated_on, len(outcome.report.history) > 2
    ('select', True)
    """
    start = time.perf_counter()
    settings = settings_for(method, config)
    if conditions is None and (cut := reading_of(model).threshold) is not None:
        but = {"threshold": cut, **but}  # a model that was calibrated is cut there unless somebody says otherwise
    conditions = (conditions or Conditions()).but(**but)
    sets = {"fit": fit, "select": select} | ({} if test is None else {"test": test})
    data = {name: as_rows(value, batch_fn, sensitive) for name, value in sets.items()}
    data = apart(data, allow=allow_shared_rows)
    look = watched(progress, lambda now: now.place)
    run = prepared(model, data, settings, conditions, look, activations)
    if calibrate:
        check_calibrates(run)
    described = described_run(run)
    described |= {"calibrate": True} if calibrate else {}
    hashes = {name: part.content_hash for name, part in data.items()}
    if journal is not None:
        decides = described | {"method": method, "model": state_hash(tensors_of(model)), "versions": versions()}
        rows = {f"{name} rows": hashes[name] for name in ("fit", "select")}
        run.journal = Journal(Path(journal), decides | rows | {"device": str(run.device)}, resume=resume)
    with run.course.timed("audit"):
        untouched = run.first_look(model, run.select)
        run.selection.start(untouched)
        refuse_swapped(untouched)
        hold_others(run)
    mask = METHODS[method].run(run)
    accepted, result = _result(model, run)
    where: Literal["test", "select"] = "test" if "test" in data else "select"
    calibrated = fold_in(run, result, data.get("test")) if calibrate and accepted else None
    if calibrated is not None:
        mask = mask | run.head_mask()
    with run.course.timed("audit"):
        measured = data[where].on(run.device, room_for_pixels(run.device)) if where == "test" else run.select
        told = as_json(told_views(settings.views, run.settings.views))
        before = audited(untouched if where == "select" else run.first_look(model, measured), conditions, told)
        own = conditions if calibrated is None else calibrated.conditions(conditions)
        after = audited(run.predict(result, measured), own, told) if accepted else before
        if calibrated is not None and where == "select":
            after = calibrated.left_out(after)
        others = others_of(run, model, result)
        if others:
            others[where] = other_drifts(before.predictions, after.predictions)
    run.course.seconds["total"] = time.perf_counter() - start
    return concluded(
        run,
        run.selection,
        (model, result),
        (before, after),
        mask,
        recipe={"method": method, "config": described, "fit_hash": hashes["fit"], "select_hash": hashes["select"]},
        evaluated_on=where,
        hashes=hashes,
        skipped=skipped_images(*data.values()),
        other_outputs=others,
        calibration=None if calibrated is None else calibrated.calibration,
    )


def concluded(
    run: Run,
    selection: Selection,
    models: tuple[nn.Module, nn.Module],
    audits: tuple[AuditReport, AuditReport],
    mask: WeightMask,
    *,
    recipe: dict[str, Any],
    evaluated_on: str,
    hashes: Mapping[str, str],
    skipped: int,
    other_outputs: Mapping[str, Mapping[str, Drift]],
    refused: str = "",
    calibration: Calibration | None = None,
) -> Outcome:
    """What came of a run, of its models before and after: patch and report.

    Changes the new model: where it decides at another threshold, it notes that.
    """
    (model, result), (before, after), columns = models, audits, run.fit.columns
    recipe = recipe | ({} if selection.claim is None else {"evidence": selection.claim.word})
    recipe |= {"inputs": plain_inputs(columns)} if columns else {}
    recipe |= _cut_at(result, after.threshold, calibration)
    patch = WeightPatch.between(tensors_of(model), tensors_of(result), recipe)
    return Outcome(
        result,
        mask,
        patch,
        DebiasReport(
            method=recipe["method"],
            accepted=bool(selection.chosen),
            reason=refused or selection.reason(),
            before=before,
            after=after,
            evaluated_on=evaluated_on,
            config=recipe["config"],
            history=selection.history,
            mask={"density": mask.density, "by_layer": mask.by_layer(), "by_block": by_block(run, mask, patch)},
            seconds=run.course.seconds,
            versions=versions(),
            hashes=hashes,
            skipped=skipped,
            other_outputs=other_outputs,
            claim=_claimed(selection, calibration is not None),
            calibration=None if calibration is None else calibration.to_dict(),
        ),
    )


def described_run(run: Run) -> dict[str, Any]:
    """What decides its result, as plain values for a report and a patch."""
    columns = run.fit.columns
    found = run.settings.to_dict() | run.conditions.to_dict()
    found |= {"head": run.head.name, "sensitive": [a.name for a in run.fit.attributes]}
    return found | reading_of(run.model).described() | ({"inputs": list(map(str, columns))} if columns else {})


def _claimed(selection: Selection, calibrated: bool) -> dict[str, Any] | None:
    """The claim as plain values, without the figure that a calibration changed afterwards."""
    if selection.claim is None:
        return None
    found = selection.claim.to_dict() | {"rows": selection.rows_that_settle()}
    kept = [one for one in found["figures"] if not (calibrated and "calibration" in one["figure"])]
    return found | {"figures": kept}


def _cut_at(result: nn.Module, threshold: float, calibration: Calibration | None) -> dict[str, Any]:
    """Change `result`: note where it decides, unless that is as ever; and what its patch says of that."""
    own = reading_of(result)
    if own.threshold is None and (calibration is None or calibration.threshold is None):
        cut: dict[str, Any] = {}
    else:
        mark(result, replace(own, threshold=threshold))
        cut = {"threshold": threshold}
    return cut if calibration is None else cut | {"calibration": calibration.brief}


def hold_others(run: Run) -> None:
    """Where one output of many is debiased, let the limit on the others hold on fit, too."""
    if reading_of(run.model).output is None:
        return
    before = run.predict(run.model, run.fit)

    def moved() -> Iterator[Violation]:
        for one in moved_others(before, run.predict(run.model, run.fit), run.conditions.limits):
            yield replace(one, what=f"{one.what} on fit")

    run.selection.further = moved


def others_of(run: Run, model: nn.Module, result: nn.Module) -> dict[str, Mapping[str, Drift]]:
    """How far the other outputs moved on fit and select, where there are any."""
    if reading_of(run.model).output is None:
        return {}
    sets = {"fit": run.fit, "select": run.select}
    return {name: other_drifts(run.predict(model, rows), run.predict(result, rows)) for name, rows in sets.items()}


def prepared(
    model: nn.Module,
    data: Mapping[str, GroupedData],
    settings: Settings,
    conditions: Conditions,
    progress: Callable[[Progress], None],
    activations: Activations | None,
) -> Run:
    """All that a method works on, on its device."""
    for name, value, why in (
        ("on_out_of_memory", "halve", "(--batch-size auto) is for one process: name a batch size"),
        ("norm_stats", "update", "is for one process: each of several would keep statistics of its own"),
    ):
        if getattr(settings, name) == value and processes.count() > 1:
            raise ConfigError(f"{name} = {value!r} {why}")
    where = choose_device(conditions.device)
    tuned = laid_out_for_speed(working_copy(model, where))
    settle(tuned, data["fit"], multi_label=conditions.multi_label, place=lambda tensor: tensor.to(where))
    fit, select = (data[name].on(where, room_for_pixels(where)) for name in ("fit", "select"))
    autocast = autocast_for(where, settings.precision, tuned)
    settings = replace(settings, views=known_views(tuned, fit, settings.views, autocast=autocast))
    gap = gap_measure(settings, conditions.threshold)
    return Run(
        model=tuned,
        head=find_head(tuned, fit.take(slice(0, 2)).to(where).inputs, name=conditions.head),
        fit=fit,
        select=select,
        settings=settings,
        conditions=replace(conditions, multi_label=conditions.multi_label or fit.task == "multilabel"),
        selection=Selection(
            tuned,
            gap,
            conditions,
            tensors_of(model),
            settings.choose,
            few=bool(settings.strengths) and settings.choose == "gap",
        ),
        generator=torch.Generator().manual_seed(conditions.seed),
        autocast=autocast,
        course=Course(progress),
        activations=Activations() if activations is None else activations,
        room=Room(
            shrinks=settings.on_out_of_memory == "halve",
            recompute=settings.checkpointing == "on",
            # Statistics that move would count a batch twice.
            may_recompute=settings.checkpointing == "auto" and settings.norm_stats == "frozen",
        ),
    )


def _result(model: nn.Module, run: Run) -> tuple[bool, nn.Module]:
    """Whether an epoch was chosen, and a copy of the model with its weights.

    As the model came, layout and all: what is reported is then what an audit of the file says, to the last bit.
    """
    accepted, result = run.selection.finish(), copied(model)
    tried = len(run.selection.history) > 1 and run.settings.strengths
    if not accepted and tried and run.point is not None:
        run.selection.remarks.append(POINT_KEPT)
    if accepted:
        result.load_state_dict(in_own_precision(run.model.state_dict(), model.state_dict()))
    return accepted, result


def remeasured(
    outcome: Outcome,
    model: nn.Module,
    data: GroupedData,
    evaluated_on: Literal["test", "select"],
    conditions: Conditions,
) -> Outcome:
    """The same outcome of `model`, with the audits, intervals included, that `debias` makes of this set."""
    where, start, report = str(choose_device(conditions.device)), time.perf_counter(), outcome.report
    many = conditions.multi_label or data.task == "multilabel"
    told = {subject: said for subject, said in report.before.assumed.items() if subject == "views"}
    own = conditions if report.calibration is None else conditions.but(threshold=report.after.threshold)
    before, after = (
        audited(predict(each, data, multi_label=many, device=where), under, told)
        for each, under in ((model, conditions), (outcome.model, own))
    )
    spent = time.perf_counter() - start
    others = dict(report.other_outputs)
    if others:
        others[evaluated_on] = other_drifts(before.predictions, after.predictions)
    changed = replace(
        report,
        before=before,
        after=after,
        evaluated_on=evaluated_on,
        seconds={**report.seconds, **{part: report.seconds[part] + spent for part in ("audit", "total")}},
        hashes={**report.hashes, evaluated_on: data.content_hash},
        skipped=report.skipped + (skipped_images(data) if evaluated_on == "test" else 0),
        other_outputs=others,
    )
    return replace(outcome, report=changed)


def audited(predictions: Predictions, conditions: Conditions, told: Mapping[str, Any]) -> AuditReport:
    """Of a run's rows; `told` is what was inferred of the run itself."""
    found = audit_predictions(
        predictions, threshold=conditions.threshold, intervals=conditions.intervals, seed=conditions.seed
    )
    return replace(found, assumed={**found.assumed, **told})


def as_rows(data: Any, batch_fn: Any, sensitive: str | list[str] | None) -> GroupedData:
    """What the caller gave as `GroupedData`, with the attributes that were asked for."""
    grouped = as_grouped(data, batch_fn=batch_fn)
    if sensitive is None:
        return grouped
    return grouped.with_attributes(*([sensitive] if isinstance(sensitive, str) else sensitive))
