"""Every method and baseline under one budget: trials side by side, resumed where they stopped, and a verdict."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bmft._common import as_json, put, unknown_name, watched
from bmft.auditing import refuse_swapped
from bmft.comparison.references import REFERENCES
from bmft.comparison.results import Comparison
from bmft.comparison.trials import (
    CLOSED_FORM,
    RATES,
    Budget,
    Trial,
    World,
    known_methods,
    not_installed,
    run_trial,
    trial_key,
)
from bmft.compute import Tell, Workers
from bmft.data import apart
from bmft.errors import ConfigError
from bmft.inference import predict
from bmft.methods import METHODS
from bmft.models import Activations
from bmft.report import comparison_page, page, to_json, versions

_log = logging.getLogger(__name__)
KEPT = "Finished trials are kept where there is a folder for them."


def compare(
    world: World,
    *,
    methods: Sequence[str] | None = None,
    budget: Budget | None = None,
    config: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    jobs: int = 1,
    allow_shared_rows: bool = False,
    progress: bool | Callable[[int, int, str], None] = False,
) -> Comparison:
    """Run every method under the same fit and select data, the same budget, and the same number of tuning trials.

    Args:
        world: the model, the data and the conditions; the model is not changed.
        methods: names in `known_methods`; all by default.
        config: values for every method's settings.
        folder: one file per finished trial is kept here, and read instead of run the next time.
        jobs: processes.
        allow_shared_rows: take sets that share pictures or patients, which is an error otherwise; the report says so.
        progress: show a bar (tqdm's), or a function that is given what is done, of how many, and the latest method.

    Raises:
        ConfigError: a method or a setting is not known, or jobs is less than 1.
    """
    budget = budget or Budget()
    sets = {"fit": world.fit, "select": world.select} | ({} if world.test is None else {"test": world.test})
    sets = apart(sets, allow=allow_shared_rows)
    # What trials share is kept as long as this comparison takes.
    world = replace(world, fit=sets["fit"], select=sets["select"], test=sets.get("test"), activations=Activations())
    world = world.positive_last()
    trials = trials_of(methods, budget, config or {})
    refuse_swapped(predict(world.model, world.select, **world.measuring))
    store = _Store(folder, world.fingerprint())
    results = {place: found for place, trial in enumerate(trials) if (found := store.read(trial)) is not None}
    waiting = {place: trial for place, trial in enumerate(trials) if place not in results}
    look = watched(progress, lambda *now: now)
    look(len(results), len(trials), "")
    with Workers(world, jobs if len(waiting) > 1 else 1, kept=KEPT) as workers:
        for place, result in workers.do(_result, waiting):
            store.write(trials[place], result)
            results[place] = result
            look(len(results), len(trials), trials[place].method)
    return Comparison(
        tuple(results[place] for place in sorted(results)),
        asdict(budget),
        world.conditions.limits,
        not_installed(),
        versions(),
        tuple(attribute.name for attribute in world.fit.attributes),
        as_json(world.measured.assumed),
    )


def trials_of(methods: Sequence[str] | None, budget: Budget, config: Mapping[str, Any]) -> list[Trial]:
    """Every trial of a comparison, seed by seed, so that an interrupted one has whole seeds first.

    >>> [(t.method, t.seed, t.number) for t in trials_of(["head", "dfr"], Budget(seeds=1), {})]
    [('head', 0, 0), ('head', 0, 1), ('dfr', 0, 0)]
    """
    names = list(dict.fromkeys(methods or known_methods()))
    for name in names:
        if name in (absent := not_installed()):
            raise ConfigError(f"{name} {absent[name]}")
        if name not in known_methods():
            raise ConfigError(unknown_name("method", name, dict.fromkeys(known_methods())))
    read = {setting for name in names if name in METHODS for setting in METHODS[name].reading(config)}
    if unread := [setting for setting in config if setting not in read]:
        raise ConfigError(f"none of {', '.join(names)} reads the setting {unread[0]}: leave it out")
    if not 1 <= budget.tuning <= len(RATES) or budget.seeds < 1:
        raise ConfigError(
            f"tuning is {budget.tuning} and seeds {budget.seeds}: expected 1 to {len(RATES)}, and at least 1"
        )
    return [trial for seed in range(budget.seeds) for name in names for trial in _of(name, seed, budget, config)]


def _of(name: str, seed: int, budget: Budget, config: Mapping[str, Any]) -> Iterator[Trial]:
    if name in REFERENCES:
        # Its draws and its fit have no seed of ours.
        yield from [Trial(name, seed, 0, {})] if seed == 0 else []
        return
    for number in range(1 if name in CLOSED_FORM else budget.tuning):
        yield Trial(name, seed, number, budget.config(name, number, config))


class _Store:
    """One JSON file per finished trial, put down whole."""

    def __init__(self, folder: str | Path | None, fingerprint: str) -> None:
        self.folder, self.fingerprint = None if folder is None else Path(folder), fingerprint

    def path(self, trial: Trial) -> Path | None:
        if self.folder is None:
            return None
        name = f"{trial.method}-{trial.seed}-{trial.number}-{trial_key(self.fingerprint, trial)}.json"
        return self.folder / name

    def read(self, trial: Trial) -> dict[str, Any] | None:
        path = self.path(trial)
        if path is None or not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        # A ValueError is no JSON, or no UTF-8.
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            _log.warning("%s is not a finished trial: it is run again", path)
            return None
        return found

    def write(self, trial: Trial, result: Mapping[str, Any]) -> None:
        path = self.path(trial)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            put(to_json(result), path)


def _result(world: World, trial: Trial, _: Tell) -> dict[str, Any]:
    """As it will be read back: a resumed comparison equals an uninterrupted one."""
    plain: dict[str, Any] = json.loads(to_json(run_trial(world, trial)))
    return plain


def write_comparison(comparison: Comparison, folder: str | Path) -> Path:
    """Write ``compare.html``, ``compare.json`` and ``compare.md`` into `folder`; returns the first's path."""
    found = comparison.to_dict()
    return page.write_pages(comparison_page.comparison_page(found), folder, "compare", to_json(found))
