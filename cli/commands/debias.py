"""`bmft debias`: the main job."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import REJECTED, ProgressBar, settings, table
from ..distributed import part_company, several
from ..method import How, method_options
from ..options import Command, Common, argument, common_options, jobs_option, option
from ..sites import Sites, sites_option, sites_table
from ..tables import audit_table, calibration_table
from ..tracking import log_option, tell, watching

if TYPE_CHECKING:
    from bmft.data import GroupedData
    from bmft.masks import WeightMask
    from bmft.methods import Outcome

    from ..job import Job


@click.command(cls=Command)
@argument("checkpoint")
@option(
    "--out",
    metavar="PATH",
    help="Where to write the new checkpoint, a folder if it is one. [default: fair, with CHECKPOINT's suffix]",
)
@option("--report", metavar="DIR", help="Write report.html, report.json, report.md and mask.safetensors here.")
@sites_option
@option("--leakage", is_flag=True, help="Measure how well the attribute can be read from the features, too.")
@option(
    "--calibrate",
    is_flag=True,
    help="Make the result's probabilities mean what they say, by its head; it decides the same at another threshold.",
)
@option("--resume", is_flag=True, help="Go on where a run with the same options was killed, to the same bytes.")
@option("--dry-run", is_flag=True, help="Show what would be tuned, layer by layer; change and write nothing.")
@log_option
@option(
    "--folds",
    type=click.IntRange(0),
    metavar="K",
    help="Models of K folds of the rows choose and are measured, the result learns from every row; about K times the "
    "time. 1: half of the rows fit, half select. [default: 5 without a split column, for bmft and random_mask in their "
    "default preset, else 1]",
)
@jobs_option(
    "Processes that train folds at once, each with its share of the threads and the memory of a run of its own. "
    "[default: 1]"
)
@common_options()
@method_options
def debias(
    checkpoint: str,
    common: Common,
    how: How,
    out: str | None,
    report: str | None,
    sites: Sites,
    leakage: bool,
    calibrate: bool,
    resume: bool,
    dry_run: bool,
    folds: int | None,
    jobs: int | None,
) -> None:
    """Reduce CHECKPOINT's gap between groups by moving only the weights that carry it.

    Weights are moved on the fit rows, the epoch is chosen on select, and before and after are measured on
    test where there is one. Without a split column, models of five folds choose and are measured on the
    fold they did not see, and the result learns from every row. It has the container and keys that came
    in; a patch file is written beside it. If no epoch does no harm, nothing is written but the report, and
    the exit code is 1.

    How far it got is kept beside --out in a folder of that name that ends in .resume, until all is written.

    \b
    Example:
      bmft debias model.pt --data isic.csv --label malignant --sensitive sex --report report
    """
    target = output_path(checkpoint, out)
    from bmft._common import in_words

    from ..job import load_job

    job = load_job(common, checkpoint)
    job = replace(job, folds=_folds(job, how, folds))
    settings().announce(job.assumed)
    if jobs is not None and not job.folds:
        settings().say(f"--jobs {jobs} is for folds, of which there are none here: one training, one process")
    if dry_run:
        found = _untrained(job, how)
        click.echo(_plan(found.mask))
        settings().say(found.reason)  # what is to be said of the mask, too
        return
    elsewhere = {name: job.site(path) for name, path in sites}
    journal = _journal(target, resume)
    outcome = run_method(job, how, journal, resume, calibrate, jobs or 1)
    for line in in_words(outcome.report.before.assumed, "views"):
        settings().say(line)
    extra = _elsewhere(job, outcome, elsewhere) | (_leakage(job, outcome) if leakage else {})
    part_company()
    click.echo(outcome_table(job, outcome))
    click.echo(outcome.reason)
    files = write_outcome(job, outcome, target) if outcome.accepted else []
    written = [*files, *write_report_of(job, outcome, report, extra)]
    tell(outcome.report, config={"checkpoint": checkpoint, "data": common.data}, files=files)
    if journal and journal.exists():
        shutil.rmtree(journal)
    for path in written:
        click.echo(path)
    if not outcome.accepted:
        click.get_current_context().exit(REJECTED)


def output_path(checkpoint: str, out: str | None) -> Path:
    """Where the new checkpoint goes: never over the one it is made from.

    Raises:
        click.UsageError: it would, or there is no such folder.
    """
    if (folder := Path(checkpoint)).is_dir():
        from bmft.checkpoints import check_place

        target = Path(out or "fair")
        if not target.absolute().parent.is_dir():
            raise click.UsageError(f"--out {target}: there is no folder {target.parent}.")
        check_place(folder, target)
        return target
    target = Path(out) if out else Path(f"fair{Path(checkpoint).suffix}")
    if target.exists() and Path(checkpoint).exists() and target.samefile(checkpoint):
        raise click.UsageError(f"{target} is the checkpoint that is read; name another file with --out.")
    if target.is_dir() or not target.parent.is_dir():
        raise click.UsageError(f"--out {target}: expected a file in a folder that is there.")
    return target


def _journal(target: Path, resume: bool) -> Path | None:
    """Where a run that makes `target` keeps how far it got; several processes together do not keep it."""
    if several():
        if resume:
            raise click.UsageError("--resume is for one process: under torchrun, leave it out to start over.")
        return None
    folder = target.with_name(f"{target.stem}.resume")
    if resume and not folder.exists():
        settings().say(f"there is no {folder}: nothing to resume, so this run starts from the beginning")
    if folder.exists() and not resume:
        settings().say(f"{folder} holds an unfinished run, which --resume would have gone on with: starting over")
    return folder


def _folds(job: Job, how: How, asked: int | None) -> int:
    """How many folds there are; 0 where splits, or a cut, say which rows choose."""
    from bmft.methods import FOLDS, check_crossable, crossable, settings_for

    configured = settings_for(how.method, how.config)
    if asked is None:
        return FOLDS if not job.splits and crossable(how.method, configured) else 0
    if asked > 1:
        check_crossable(how.method, configured)
    return asked if asked > 1 else 0


def _untrained(job: Job, how: How) -> Outcome:
    """The run without an epoch: its mask is what the method may move."""
    from bmft.methods import debias as run

    return run(
        job.model,
        job.fit,
        job.fit if job.folds else job.select,
        method=how.method,
        config={**how.config, "epochs": 0},
        conditions=job.conditions(how.conditions),
        allow_shared_rows=True,
    )


def run_method(
    job: Job, how: How, journal: Path | None = None, resume: bool = False, calibrate: bool = False, jobs: int = 1
) -> Outcome:
    """Debias the job's model, with a progress bar."""
    from bmft.methods import cross_fit, debias as run

    with ProgressBar() as bar:
        options: dict[str, Any] = {
            "test": job.test,
            "method": how.method,
            "config": how.config,
            "conditions": job.conditions(how.conditions),
            "journal": journal,
            "resume": resume,
            "progress": watching(lambda now: bar(*now.place)),
            "calibrate": calibrate,
        }
        if job.folds:
            return cross_fit(job.model, job.fit, folds=job.folds, jobs=jobs, **options)
        return run(job.model, job.fit, job.select, **options)


