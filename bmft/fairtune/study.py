"""The study of a search: where it is kept, who works on it, which of its trials won."""

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bmft.auditing import Goal
from bmft.errors import ConfigError, MissingExtraError

try:
    import optuna
    from optuna import Study as Study, Trial as Trial, TrialPruned as TrialPruned
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial as FrozenTrial, TrialState as TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError as error:
    raise MissingExtraError("a search needs Optuna: pip install 'bmft[search]'") from error

PRUNERS: Mapping[str, Callable[[], optuna.pruners.BasePruner]] = {
    # A quarter goes on after the first epoch, of these a quarter after the fourth, and so on.
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=3),
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
    "none": optuna.pruners.NopPruner,
}
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_SILENT_S = 900.0  # a worker on another machine that says nothing for so long is taken for dead


def open_study(
    place: optuna.storages.BaseStorage,
    name: str,
    goals: tuple[Goal, ...],
    pruner: Callable[[], Any],
    fixed: Sequence[tuple[str, dict[str, Any]]],
) -> Study:
    """The study of that name with these fixed points at the head of its queue, made if it is not there.

    No more of them wait than will run, so that a lost one, which waits behind the others, is run as well.
    """
    directions = [goal.direction for goal in goals]
    try:
        study = optuna.create_study(
            storage=place, study_name=name, directions=directions, sampler=sampler_of(0), pruner=pruner()
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=place, study_name=name, sampler=sampler_of(0), pruner=pruner())
        # Without the mark another worker is just putting them in.
        there = study.user_attrs.get("fixed", len(fixed))
    else:
        there = 0
    for label, point in fixed[there:]:
        study.enqueue_trial(point, user_attrs={"fixed": label}, skip_if_exists=True)
    if there < len(fixed):
        study.set_user_attr("fixed", len(fixed))
    return study


@contextmanager
def opened_storage(storage: str | Path | None) -> Iterator[optuna.storages.BaseStorage]:
    """Inside, where a study is kept: a database's URL, a journal file, or memory for None."""
    if storage is None:
        yield optuna.storages.InMemoryStorage()
    elif "://" in str(storage):
        try:
            database = RDBStorage(str(storage))
        except (ImportError, SQLAlchemyError) as error:
            raise ConfigError(f"storage {storage}: {str(error).splitlines()[0]}") from error
        try:
            yield database
        finally:
            database.remove_session()
            database.engine.dispose()
    else:
        path = Path(storage)
        if not path.parent.is_dir():
            raise ConfigError(f"storage {path}: there is no folder {path.parent}")
        yield JournalStorage(JournalFileBackend(str(path)))


def take_back_the_lost(study: Study) -> None:
    """Trials whose worker is gone are failed, and their points put back into the queue, once."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, process = trial.user_attrs.get("worker", ":").rpartition(":")
        began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        silent = time.time() - trial.user_attrs.get("alive", began) > _SILENT_S
        if silent or (host == socket.gethostname() and not _runs(int(process))):
            give_back(study, trial)


def give_back(study: Study, trial: FrozenTrial) -> None:
    """Fail a trial and put its point back into the queue."""
    point = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        return  # another worker was quicker
    named = {"fixed": trial.user_attrs["fixed"]} if "fixed" in trial.user_attrs else {}
    study.enqueue_trial(point, user_attrs={"instead_of": turn_of(trial), **named})


def turn_of(trial: FrozenTrial) -> int:
    """The trial's number, or that of the lost one in whose place it is."""
    return int(trial.user_attrs.get("instead_of", trial.number))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def count_trials(study: Study, states: tuple[TrialState, ...]) -> int:
    """How many trials are in one of these states."""
    return len(study.get_trials(deepcopy=False, states=states))


def harmless_trials(study: Study) -> list[FrozenTrial]:
    """The finished trials that keep the limits."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in complete if max(trial.constraints.values()) <= 0]


def winner_of(study: Study, goals: tuple[Goal, ...]) -> FrozenTrial:
    """The best trial by the first goal among those that do no harm; of equals the earliest."""
    harmless = harmless_trials(study)
    if not harmless:
        raise ConfigError(
            "no trial was finished that does no harm: give more --trials or more time, or a larger --max-auc-drop"
        )
    return min(harmless, key=lambda trial: (goals[0].sign * trial.values[0], turn_of(trial)))


def best_value(study: Study, goals: tuple[Goal, ...]) -> float | None:
    """The winner's value; None before there is one."""
    return float(winner_of(study, goals).values[0]) if harmless_trials(study) else None


def front_of(trials: Iterable[FrozenTrial], best: FrozenTrial) -> list[dict[str, Any]]:
    """The trials that no other beats in both gap and AUC."""
    points = [(t.user_attrs["gap"], t.user_attrs["roc_auc"], t.number) for t in trials if "gap" in t.user_attrs]
    return [
        {"gap": gap, "roc_auc": auc, "number": number, "chosen": number == best.number}
        for gap, auc, number in points
        if number == best.number or not any(g <= gap and a >= auc and (g, a) != (gap, auc) for g, a, _ in points)
    ]


def importances_of(study: Study) -> dict[str, float]:
    """How much of the variation between trials each parameter accounts for; empty where that cannot be told."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.values[0] for trial in trials}) < 2:
        return {}
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0), target=lambda trial: trial.values[0]
    )
    return {name: float(value) for name, value in found.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing of its own inside, and does not warn of its experimental parts, which are tested here."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def sampler_of(seed: int) -> optuna.samplers.TPESampler:
    """TPE from this seed."""
    return optuna.samplers.TPESampler(seed=seed % 2**32)
