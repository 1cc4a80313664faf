"""FairTune: an outer search over what a method fine-tunes, on the select set (Dutt et al. 2024). Needs Optuna."""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bmft._common import unknown_name, watched
from bmft.auditing import GOALS, Goal, audit_predictions, refuse_swapped, violations
from bmft.data import GroupedData, apart, as_grouped
from bmft.errors import ConfigError, NonFiniteError
from bmft.fairtune.finals import BehindError, Final, best_of, measured_at_last, passes, run_finals
from bmft.fairtune.prior import different, first_points, importance_of_blocks
from bmft.fairtune.space import CHOICES, RANGES, Detail, Space, search_space
from bmft.fairtune.study import (
    DONE,
    PRUNERS,
    FrozenTrial,
    Study,
    Trial,
    TrialPruned,
    TrialState,
    best_value,
    count_trials,
    front_of,
    give_back,
    harmless_trials,
    importances_of,
    open_study,
    opened_storage,
    quiet,
    sampler_of,
    take_back_the_lost,
    winner_of,
)
from bmft.inference import predict
from bmft.methods import METHODS, Outcome, Progress, debias, installed_methods, positive_last, settings_for
from bmft.models import Activations, kept_mark, reading_of, settle, state_hash, tensors_of
from bmft.training import Conditions, Limits

# An inner run is shorter than a debiasing by itself, unless `config` says otherwise, and the pruner stops it.
INNER: Mapping[str, Any] = {"preset": "path", "epochs": (4, 3), "path": (0.5, 1.0), "patience": 0}
EARLY = 3  # epochs that a run at the end has in any case


@dataclass(frozen=True)
class SearchProgress:
    """How far a search has come: `done` of `total` trials, the best value, the seconds left, and the run under way.

    `ending` names the run at the end where one is under way; of all there are at the end it is the part from `since` to
    `until`.
    """

    done: int
    total: int
    best: float | None
    seconds_left: float | None
    inner: Progress | None = None
    ending: str = ""
    since: float = 0.0
    until: float = 1.0

    @property
    def place(self) -> tuple[float, float, str, float | None]:
        """How far the search is, for a bar, in trials (the one under way as a part), and the best value so far."""
        inner = min(self.inner.finished / self.inner.expected, 1.0) if self.inner and self.inner.expected else 0.0
        best = "" if self.best is None else f", best {self.best:.4g}"
        if self.ending:
            part = self.since + inner * (self.until - self.since)
            return self.total + part, self.total + 1, f"{self.ending}{best}", None
        return self.done + inner * 0.5, self.total + 1, f"search{best}", self.seconds_left


@dataclass(frozen=True)
class SearchOutcome:
    """The result of `search`.

    Attributes:
        outcome: The run that was kept, as `bmft.debias` gives it.
        options: That run as options of the command ``bmft debias``.
        settings: The settings of its method, as values for ``config=``.
        summary: Every trial, the front of the two goals, and how much each switch mattered; shown by the report.
    """

    outcome: Outcome
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    summary: Mapping[str, Any] = field(repr=False)

    def to_toml(self) -> str:
        """The file that repeats the final run: ``bmft debias model.pt --config best.toml``."""
        # Its rows were cut, also where `bmft debias` would cross-fit.
        lines = [f"{key} = {_toml(value)}" for key, value in {**self.options, "folds": 1}.items()]
        return "\n".join([*lines, "", "[settings]", *(f"{k} = {_toml(v)}" for k, v in self.settings.items()), ""])