def outcome_table(job: Job, outcome: Outcome) -> str:
    """Before and after, where they were measured, what the overall AUC's change is made of, and how much moved."""
    from bmft.auditing import changes_in_words, drifts_in_words
    from bmft.report import OUT_OF_FOLD

    moved, total = outcome.patch.moved, sum(p.numel() for p in job.model.parameters())
    report = outcome.report
    where = f"{report.evaluated_on} rows (n = {outcome.before.n:,})"
    where = f"{outcome.before.n:,} rows of {job.folds} folds" if report.evaluated_on == OUT_OF_FOLD else f"the {where}"
    corrected = [_corrected_table(report.corrected), "group by group, not corrected: no results"]
    others = drifts_in_words(report.other_outputs, report.config["max_other_drift"])
    return "\n".join(
        [
            f"measured on {where}: {report.kind_in_words}",
            *(corrected if report.corrected else []),
            audit_table({"before": outcome.before, "after": outcome.after}),
            calibration_table({"before": outcome.before, "after": outcome.after}),
            *report.calibrated_in_words,
            *(said.replace("→", "->") for said in changes_in_words(outcome.before, outcome.after) if outcome.accepted),
            f"moved {moved:,} of {total:,} weights ({moved / total:.1%})",
            *([others] if others else []),
        ]
    )


