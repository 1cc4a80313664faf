"""The trainings of a cross-fitting: a fold's rows held out, what its models say of them, and one model of every row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmft._common import Assumption
from bmft.auditing import Epoch, Predictions, refuse_swapped
from bmft.compute import Tell, Workers
from bmft.data import GroupedData, label_strata
from bmft.errors import ConfigError, DataError
from bmft.masks import WeightMask
from bmft.methods.course import Progress
from bmft.methods.debiasing import POINT_KEPT, hold_others, prepared
from bmft.methods.losses import graded, step_of
from bmft.methods.run import Run
from bmft.methods.table import METHODS
from bmft.models import Activations
from bmft.report import OUT_OF_FOLD
from bmft.settings import Settings
from bmft.training import Conditions, Journal, Selection

FOLDS = 5
_KEPT = "Epochs that were finished are kept where there is a journal: go on with --resume."


def folds_of(
    data: GroupedData, folds: int = FOLDS, *, seed: int = 0, why: str = "the rows are given as one set"
) -> tuple[list[Tensor], Assumption]:
    """The rows that each fold holds out, and what is to be said of them.

    Patients (or else images) are dealt out whole, stratified by group and label. There are never more folds than
    patients. `why` is where it says that there are folds.

    Raises:
        ConfigError: fewer than two folds were asked for.
        DataError: there are fewer than two patients.

    >>> from bmft.data import from_arrays
    >>> rows, said = folds_of(from_arrays(torch.eye(8), [0, 1] * 4, [0, 0, 1, 1] * 2), 3)
    >>> sorted(torch.cat(rows).tolist()) == list(range(8)), said.guess
    (True, True)
    """
    if folds < 2:
        raise ConfigError(
            f"folds is {folds}: expected at least 2 (without folds, half of the rows fit and half select)"
        )
    kept = data.kept_whole
    units = np.arange(len(data)) if kept is None else kept
    people, number = "patient" if data.clusters is not None else "image", len(np.unique(units))
    if number < 2:
        raise DataError(f"{len(data)} rows of {number} {people}: expected at least two, one for each fold")
    fewer = f" instead of {folds}, as there are no more {people}s" if number < folds else ""
    folds = min(folds, number)
    part = data.folds(folds, seed=seed)
    value = (
        f"{folds} folds{fewer} of about {len(data) // folds:,} rows, each {people} in one; models of all but one "
        f"of them choose and are measured on the fold left out, the result learns from all {len(data):,} rows, which "
        f"takes about {folds} times as long as one run on them"
    )
    rare = [f"{name} ({n})" for name, n in _cells(data, units) if n < folds]
    value += f"; in fewer {people}s than folds: {', '.join(rare)}" if rare else ""
    option = "--folds, --split-column" + (", --cluster" if data.clusters is None else "")
    said = Assumption("splits", value, why, option, guess=data.clusters is None or bool(rare))
    return [torch.nonzero(part == fold).flatten() for fold in range(folds)], said


def _cells(data: GroupedData, units: Any) -> Iterator[tuple[str, int]]:
    """Each group and label that there are rows of, and of how many patients."""
    strata = label_strata(data.targets)
    names = (*data.classes, "none") if data.targets.ndim == 2 else data.classes
    for attribute, ids in zip(data.attributes, data.groups.T, strict=True):
        for group, name in enumerate(attribute.groups):
            for label in torch.unique(strata[ids == group]).tolist():
                members = ((ids == group) & (strata == label)).numpy()
                yield f"{attribute.name}={name}, label {names[label]}", len(np.unique(units[members]))


@dataclass(frozen=True)
class Fold:
    """What a fold's models said of the rows held out: the original first, then each candidate."""

    mask: WeightMask
    history: Sequence[Epoch]
    predictions: Sequence[Predictions]
    elsewhere: Sequence[tuple[str, ...]]
    remarks: Sequence[str]
    point_kept: bool
    importance: Mapping[str, float]
    seconds: Mapping[str, float]