@dataclass
class _Search:
    """One worker's part in a study; `leading` is the latest of its own trials that led the study, with its outcome."""

    model: nn.Module
    fit: GroupedData
    select: GroupedData
    space: Space
    goals: tuple[Goal, ...]
    config: Mapping[str, Any]
    method: str
    folds: int
    conditions: Conditions
    study: Study
    original: float
    activations: Activations = field(default_factory=Activations)
    leading: tuple[int, Outcome] | None = None

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The method's settings at a point of the space."""
        return {**self.config, **self.space.settings(params, settings_for(self.method, self.config))}

    def run(self, trial: Trial, progress: Callable[[Progress], None]) -> tuple[list[float], list[Outcome]]:
        """One trial: a whole inner run per fold, reported after every epoch; its values and the runs' outcomes.

        Raises:
            TrialPruned: it is not worth going on.
        """
        config, found, steps, epochs, spent = self.values(_suggested(trial, self.space)), [], 0, 0, 0
        best: list[float] = []

        def look(now: Progress) -> None:
            nonlocal steps, epochs
            steps, epochs = steps + 1, epochs + (now.phase == "step 1")
            progress(now)
            # Noted on the way, since a trial that is stopped has cost something too.
            trial.set_user_attr("image_passes", spent + len(self.fit) * (2 + epochs))
            trial.set_user_attr("alive", time.time())
            if self.folds == 1 and len(self.goals) == 1 and (value := self.so_far(now, best)) is not None:
                best.append(value)
                trial.report(_finite(value), steps)
                if trial.should_prune():
                    raise TrialPruned

        for fit, select, test in self._parts():
            outcome = debias(
                self.model,
                fit,
                select,
                test=test,
                method=self.method,
                config=config,
                conditions=self.conditions.but(intervals=False),
                progress=look,
                activations=self.activations,
            )
            found.append(outcome)
            spent, epochs = spent + passes(outcome, fit), 0
            trial.set_user_attr("image_passes", spent)
        _note(trial, found, self.conditions.limits)
        values = [float(np.mean([_finite(goal.of(outcome.after)) for outcome in found])) for goal in self.goals]
        return values, found

    def so_far(self, now: Progress, earlier: Sequence[float]) -> float | None:
        """The best value of a run's epochs; one that does harm counts as no better than the original.

        The original itself does not count: all runs that have not yet improved on it would be equals, and go on.
        """
        goal, entry = self.goals[0], now.figures
        own = None if entry is None else next((v for name, v in entry.goals.items() if GOALS[name] is goal), None)
        if entry is None or own is None:
            return None if now.kept is None else goal.of(now.kept)
        values = [own if entry.eligible else max(own, self.original, key=lambda v: goal.sign * v), *earlier[-1:]]
        return min(values, key=lambda value: goal.sign * value)

    def note_leader(self, number: int, outcomes: list[Outcome]) -> None:
        """Keep the outcome of the trial of that number if it leads, so that the winner need not be run again."""
        if self.folds == 1 and harmless_trials(self.study) and winner_of(self.study, self.goals).number == number:
            self.leading = number, outcomes[0]

    def finals(
        self, best: FrozenTrial, config: Mapping[str, Any], progress: Callable[[SearchProgress], None]
    ) -> tuple[list[Final], dict[str, str], int]:
        """The runs at the end: the winner as tried and at full length, the method by itself, LoRA if it can run.

        The winner's own trial is such a run, where it was this worker's.
        """
        alone = settings_for(self.method, config)
        aimed = {
            **{name: self.config[name] for name in ("preset", "choose", "patience") if name in self.config},
            **config,
        }
        point = self.space.settings(best.params, settings_for(self.method, self.config))
        tried = settings_for(self.method, self.values(best.params))
        named = [
            ("winner", self.method, tried),
            ("winner at full length", self.method, settings_for(self.method, aimed).with_values(point)),
            (f"{self.method} by itself", self.method, alone),
        ]
        if "lora" in installed_methods():
            # Adapters are no switches, so LoRA is no point of the space.
            named.append(("LoRA", "lora", settings_for("lora", METHODS["lora"].reading(aimed))))
        done, value = count_trials(self.study, DONE), best_value(self.study, self.goals)
        known = {"winner": self.leading[1]} if self.leading and self.leading[0] == best.number else {}

        winners = list(best.intermediate_values.values())
        heard: dict[int, list[float]] = {}

        def look(number: int, of: int, inner: Progress) -> None:
            ending = f"final run {number + 1} of {of}"
            progress(SearchProgress(done, done, value, None, inner, ending, number / of, (number + 1) / of))
            own = heard.setdefault(number, [])
            if (found := self.so_far(inner, own)) is not None:
                own.append(found)
            # Runs of two steps reach the second one at different times: they cannot be compared epoch by epoch.
            alike = len(own) == inner.finished and "path" not in METHODS[self.method].uses
            if alike and EARLY <= len(own) <= len(winners):
                behind = self.goals[0].sign * (own[-1] - winners[len(own) - 1])
                if behind > 0:
                    reason = f"behind the winner after {len(own)} epochs, at {own[-1]:.4g}"
                    raise BehindError(reason, len(self.fit) * (2 + len(own)))

        return run_finals(
            named,
            self.model,
            self.fit,
            self.select,
            goal=self.goals[0],
            conditions=self.conditions,
            known=known,
            progress=look,
            activations=self.activations,
        )

    def _parts(self) -> Iterator[tuple[GroupedData, GroupedData, GroupedData | None]]:
        if self.folds == 1:
            yield self.fit, self.select, None
            return
        parts = self.select.split(*[1 / self.folds] * self.folds, seed=self.conditions.seed)
        rows = [torch.isin(self.select.rows, part.rows) for part in parts]
        for inside in rows:
            yield self.fit, self.select.subset(~inside), self.select.subset(inside)


