"""`bmft gate`: decide."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import put, settings
from ..distributed import part_company
from ..options import Command, Common, argument, common_options, option
from ..predictions import audits_of_tables, check_one_source
from ..tables import warn_of

if TYPE_CHECKING:
    from bmft.auditing import AuditReport
    from bmft.checkpoints import WeightPatch
    from bmft.data import GroupedData
    from bmft.gate import Policy, Verdict

    from ..job import Job


@dataclass(frozen=True)
class Measured:
    """What the policy is held against: audits, what the model was fitted to, and the files behind them."""

    report: AuditReport
    baseline: AuditReport | None
    debiased_on: frozenset[str]
    files: dict[str, str]


@click.command(cls=Command)
@argument("checkpoint", required=False)
@option("--policy", default="fairness.toml", metavar="TOML", help="What has to be shown.")
@option("--baseline", metavar="FILE", help="What it may not be worse than: a checkpoint, or a CSV as below.")
@option("--predictions", metavar="FILE", help="Scores to gate instead: y_true, y_score and the attributes.")
@option("--patch", metavar="FILE", help="What CHECKPOINT was debiased by. [default: beside it]")
@option("--json", metavar="FILE", help="Write gate.json here; - is standard output.")
@option("--junit", metavar="FILE", help="Write JUnit XML here.")
@option("--summary", metavar="FILE", help="Write Markdown here; $GITHUB_STEP_SUMMARY is appended to.")
@option("--init", is_flag=True, help="Measure, and write a commented policy to start from to --policy.")
@common_options(sensitive_required=False, data_required=False)
def gate(
    checkpoint: str | None,
    common: Common,
    policy: str,
    baseline: str | None,
    predictions: str | None,
    patch: str | None,
    init: bool,
    **outputs: str | None,
) -> None:
    """Decide by a policy whether CHECKPOINT passes: exit 0 pass, 1 fail, 3 the data cannot tell.

    The policy names the attributes. With a split column the test split is judged, else every row.

    \b
    Example:
      bmft gate model.pt --data isic.csv --label malignant --sensitive sex --init
      bmft gate model.pt --data isic.csv --label malignant --policy fairness.toml --junit gate.xml
      bmft gate --predictions predictions.csv --policy fairness.toml
    """
    from bmft.gate import check, load_policy

    check_one_source(checkpoint, predictions, common)
    if init:
        measured = _gather(checkpoint, predictions, None, None, common).report
        warn_of(measured)
        part_company()
        _start(policy, measured, common)
        return
    rules = load_policy(policy)
    found = _gather(checkpoint, predictions, baseline, patch, _agreed(common, rules))
    for audited, whose in ((found.report, ""), (found.baseline, "baseline: ")):
        if audited is not None:
            warn_of(audited, whose, swapped=False)  # the verdict warns of those
    part_company()
    verdict = check(found.report, rules, found.baseline, debiased_on=found.debiased_on)
    _tell(verdict, {"policy": policy, **found.files}, **outputs)
    click.get_current_context().exit(verdict.exit_code)


def _agreed(common: Common, policy: Policy) -> Common:
    """The options with what the policy says; where both say something they have to say the same."""
    for name, own, theirs in (
        ("cluster", common.cluster, policy.cluster),
        ("threshold", common.threshold, policy.threshold),
    ):
        if own is not None and theirs is not None and own != theirs:
            raise click.UsageError(f"--{name} is {own}, but the policy's {name} is {theirs}: drop one of them.")
    if policy.threshold is not None and common.threshold_from is not None:
        raise click.UsageError("--threshold-from picks a threshold, but the policy has one: drop one of them.")
    if common.sensitive and set(common.sensitive) - set(policy.sensitive):
        settings().say("--sensitive is not used: the policy names the attributes")
    threshold = common.threshold if policy.threshold is None else policy.threshold
    cluster = common.cluster or policy.cluster
    return common.but(sensitive=policy.sensitive, cluster=cluster, threshold=threshold)


def _gather(
    checkpoint: str | None, predictions: str | None, baseline: str | None, patch: str | None, common: Common
) -> Measured:
    if not common.sensitive:
        raise click.UsageError("Missing option '--sensitive': the attributes of the policy to start from.")
    if checkpoint is None:
        return _from_tables(str(predictions), baseline, common)
    return _from_checkpoints(checkpoint, baseline, patch, common)


def _from_tables(predictions: str, baseline: str | None, common: Common) -> Measured:
    paths = {"predictions": predictions, **({"baseline": baseline} if baseline else {})}
    reports = dict(zip(paths, audits_of_tables(common, *paths.values(), intervals=False), strict=True))
    return Measured(reports["predictions"], reports.get("baseline"), frozenset(), paths)


def _from_checkpoints(checkpoint: str, baseline: str | None, patch: str | None, common: Common) -> Measured:
    from bmft.errors import ConfigError
    from bmft.inference import audit

    from ..job import load_job

    job = load_job(common, checkpoint)
    other = None if baseline is None else load_job(common, baseline)
    if other is not None and other.checkpoint.content_hash == job.checkpoint.content_hash:
        raise ConfigError(f"the baseline {baseline} is the checkpoint itself: name the model it is to replace")
    if other is not None:
        # What lay beside the original may not lie beside what was made of it.
        job, other = replace(job, like=other.checkpoint), replace(other, like=job.checkpoint)

    also = (*other.checkpoint.assumed, *_rows_for(other, job).assumed) if other else ()
    settings().announce([*job.data.assumed, *also])

    def measured(one: Job) -> AuditReport:
        # Without a word about it each is cut where it decides: a calibrated model not where its original is.
        at = job.threshold if common.threshold_from else one.threshold
        return audit(one.model, _rows_for(one, job), threshold=at, intervals=False, **one.measuring)

    files = {"checkpoint": checkpoint, "data": common.data, **({"baseline": baseline} if baseline else {})}
    return Measured(measured(job), None if other is None else measured(other), _fitted_on(job, patch), files)


def _rows_for(one: Job, job: Job) -> GroupedData:
    """The rows of `job` for the model of `one`, whose checkpoint may say another order of outputs or other pixels.

    Raises:
        DataError: it has other classes.
    """
    from bmft.checkpoints import class_names
    from bmft.errors import DataError

    alike = class_names(one.checkpoint) == class_names(job.checkpoint)
    if one is job or (alike and one.known_pixels[0] == job.known_pixels[0]):
        return job.data
    if one.data.classes != job.data.classes:
        raise DataError(
            f"the classes of {one.checkpoint.path} are {', '.join(one.data.classes)}, those of {job.checkpoint.path} "
            f"are {', '.join(job.data.classes)}: name them for both (--classes, --positive)"
        )
    return one.data


def _fitted_on(job: Job, patch: str | None) -> frozenset[str]:
    """The content hash of the job's rows if the model was debiased on them, as its patch has it."""
    from bmft.checkpoints import WeightPatch
    from bmft.models import state_hash

    path = Path(job.checkpoint.path)
    path = path.with_name(f"{path.stem}.patch.safetensors") if patch is None else Path(patch)
    if patch is None and not path.exists():
        return frozenset()
    found = WeightPatch.load(path)
    if found.after_hash != state_hash(job.checkpoint.state):
        settings().say(f"{path} did not make this checkpoint, so it does not tell what it was fitted to")
        return frozenset()
    own = _hash_as_fitted(job.data, found)
    if own == found.recipe.get("select_hash"):
        settings().say("warning: these rows also chose the epoch (select): expect somewhat less on new data")
    return frozenset({job.data.content_hash} if own == found.recipe.get("fit_hash") else ())


