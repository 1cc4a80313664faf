"""`bmft compare`: every method and baseline under one budget."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bmft._common import in_words

from ..console import ProgressBar, settings, table
from ..method import How, shared_options
from ..options import Command, Common, Pair, argument, common_options, jobs_option, option
from ..sites import Sites, sites_option
from ..tracking import log_option, tell

if TYPE_CHECKING:
    from bmft.comparison import Comparison, MethodRow

_FIGURES = {"gap": "gap", "roc_auc": "ROC AUC", "worst_group_roc_auc": "worst group", "balanced_accuracy": "bal. acc."}


@click.command(cls=Command)
@argument("checkpoint")
@option("--methods", metavar="A,B,C", help="Which methods. [default: all]")
@option("--seeds", type=click.IntRange(1), default=3, metavar="N", help="Repetitions of every method.")
@option(
    "--tuning",
    type=click.IntRange(1, 5),
    default=2,
    metavar="N",
    help="Learning rates tried per method and seed, chosen on select; the first is the method's default.",
)
@option(
    "--path",
    type=Pair(float),
    default=(0.5, 1.0),
    metavar="F[,F]",
    show_default="0.5,1",
    help="How far along step 1 the extractor goes; every point gets a head.",
)
@jobs_option("Processes. [default: one per processor, at most 4]")
@option(
    "--report",
    metavar="DIR",
    default="compare",
    help="Write compare.html, compare.json and compare.md here; finished trials are kept in DIR/trials and not "
    "run again.",
)
@sites_option
@log_option
@common_options()
@shared_options
def compare(
    checkpoint: str,
    common: Common,
    how: How,
    methods: str | None,
    seeds: int,
    tuning: int,
    path: Any,
    jobs: int | None,
    report: str,
    sites: Sites,
) -> None:
    """Run every method and baseline on CHECKPOINT under one budget, and say which is best on these data.

    Each gets the same fit and select rows, the same passes over the images (--epochs; 3,5 by default), the
    same number of learning rates to try, and the same seeds. An interrupted comparison goes on where it
    stopped. CHECKPOINT is not changed.

    \b
    Example:
      bmft compare model.pt --data isic.csv --label malignant --sensitive sex --methods bmft,dfr,rw
    """
    from ..job import load_job

    job = load_job(common, checkpoint)
    settings().announce(job.assumed)
    from bmft.comparison import Budget, World, compare as run, write_comparison

    elsewhere = {name: job.site(file) for name, file in sites}
    world = World(job.model, job.fit, job.select, job.test, elsewhere, job.conditions(how.conditions))
    config = dict(how.config)
    epochs = config.pop("epochs", (3, 5))
    points = tuple(path) if isinstance(path, tuple | list) else (path,)
    budget = Budget(epochs if isinstance(epochs, tuple) else (epochs, epochs), points, tuning, seeds)
    names = [name.strip() for name in methods.split(",") if name.strip()] if methods else None
    with ProgressBar() as bar:
        comparison = run(
            world,
            methods=names,
            budget=budget,
            config=config,
            folder=Path(report) / "trials",
            jobs=jobs or min(4, os.cpu_count() or 1),
            progress=bar,
        )
    if comparison.where:
        click.echo(comparison.where)
    click.echo(comparison_table(comparison))
    for sentence in in_words(comparison.assumed):
        click.echo(sentence)
    for name, reason in comparison.problems.items():
        settings().say(f"{name}: {reason}")
    for sentence in comparison.verdict():
        click.echo(sentence)
    page = write_comparison(comparison, report)
    figures = {
        f"{line.method}/{name}": figure["mean"]
        for line in [comparison.untouched, *comparison.rows]
        for name, figure in (line.figures if line else {}).items()
    }
    said = {"checkpoint": checkpoint, "data": common.data, **comparison.budget}
    tell(None, config=said, figures=figures, files=sorted(Path(report).glob("compare.*")))
    click.echo(page)


def comparison_table(comparison: Comparison) -> str:
    """One line per method: its figures with intervals over the seeds, and what it costs."""
    rows = [["method", *_FIGURES.values(), "moved", "image-passes", "seconds", ""]]
    for line in [comparison.untouched, *comparison.rows]:
        if line:
            rows.append([line.method, *(_figure(line, name) for name in _FIGURES), *_cost(line)])
    return table(rows)


def _figure(line: MethodRow, name: str) -> str:
    figure = line.figures.get(name)
    if figure is None or figure["mean"] is None:
        return "-"
    ends = figure["over_seeds"]
    return f"{figure['mean']:.3f}" + (f" ±{(ends[1] - ends[0]) / 2:.3f}" if ends else "")


def _cost(line: MethodRow) -> list[str]:
    if line.seeds is None:
        return ["0.0%", "", "", ""]
    note = line.kind if line.kind in ("attribute at inference", "extra head") else ""
    return [f"{line.moved:.1%}", f"{line.image_passes:,.0f}", f"{line.seconds:.0f}", note]