@positive_last
def search(
    model: nn.Module,
    fit: Any,
    select: Any,
    *,
    test: Any = None,
    method: str = "bmft",
    sensitive: str | list[str] | None = None,
    goal: str = "worst_group_auc",
    second_goal: str | None = None,
    trials: int = 20,
    timeout: float | None = None,
    storage: str | Path | None = None,
    name: str | None = None,
    pruner: str = "halving",
    folds: int = 1,
    also: Iterable[str] = (),
    detail: Detail = "component",
    config: Mapping[str, Any] | None = None,
    conditions: Conditions | None = None,
    allow_shared_rows: bool = False,
    progress: bool | Callable[[SearchProgress], None] = False,
    **but: Any,
) -> SearchOutcome:
    """Search which blocks and components a method may fine-tune, and at which learning rate, and run the winner.

    1. The space is one switch per block and component of `model`, and the learning rate.
    2. First tried are the blocks that carry the gap, by the importance of their weights (the most important one, those
       with half of the importance, all from these up), then fixed methods (everything, the head alone, one kind of
       component); then Optuna's TPE suggests.
    3. Every trial is a whole run of `method` on fit, judged on select after every epoch, stopped early if it lags.
    4. The winner among the trials that do no harm is run once more at the method's full length, and the method by
       itself as `debias` runs it; of these and of the winner as it was tried, what is best on select without harm is
       kept and measured on `test`. A run of a method of one step ends there when it falls behind the winner's trial.

    The search is that of FairTune (Dutt et al. 2024, arXiv 2310.05055): an outer loop that chooses what an inner
    fine-tuning may move, by what the inner result is worth on rows that it did not see. `model` itself is not changed.

    Args:
        model: a classifier that gives logits, as for `bmft.debias`.
        fit, select, test, sensitive, conditions, allow_shared_rows, but: as for `bmft.debias`. No trial sees `test`.
        method: any of `bmft.METHODS`; ``"selective"`` is plain fine-tuning of what is switched on, as published.
        goal: what is looked for on select, a name in `bmft.auditing.GOALS`.
        second_goal: a second one: the trials that none beats in both make a front, and the best by `goal` wins.
        trials: finished trials in all, over every worker of the study.
        timeout: seconds after which no new trial begins.
        storage: an Optuna storage URL, or the path of a journal file; workers that name the same one share the study,
            and what is there already counts. None keeps it in memory.
        name: of the study in the storage; else made from the data, the weights and the settings.
        pruner: ``halving``, ``hyperband``, ``median`` or ``none``.
        folds: over which select is cross-validated: chosen on all but one, measured on that one.
        also: other settings that are searched: ``fraction``, ``bias_weight``, ``epochs``, ``score``.
        detail: see `bmft.fairtune.search_space`.
        config: settings of the method that are not searched. Inner runs are short unless they say otherwise (`INNER`).
        progress: shows a bar (tqdm's), or is a function that is called with a `SearchProgress` after every epoch.

    Returns:
        The run that was kept, with the options and settings that repeat it and a summary of all trials. Where no trial
        did better than the original without harm, its model has the original's weights.

    Raises:
        ConfigError: an option is not known or not possible, or no trial was finished.
        MissingExtraError: Optuna is not installed.

    >>> from bmft.data import from_arrays
    >>> labels = torch.arange(80) % 2
    >>> inputs = torch.linspace(-1, 1, 80)[:, None] * torch.tensor([1.0, -0.5]) + labels[:, None] - 0.5
    >>> fit, select = from_arrays(inputs, labels, torch.arange(80) // 2 % 2).split(0.5, 0.5)
    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> for weight, value in zip(network.parameters(), (0.5, 0.5, 1.0, -1.4)):
    ...     _ = nn.init.constant_(weight, value)
    >>> found = search(network, fit, select, trials=2, config={"epochs": (1, 1), "path": (1.0,)}, intervals=False)
    >>> len(found.summary["trials"]), type(found.outcome.model).__name__, found.options["method"]
    (2, 'Sequential', 'bmft')
    """
    if unknown := {goal, second_goal or goal} - set(GOALS):
        raise ConfigError(unknown_name("goal", unknown.pop(), GOALS))
    if pruner not in PRUNERS:
        raise ConfigError(unknown_name("pruner", pruner, PRUNERS))
    if trials < 1 or folds < 1:
        raise ConfigError(f"trials {trials}, folds {folds}: expected at least 1 of each")
    conditions = (conditions or Conditions()).but(**but)
    sets = {"fit": fit, "select": select} | ({} if test is None else {"test": test})
    # Once for all trials: what is computed on a set is kept by the set.
    grouped = {part: as_grouped(data, sensitive=sensitive or None) for part, data in sets.items()}
    parts = apart(grouped, allow=allow_shared_rows)
    fit, select, test = parts["fit"], parts["select"], parts.get("test")
    untouched = predict(model, select, device=conditions.device, multi_label=conditions.multi_label)
    refuse_swapped(untouched)
    if method not in METHODS:
        raise ConfigError(unknown_name("method", method, METHODS))
    given = {"choose": goal, **METHODS[method].reading(INNER), **(config or {})}
    base = settings_for(method, given)
    with kept_mark(model):
        settle(model, fit, multi_label=conditions.multi_label)
        sample = fit.take(slice(0, 2)).inputs
        space = search_space(model, sample, base, detail=detail, also=also, head=conditions.head)
        importance = importance_of_blocks(model, fit, space, base, conditions)
    goals = tuple(GOALS[key] for key in (goal, second_goal) if key)
    facts = [
        method,
        sorted(given.items(), key=str),
        conditions,
        goal,
        second_goal,
        sorted(space.switches),
        space.also,
        folds,
        *sorted(reading_of(model).described().items()),
    ]
    facts += [fit.content_hash, select.content_hash, state_hash(tensors_of(model))]
    label = name or f"bmft-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
    with quiet(), opened_storage(storage) as place:
        points = list(different([*first_points(importance, space, base), *space.fixed_points(base)]))
        study = open_study(place, label, goals, PRUNERS[pruner], points[:trials])
        original = goals[0].of(audit_predictions(untouched, threshold=conditions.threshold, intervals=False))
        worker = _Search(model, fit, select, space, goals, given, method, folds, conditions, study, original)
        look = watched(progress, lambda now: now.place)
        _work(worker, trials, timeout, look)
        best = winner_of(study, goals)
        finals, failed, lost = worker.finals(best, config or {}, look)
        kept = best_of(finals, goals[0])
        outcome = measured_at_last(kept, model, select, test, conditions)
        summary = {**_summary(worker, best, goal, outcome, finals, kept, lost), "finals_failed": failed}
    shown = {name.replace("_", "-"): value for name, value in conditions.to_dict().items() if value is not None}
    return SearchOutcome(
        outcome, {"method": kept.method, **shown}, METHODS[kept.method].reading(kept.settings.to_dict()), summary
    )