def _hash_as_fitted(data: GroupedData, patch: WeightPatch) -> str:
    """The content hash of the rows with the attributes they were debiased for, where the policy has them."""
    names = patch.recipe.get("config", {}).get("sensitive", [])
    known = {attribute.name for attribute in data.attributes}
    return data.with_attributes(*names).content_hash if names and set(names) <= known else data.content_hash


def _start(path: str, report: AuditReport, common: Common) -> None:
    from bmft.gate import starting_policy

    if Path(path).exists():
        raise click.UsageError(f"{path} is there already: name another file with --policy.")
    put(starting_policy(report, common.sensitive, cluster=common.cluster), path)
    click.echo(path)


def _tell(verdict: Verdict, files: dict[str, str], *, json: str | None, junit: str | None, summary: str | None) -> None:
    """Say the verdict, and write it wherever else it is to go."""
    from bmft.report import to_json, versions

    hashes = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in files.items()}
    hashes = {"content": verdict.facts["hashes"]["data"], **hashes}
    verdict = replace(verdict, facts={**verdict.facts, "files": files, "hashes": hashes, "versions": versions()})
    on_error = json == "-"
    click.echo(verdict.to_text(), err=on_error)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in verdict.annotations():
            click.echo(line, err=on_error)
    if json:
        put(to_json(verdict), json)
    if junit:
        put(verdict.to_junit(), junit)
    if summary and summary == os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(verdict.to_markdown())
    elif summary:
        put(verdict.to_markdown(), summary)
