"""`bmft search`: FairTune, the outer search over what is fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bmft.settings import FACTS

from ..console import REJECTED, ProgressBar, put, settings
from ..method import How, method_options
from ..options import Command, Common, argument, common_options, option
from ..tracking import log_option, tell, watching
from .debias import outcome_table, output_path, write_outcome, write_report_of

if TYPE_CHECKING:
    pass

GOALS = FACTS["choose"].choices[1:]  # the first is the gap
ALSO = ("fraction", "bias_weight", "epochs", "score")


@click.command(cls=Command)
@argument("checkpoint")
@option("--trials", type=click.IntRange(1), default=20, metavar="N", help="Finished trials, over all workers.")
@option("--timeout", type=click.FloatRange(0), metavar="S", help="Seconds after which no new trial begins.")
@option("--goal", type=click.Choice(GOALS), default="worst_group_auc", help="What is looked for on select.")
@option("--second-goal", type=click.Choice(GOALS), help="A second one: a front of both; the best by --goal wins.")
@option("--also", type=click.Choice(ALSO), multiple=True, help="Another setting to search. Repeatable.")
@option(
    "--detail",
    type=click.Choice(["component", "layer"]),
    default="component",
    help="One switch for all norms of a block, or one for each.",
)
@option(
    "--pruner",
    type=click.Choice(["halving", "hyperband", "median", "none"]),
    default="halving",
    help="How trials that lag are stopped; with --folds or a second goal none is.",
)
@option("--folds", type=click.IntRange(1), default=1, metavar="K", help="Cross-validate select over K folds.")
@option(
    "--storage",
    metavar="URL",
    help="Journal file or Optuna storage URL; workers that name the same one share the study. "
    "[default: study.journal under --report, else in memory]",
)
@option("--study", metavar="NAME", help="Name of the study. [default: made from data, weights and settings]")
@option("--from", "start", metavar="CHECKPOINT", help="Start from these weights instead (as published).")
@option("--out", metavar="FILE", help="Where to write the winner. [default: fair, with CHECKPOINT's suffix]")
@option("--report", metavar="DIR", help="Write best.toml and what `bmft debias --report` writes. [default: none]")
@log_option
@common_options()
@method_options
def search(
    checkpoint: str,
    common: Common,
    how: How,
    out: str | None,
    report: str | None,
    start: str | None,
    storage: str | None,
    study: str | None,
    **asked: Any,
) -> None:
    """Search which blocks and components of CHECKPOINT to fine-tune, and run the winner.

    Trials fit on the fit rows and are judged on select. At the end the winner is run again, also at full
    length, and the method by itself as `bmft debias` runs it; the best on select is kept and looks at test
    once. Finished trials are kept in the storage: the same command goes on where it stopped. best.toml, under
    --report or beside --out, repeats what was kept to the last bit: bmft debias CHECKPOINT --config best.toml

    \b
    Example:
      bmft search model.pt --data isic.csv --label malignant --sensitive sex --trials 12 --report report
    """
    target = output_path(checkpoint, out)
    from bmft.fairtune import search as run

    from ..job import load_job

    job = load_job(common, checkpoint)
    settings().announce(job.assumed)
    if report:
        Path(report).mkdir(parents=True, exist_ok=True)
    place = storage or (str(Path(report) / "study.journal") if report else None)
    with ProgressBar() as bar:
        found = run(
            _starting_from(common, start, job),
            job.fit,
            job.select,
            test=job.test,
            method=how.method,
            config=how.config,
            conditions=job.conditions(how.conditions),
            storage=place,
            name=study,
            progress=watching(lambda now: bar(*now.place)),
            **asked,
        )
    outcome = found.outcome
    click.echo(outcome_table(job, outcome))
    click.echo(_won(found.summary))
    click.echo(outcome.reason)
    written = write_outcome(job, outcome, target) if outcome.accepted else []
    best = Path(report) / "best.toml" if report else target.with_name(f"{target.stem}.best.toml")
    put(found.to_toml(), best)
    for path in [*written, best, *write_report_of(job, outcome, report, {"search": found.summary})]:
        click.echo(path)
    tell(outcome.report, config={"checkpoint": checkpoint, "data": common.data}, files=[*written, best])
    if not outcome.accepted:
        click.get_current_context().exit(REJECTED)


def _starting_from(common: Common, start: str | None, job: Any) -> Any:
    """The job's model, with the weights of another checkpoint where one is named."""
    if start is None:
        return job.model
    from bmft.checkpoints import class_names
    from bmft.errors import ConfigError

    from ..job import load_model

    other, model = load_model(common, start)
    own, its = (said.names if (said := class_names(one)) else () for one in (job.checkpoint, other))
    if common.classes is None and own != its and sorted(own) == sorted(its):
        raise ConfigError(
            f"--from: the outputs of {start} are {', '.join(its)}, those of {job.checkpoint.path} are "
            f"{', '.join(own)}: start from a model with the same order (or say it: --classes A,B,...)"
        )
    settings().say(f"starting from the weights of {other.path}")
    return model


def _won(summary: Any) -> str:
    fixed = next((t["fixed"] for t in summary["trials"] if t["number"] == summary["winner"]), None)
    pruned = sum(t["state"] == "pruned" for t in summary["trials"])
    name = f" ({fixed})" if fixed else ""
    seen = "" if summary["test"] is None else f", {summary['test']:.3f} on test"
    kept = next(final["name"] for final in summary["finals"] if final["kept"])
    return (
        f"trial {summary['winner']}{name} won of {len(summary['trials'])} ({pruned} stopped early); kept: {kept}, "
        f"{summary['objective']} {summary['select']:.3f} on select{seen}"
    )