@dataclass
class Work:
    """The trainings that a cross-fitting consists of.

    Attributes:
        method: its name.
        model: the original.
        data: every row.
        settings, conditions: as given.
        held_out: the rows of each fold.
        progress: is told of every epoch, of all trainings together.
        journal: where each training is kept.
        refused: why the model that learned from every row was not accepted, if it was not.
        reached: training (a fold's number, or that of all rows) -> its epochs that are over.
        preferred: the place of the candidate of step 1 that heads are trained on.
    """

    method: str
    model: nn.Module
    data: GroupedData
    settings: Settings
    conditions: Conditions
    held_out: Sequence[Tensor]
    progress: Callable[[Progress], None]
    journal: Journal = field(init=False)
    refused: str = ""
    reached: dict[int, int] = field(default_factory=dict)
    preferred: int = 0

    def __post_init__(self) -> None:
        settings, rows = self.last.settings, len(self.data)
        self.heads = step_of(settings, 1).epochs if self.last.body else 0
        self.steps = [graded(settings, rows - len(own)).epochs for own in self.held_out]
        self.expected = sum(self.steps) + len(self.steps) * self.heads + graded(settings, rows).epochs + self.heads

    @cached_property
    def last(self) -> Run:
        """The run on every row, of whose activations the folds take their part; each process has its own."""
        sets = {"fit": self.data, "select": self.data}
        return prepared(self.model, sets, self.settings, self.conditions, lambda _: None, Activations())

    def __getstate__(self) -> dict[str, Any]:
        left_here = ("last", "progress")
        own = {name: value for name, value in self.__dict__.items() if name not in left_here}
        return own | {"settings": self.last.settings}  # what was found out once, such as the views

    def choose(self, jobs: int) -> tuple[Selection, WeightMask]:
        """What the folds' models, of so many folds at once, choose together; and the mask of the first of them."""
        last = self.last
        with last.course.timed("audit"):
            untouched = last.predict(self.model, last.fit)
            fresh: dict[str, Any] = {"history": [], "candidates": {}, "remarks": []}
            selection = replace(last.selection, rows=OUT_OF_FOLD, **fresh)
            selection.start(untouched)
            refuse_swapped(untouched)
        with Workers(self, min(jobs, len(self.held_out)), kept=_KEPT, hear=self._heard) as workers:
            folds = self._folds(workers, untouched)
            for place in range(1, min(len(fold.history) for fold in folds)):
                self._pool(selection, folds, place)
            with last.course.timed("selection"):
                self.preferred = selection.prefer()
            if self.preferred and last.body:
                folds = self._folds(workers, untouched, self.preferred)
                if all(fold.history[-1].step == 2 for fold in folds):
                    self._pool(selection, folds, -1)
        selection.remarks += _remarks_of(folds)
        with last.course.timed("selection"):
            accepted = selection.finish()
        if not accepted and len(selection.history) > 1 and folds[0].point_kept:
            selection.remarks.append(POINT_KEPT)
        return selection, folds[0].mask

    def _folds(self, workers: "Workers[Work]", untouched: Predictions, told: int = 0) -> list[Fold]:
        """What comes of every fold, in their order; a candidate that is `told` gets a head."""
        found = {}
        for number, fold in workers.do(_fold, {each: (each, untouched, told) for each in range(len(self.held_out))}):
            found[number] = fold
            self.reached[number] = self.steps[number] + (self.heads if told else 0)
            spent = self.last.course.seconds
            spent |= {what: spent.get(what, 0.0) + seconds for what, seconds in fold.seconds.items()}
        self.last.importance = dict(found[0].importance)
        return [found[number] for number in sorted(found)]

    def fold(self, number: int, untouched: Predictions, told: int, tell: Tell) -> Fold:
        """Step 1 on the rows that are not of this fold; then a head on the candidate that is `told`, unless it is 0."""
        last, chosen = self.last, self.held_out[number]
        rows = torch.ones(len(last.fit), dtype=torch.bool).index_fill(0, chosen, False).nonzero().flatten()
        sets = {"fit": last.fit.subset(rows), "select": last.fit.subset(chosen)}
        views = len(last.viewed) // len(last.fit)
        viewed = torch.cat([rows + view * len(last.fit) for view in range(views)])
        activations = Activations(whole=last.activations)
        look = partial(_told, tell, number)
        run = prepared(self.model, sets, last.settings, last.conditions, look, activations)
        run.viewed = last.viewed.subset(viewed)
        for part, whole, own in (
            (run.fit, last.fit, rows),
            (run.select, last.fit, chosen),
            (run.viewed, last.viewed, viewed),
        ):
            activations.know(part, whole, own)
        run.journal, run.selection.told = self.journal.within(f"fold-{number + 1}"), told
        run.selection.begin(untouched.subset(chosen.numpy()))
        hold_others(run)
        mask = METHODS[self.method].run(run)
        found = run.selection
        places = range(len(found.history))
        return Fold(
            mask,
            found.history,
            [found.candidates[place][0] for place in places],
            [found.harm_elsewhere(place) for place in places],
            found.remarks,
            run.point is not None,
            run.importance,
            run.course.seconds,
        )

    def _pool(self, selection: Selection, folds: Sequence[Fold], place: int) -> None:
        """Let the selection see what the folds' candidates of that place say, each of rows it did not learn from."""
        entry, whole = folds[0].history[place], selection.candidates[0][0]
        parts = [fold.predictions[place] for fold in folds]
        scores, others = whole.scores.copy(), None if whole.others is None else whole.others.copy()
        for rows, part in zip(self.held_out, parts, strict=True):
            scores[rows.numpy()] = part.scores
            if others is not None and part.others is not None:
                others[rows.numpy()] = part.others
        with self.last.course.timed("selection"):
            selection.consider(
                replace(whole, scores=scores, others=others),
                step=entry.step,
                epoch=entry.epoch,
                loss=float(np.mean([fold.history[place].loss for fold in folds])),
                strength=entry.strength,
            )
        elsewhere = dict.fromkeys(harm for fold in folds for harm in fold.elsewhere[place])
        seen = selection.history[-1]
        selection.history[-1] = replace(seen, harm=(*seen.harm, *elsewhere))

    def learn(self, selection: Selection) -> WeightMask:
        """Change the last run's model: to what the method makes of every row, as far as was chosen; gives its mask.

        What does harm to the rows it learned from is not taken, and the selection then has the original.
        """
        last, entry = self.last, selection.history[selection.chosen]
        last.upto = self.preferred if entry.step == 2 else selection.chosen
        last.course.listener = lambda now: self._heard((len(self.held_out), now))
        last.journal, last.selection.told = self.journal.within("every-row"), entry.step - 1
        with last.course.timed("audit"):
            last.selection.begin(selection.candidates[0][0])
        mask = METHODS[self.method].run(last)
        selection.remarks += [f"every row: {one}" for one in last.selection.remarks if one not in selection.remarks]
        place = len(last.selection.history) - 1
        last.selection.candidates = {own: last.selection.candidates[own] for own in {0, place}}
        with last.course.timed("selection"):
            taken = last.selection.weighed()[0] if place == entry.step else 0
        if last.conditions.keep == "last" and place == entry.step:
            taken = place
        if taken:
            last.selection.turn_into(last.selection.candidates[place][1])
            return mask
        self.refused = self._why_refused(selection, place, entry)
        selection.history[selection.chosen] = replace(entry, chosen=False)
        selection.history[0] = replace(selection.history[0], chosen=True)
        selection.chosen = 0
        return mask

    def end(self, selection: Selection) -> None:
        """Tell the progress that no epoch is left."""
        self.progress(Progress("every row", 1, 1, None, selection.kept, self.expected, self.expected))

    def _why_refused(self, selection: Selection, place: int, entry: Epoch) -> str:
        """Why the model that learned from every row is not taken."""
        if place != entry.step:
            why = "; ".join(self.last.selection.remarks) or "its training came to nothing"
        else:
            harm = self.last.selection.history[place].harm
            why = (
                f"it does harm to the very rows it learned from ({'; '.join(harm)})"
                if harm
                else ("its gap on the very rows it learned from is not smaller")
            )
        return f"the folds' models did well, but not the one that learned from every row: {why}; the original is kept"

    def _heard(self, message: tuple[int, Progress]) -> None:
        """Tell the progress of a training's epoch as a part of them all."""
        number, now = message
        self.reached[number] = max(now.finished, self.reached.get(number, 0))
        each = len(self.held_out)
        phase = f"{f'fold {number + 1} of {each}' if number < each else 'every row'}, {now.phase}"
        finished = min(sum(self.reached.values()), self.expected)
        self.progress(replace(now, phase=phase, finished=finished, expected=self.expected))


def _remarks_of(folds: Sequence[Fold]) -> list[str]:
    """What is to be said of the folds' trainings: once, where it is said of each of them."""
    alike = [remark for remark in folds[0].remarks if all(remark in fold.remarks for fold in folds)]
    own = [f"fold {n}: {one}" for n, fold in enumerate(folds, 1) for one in fold.remarks if one not in alike]
    return [*alike, *own]


def _fold(work: Work, task: tuple[int, Predictions, int], tell: Tell) -> Fold:
    return work.fold(*task, tell)


def _told(tell: Tell, number: int, now: Progress) -> None:
    tell((number, replace(now, kept=None)))  # a fold chooses nothing, and the audit is large