def _corrected_table(figures: Sequence[Mapping[str, Any]]) -> str:
    from bmft._common import with_interval

    rows = [["", "", "before", "after", "change, 90 % interval"]]
    for one in figures:
        change = with_interval(one["after"] - one["before"], (one["low"], one["high"]))
        name = one["figure"].replace("_", " ").replace("roc auc", "ROC AUC")
        rows.append([one["attribute"], name, f"{one['before']:.3f}", f"{one['after']:.3f}", change])
    return table(rows, left=2)


def write_outcome(job: Job, outcome: Outcome, target: Path) -> list[Path]:
    from bmft.checkpoints import WeightPatch, as_stored, write_checkpoint

    # In the file's own order and precision: what the patch must turn into what, bit for bit.
    state = as_stored(job.checkpoint, outcome.model.state_dict())
    patch = target.with_name(f"{target.stem}.patch.safetensors")
    write_checkpoint(job.checkpoint, state, target, inputs=job.fit.columns)
    WeightPatch.between(job.checkpoint.state, state, outcome.patch.recipe).save(patch)
    return [target, patch]


def _elsewhere(job: Job, outcome: Outcome, elsewhere: Mapping[str, GroupedData]) -> dict[str, Any]:
    """Both models audited on other sites' rows, and shown."""
    from bmft.inference import audit

    measuring = {"threshold": job.threshold, "seed": job.common.seed, **job.measuring}
    audits = {
        name: {
            "before": audit(job.model, data, **measuring),
            "after": audit(outcome.model, data, **{**measuring, "threshold": outcome.after.threshold}),
        }
        for name, data in elsewhere.items()
    }
    if audits:
        click.echo(sites_table(audits))
    return {"evaluations": audits} if audits else {}


def _leakage(job: Job, outcome: Outcome) -> dict[str, Any]:
    """How well a linear probe reads each attribute from both models' features, and a line about each."""
    from bmft.inference import attribute_leakage, compared_leakage

    measured = job.measured(outcome.report.evaluated_on)
    options = {"head": job.common.head, "seed": job.common.seed}
    found = compared_leakage(*(attribute_leakage(model, measured, **options) for model in (job.model, outcome.model)))
    for name, side in found.items():
        click.echo(f"leakage of {name}, a linear probe's ROC AUC: {side['before']:.3f} -> {side['after']:.3f}")
    return {"leakage": found}


def write_report_of(job: Job, outcome: Outcome, folder: str | None, extra: Mapping[str, Any]) -> list[Path]:
    from bmft.report import write_report

    if folder is None:
        return []
    report = outcome.report
    common = job.common
    page = write_report(
        replace(
            report,
            config={**report.config, "checkpoint": str(job.checkpoint.path), "data": str(common.data)},
            hashes={**report.hashes, "checkpoint": job.checkpoint.content_hash},
            extra={**report.extra, **extra, **_pixels(job, outcome)},
        ),
        folder,
    )
    outcome.mask.save(page.with_name("mask.safetensors"), outcome.patch.recipe)
    return [page]


def _pixels(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Where both models look, for the cases whose decision changed most in each group."""
    from bmft.inference import changed_cases, explain_cases, predict
    from bmft.report import OUT_OF_FOLD

    before, after = outcome.before.predictions, outcome.after.predictions
    if before is None or after is None or not outcome.accepted:
        return {}
    measured = job.measured(outcome.report.evaluated_on)
    if outcome.report.evaluated_on == OUT_OF_FOLD:
        # What the folds' models said is not what the written one sees.
        after = predict(outcome.model, measured, **job.measuring)
    cases = changed_cases(before, after, threshold=job.threshold, after_at=outcome.after.threshold)
    return {"pixels": explain_cases(job.model, outcome.model, measured, cases)} if cases else {}


def _plan(mask: WeightMask) -> str:
    rows = [["layer", "may move", "of", "share"]]
    for name, layer in mask.by_layer().items():
        rows.append([name, f"{layer['selected']:,}", f"{layer['total']:,}", f"{layer['fraction']:.1%}"])
    rows.append(["all", f"{mask.selected:,}", f"{mask.total:,}", f"{mask.density:.1%}"])
    return f"{table(rows)}\nNothing was changed or written."
