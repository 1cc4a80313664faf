"""A debiasing that learns from every row: models of folds choose how far to go and are measured, one more learns."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bmft._common import as_json, watched
from bmft.auditing import other_drifts
from bmft.compute import check_jobs, room_for_pixels
from bmft.data import apart, skipped_images
from bmft.errors import ConfigError
from bmft.methods.calibrating import check_calibrates, fold_in
from bmft.methods.course import Progress
from bmft.methods.debiasing import Outcome, as_rows, audited, concluded, described_run
from bmft.methods.folds import FOLDS, Work, folds_of
from bmft.methods.table import METHODS, settings_for
from bmft.methods.turning import positive_last
from bmft.methods.views import told_views
from bmft.models import copied, in_own_precision, reading_of, state_hash, tensors_of
from bmft.report import OUT_OF_FOLD, versions
from bmft.settings import Settings
from bmft.training import Conditions, Journal


def crossable(method: str, settings: Settings) -> bool:
    """Whether a method has few candidates that the models of several folds have in common: rising strengths.

    >>> crossable("bmft", settings_for("bmft")), crossable("bmft", settings_for("bmft", {"preset": "path"}))
    (True, False)
    """
    return "strengths" in METHODS[method].uses and bool(settings.strengths) and settings.choose == "gap"


def check_crossable(method: str, settings: Settings) -> None:
    """Raise an error that says why, unless a method is `crossable` with these settings.

    Raises:
        ConfigError: it is not.
    """
    if not crossable(method, settings):
        raise ConfigError(
            f"folds need candidates that their models have in common, which method {method!r} as it is set has not: "
            "take bmft in its default preset, or rows that are for choosing (--folds 1, or a split column)"
        )


@positive_last
def cross_fit(
    model: nn.Module,
    data: Any,
    *,
    folds: int = FOLDS,
    method: str = "bmft",
    sensitive: str | list[str] | None = None,
    test: Any = None,
    config: Mapping[str, Any] | Settings | None = None,
    conditions: Conditions | None = None,
    batch_fn: Callable[[Any], tuple[Any, Tensor, Tensor]] | None = None,
    allow_shared_rows: bool = False,
    calibrate: bool = False,
    journal: str | Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    progress: bool | Callable[[Progress], None] = False,
    **but: Any,
) -> Outcome:
    """Debias with all labelled rows, none of which is set apart for the choice.

    1. For each fold, the whole method runs on the rows of all the others, and each of its candidates predicts the fold.
    2. A candidate's predictions of all folds together are of models that had not seen the rows. They choose, give the
       evidence and are what is reported, as `debias` does with a select set's.
    3. The method then runs on every row, up to the chosen strength. The share of positives is kept on every row, too.

    `model` itself is not changed. The figures are of models that learned from fewer rows than the one that comes out,
    which is not itself measured unless there is a `test` set: they are a little pessimistic. A result that does harm to
    the very rows it learned from, or has no smaller gap there, is not accepted.

    Args:
        model: a classifier that gives logits, as for `debias`.
        data, test: each a `GroupedData`, or what gives batches, as for `debias`.
        folds: how many; never more than patients.
        method: a name in `METHODS` of one that has rising strengths.
        sensitive, config, conditions, batch_fn, allow_shared_rows, journal, resume, but: as for `debias`.
        calibrate: as for `debias`; the fit is to what the folds' models say of the rows they did not learn from.
        jobs: processes that train folds at once and share this one's threads. With as many threads in each the outcome
            is the same to the last bit; with others the sums of the folds' models may differ there. Each takes the
            memory of a run, but for images that were decoded once. The report's seconds are summed over all of them.
        progress: shows a bar (tqdm's) over all folds, or is a function that is called after every epoch.

    Raises:
        ConfigError: the method or its settings have no rising strengths; several jobs under torchrun, or of a model or
            setting that cannot be given to another process; or as `debias`.
        DataError: there are not two patients; or as `debias`.
        WorkerError: one of several processes died.

    >>> import torch
    >>> from bmft.data import from_arrays
    >>> labels = torch.arange(200) % 2
    >>> inputs = torch.linspace(-1, 1, 200)[:, None] * torch.tensor([1.0, -0.5]) + labels[:, None] - 0.5
    >>> data = from_arrays(inputs, labels, torch.arange(200) // 2 % 2)
    >>> network = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(network.weight, 0.5)
    >>> outcome = cross_fit(network, data, folds=2, config={"epochs": (2, 1), "strengths": (1.0, 4.0)})
    >>> outcome.report.evaluated_on, outcome.before.n, outcome.report.config["folds"]
    ('out of fold', 200, 2)
    """
    start = time.perf_counter()
    check_jobs(jobs)
    settings = settings_for(method, config)
    if conditions is None and (cut := reading_of(model).threshold) is not None:
        but = {"threshold": cut, **but}  # as `debias` has it
    conditions = (conditions or Conditions()).but(**but)
    check_crossable(method, settings)
    sets = {"fit": data} | ({} if test is None else {"test": test})
    found = apart({name: as_rows(value, batch_fn, sensitive) for name, value in sets.items()}, allow=allow_shared_rows)
    held_out, said = folds_of(found["fit"], folds, seed=conditions.seed)
    if not any(one.value == said.value for one in found["fit"].assumed):
        found = {name: replace(rows, assumed=(*rows.assumed, said)) for name, rows in found.items()}
    work = Work(method, model, found["fit"], settings, conditions, held_out, watched(progress, lambda now: now.place))
    last = work.last
    if calibrate:
        check_calibrates(last)
    described = described_run(last) | {"folds": len(held_out)} | ({"calibrate": True} if calibrate else {})
    hashes = {name: rows.content_hash for name, rows in found.items()}
    decides = described | {"method": method, "model": state_hash(tensors_of(model)), "versions": versions()}
    decides |= {"fit rows": hashes["fit"], "device": str(last.device)}
    with _journal(journal, decides, resume) as work.journal:
        selection, mask = work.choose(jobs)
        if selection.chosen:
            mask = work.learn(selection)
        work.end(selection)
    result = copied(model)
    if selection.chosen:
        result.load_state_dict(in_own_precision(last.model.state_dict(), model.state_dict()))
    calibrated = None
    if calibrate and selection.chosen:
        first = len(last.selection.remarks)
        calibrated = fold_in(last, result, found.get("test"), selection.candidates[selection.chosen][0])
        selection.remarks += last.selection.remarks[first:]
    if calibrated is not None:
        mask = mask | last.head_mask()
    told = as_json(told_views(settings.views, last.settings.views))
    with last.course.timed("audit"):
        if test is not None:
            rows = found["test"].on(last.device, room_for_pixels(last.device))
            both = [last.predict(each, rows) for each in (model, result)]
        else:
            both = [selection.candidates[place][0] for place in (0, selection.chosen)]
            both[1] = both[1] if calibrated is None else calibrated.rescaling.of(both[1])
        own = last.conditions if calibrated is None else calibrated.conditions(last.conditions)
        before, after = (audited(each, under, told) for each, under in zip(both, (last.conditions, own), strict=True))
        if calibrated is not None and test is None:
            after = calibrated.left_out(after)
    where, others = "test" if test is not None else OUT_OF_FOLD, {}
    if reading_of(last.model).output is not None:
        others = {"fit": other_drifts(last.predict(model, last.fit), last.predict(result, last.fit))}
        others[where] = other_drifts(*both)
    last.course.seconds["total"] = time.perf_counter() - start
    return concluded(
        last,
        selection,
        (model, result),
        (before, after),
        mask,
        recipe={"method": method, "config": described, "fit_hash": hashes["fit"], "folds": len(held_out)},
        evaluated_on=where,
        hashes=hashes,
        skipped=skipped_images(*found.values()),
        other_outputs=others,
        refused=work.refused,
        calibration=None if calibrated is None else calibrated.calibration,
    )


@contextmanager
def _journal(folder: str | Path | None, decides: Mapping[str, Any], resume: bool) -> Iterator[Journal]:
    """Where the folds' candidates are kept until it is known which of them get a head: a folder that is made anew."""
    if folder is not None:
        yield Journal(Path(folder), decides, resume=resume)
        return
    with tempfile.TemporaryDirectory(prefix="bmft-") as made:
        yield Journal(Path(made), decides, resume=True)