def _work(worker: _Search, trials: int, timeout: float | None, progress: Callable[[SearchProgress], None]) -> None:
    """Run trials until the study has as many as asked for, whoever ran them."""
    start, first = time.monotonic(), count_trials(worker.study, DONE)
    while (done := count_trials(worker.study, DONE)) < trials:
        spent = time.monotonic() - start
        if timeout is not None and spent >= timeout:
            return
        take_back_the_lost(worker.study)
        if count_trials(worker.study, (*DONE, TrialState.RUNNING)) >= trials:
            # Others are at the last ones; should they die, these are taken back.
            time.sleep(0.2)
            continue
        left = None if done == first else spent / (done - first) * (trials - done)
        now = SearchProgress(done, trials, best_value(worker.study, worker.goals), left)
        progress(now)
        _one(worker, trials, lambda inner, now=now: progress(replace(now, inner=inner)))  # type: ignore[misc]
    progress(SearchProgress(done, trials, best_value(worker.study, worker.goals), 0.0))


def _one(worker: _Search, trials: int, progress: Callable[[Progress], None]) -> None:
    """Ask for a trial, run it and tell the study how it went; an interrupted one is given back."""
    study = worker.study
    trial = study.ask()
    before = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
    # TPE draws anew for every trial from the seed and the trial's place. A lost trial takes none, as it is run again: a
    # resumed search goes on as it would have.
    study.sampler = sampler_of(worker.conditions.seed * 100_003 + sum(t.state != TrialState.FAIL for t in before))
    trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
    trial.set_user_attr("alive", time.time())
    if sum(t.state in (*DONE, TrialState.RUNNING) for t in before) >= trials:
        # Two workers asked at once for the last one.
        study.tell(trial, state=TrialState.FAIL)
        return
    finished = False
    try:
        values, outcomes = worker.run(trial, progress)
        study.tell(trial, values)
        finished = True
        worker.note_leader(trial.number, outcomes)
    except TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        finished = True
    except NonFiniteError as error:
        trial.set_user_attr("failed", str(error))
        study.tell(trial, state=TrialState.PRUNED)
        finished = True
    finally:
        if not finished:
            give_back(study, study.get_trials(deepcopy=False)[trial.number])


def _suggested(trial: Trial, space: Space) -> dict[str, Any]:
    name, low, high = space.rate
    params: dict[str, Any] = {switch: trial.suggest_categorical(switch, [True, False]) for switch in space.switches}
    params[name] = trial.suggest_float(name, low, high, log=True)
    for key in space.also:
        if key in CHOICES:
            params[key] = trial.suggest_categorical(key, CHOICES[key])
        elif key == "epochs":
            params[key] = trial.suggest_int(key, int(RANGES[key][0]), int(RANGES[key][1]))
        else:
            params[key] = trial.suggest_float(key, *RANGES[key], log=True)
    return params


def _note(trial: Trial, outcomes: list[Outcome], limits: Limits) -> None:
    """Keep what the report shows, and by how much the trial breaks the limits (more than 0: it does)."""
    found = [one.excess for o in outcomes for one in violations(o.before, o.after, limits)]
    trial.set_constraint("harm", _finite(max(found, default=0.0)))
    trial.set_user_attr("gap", float(np.mean([GOALS["average_odds"].figure(o.after) for o in outcomes])))
    trial.set_user_attr("roc_auc", float(np.mean([o.after.overall["roc_auc"] for o in outcomes])))
    trial.set_user_attr("accepted", all(o.accepted for o in outcomes))


def _finite(value: float) -> float:
    # What cannot be measured must still be ordered: Optuna takes no infinity.
    return max(min(value, 1e9), -1e9)


def _summary(
    worker: _Search, best: FrozenTrial, goal: str, outcome: Outcome, finals: list[Final], kept: Final, lost: int
) -> dict[str, Any]:
    """What the report's search page shows."""
    trials = worker.study.get_trials(deepcopy=False, states=DONE)
    on_test = outcome.report.evaluated_on == "test"
    return {
        "objective": goal,
        "direction": worker.goals[0].direction,
        "trials": [
            {
                "number": t.number,
                "value": t.values[0] if t.values else None,
                "state": t.state.name.lower(),
                "fixed": t.user_attrs.get("fixed"),
                "failed": t.user_attrs.get("failed"),
                "image_passes": t.user_attrs.get("image_passes", 0),
            }
            for t in trials
        ],
        "pareto": front_of(trials, best),
        "importances": importances_of(worker.study),
        "mask": worker.space.switched(best.params),
        "finals": [final.to_dict() | {"kept": final is kept} for final in finals],
        "select": kept.value,
        "test": worker.goals[0].of(outcome.after) if on_test else None,
        "image_passes": sum(t.user_attrs.get("image_passes", 0) for t in trials)
        + sum(final.image_passes for final in finals)
        + lost,
        "study": worker.study.study_name,
        "winner": best.number,
    }


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes of a text are among TOML's.
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
