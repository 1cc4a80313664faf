"""One trial of a comparison: a method, a seed, a setting; run, measured, and put into plain values."""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from bmft.auditing import GOALS, AuditReport, Predictions, audit_predictions, violations
from bmft.comparison.references import REFERENCES, ReferenceInput, missing_references
from bmft.data import GroupedData
from bmft.errors import BmftError
from bmft.inference import Leakage, attribute_leakage, compared_leakage, predict
from bmft.methods import METHODS, debias, facing, gap_measure, installed_methods, settings_for
from bmft.models import Activations, find_head, positive_first, reading_of, state_hash, tensors_of
from bmft.training import Conditions

SCHEMA = 1
RATES = (1.0, 3.0, 0.3, 10.0, 0.1)  # what a tuning trial multiplies the learning rates by, the default first
ONE_STEP = ("rw", "reg", "rwreg", "lora", "group_dro", "bias_gradient_descent")  # train the whole network only
CLOSED_FORM = ("dfr", "fairprune", "threshold")  # offer their own candidates to select; no learning rate
RESAMPLES = 200
FIGURES = ("gap", "equalized_odds_difference", "roc_auc", "worst_group_roc_auc", "balanced_accuracy")


@dataclass(frozen=True)
class Budget:
    """How much training, tuning and repeating every method of a comparison may use.

    Attributes:
        epochs: of the extractor step and of the head step. Methods that train the whole network at once get as many
            passes over the fit images as the two-step methods make in all: their epochs, one for the importance and
            one per point of the path for the features.
        path: how far along the extractor goes, see `bmft.Settings`.
        tuning: learning rates tried per method and seed, chosen on select.
        seeds: repetitions.
    """

    epochs: tuple[int, int] = (3, 5)
    path: tuple[float, ...] = (0.5, 1.0)
    tuning: int = 2
    seeds: int = 3

    def config(self, method: str, number: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of tuning trial `number` of a method, over those that the user gave.

        >>> Budget().config("rw", 1, {})["epochs"], Budget().config("bmft", 0, {"fraction": 0.1})["fraction"]
        ((6, 0), 0.1)
        """
        step, head = self.epochs
        epochs = (step + 1 + len(self.path), 0) if method in ONE_STEP else (step, head)
        if method == "head":
            # On cached features an epoch is no image-pass: as many heads' worth as the two-step methods train.
            epochs = (0, head * len(self.path) * 2)
        given = METHODS[method].reading({"preset": "path", **given})
        base = settings_for(method, given)
        rates = {"lr": tuple(rate * RATES[number] for rate in base.lr), "trust": base.trust * RATES[number]}
        return given | METHODS[method].reading({"epochs": epochs, "path": self.path, **rates})


@dataclass(frozen=True)
class Trial:
    """A method with these settings from this seed; `number` counts a method's tuning trials from 0."""

    method: str
    seed: int
    number: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class World:
    """What all trials share: the model, the data, and the conditions; and what one process has computed of them."""

    model: nn.Module
    fit: GroupedData
    select: GroupedData
    test: GroupedData | None
    sites: Mapping[str, GroupedData] = field(default_factory=dict)
    conditions: Conditions = field(default_factory=lambda: Conditions(device="cpu"))
    activations: Activations = field(default_factory=Activations, repr=False, compare=False)

    @property
    def measured(self) -> GroupedData:
        """The rows that trials are measured on, test or else select."""
        return self.select if self.test is None else self.test

    @property
    def measuring(self) -> dict[str, Any]:
        """How `bmft.audit` is to run the model."""
        return {"device": self.conditions.device, "multi_label": self.conditions.multi_label}

    def positive_last(self) -> "World":
        """The same with a copy of the model that has the positive class's output last."""
        sets = {"fit": self.fit, "select": self.select} | ({} if self.test is None else {"test": self.test})
        if not any(positive_first(self.model, data) for data in sets.values()):
            return self
        model, straight = facing(self.model, sets, head=self.conditions.head, multi_label=self.conditions.multi_label)
        sites = {name: replace(data, outputs_reversed=False) for name, data in self.sites.items()}
        return replace(
            self, model=model, sites=sites, fit=straight["fit"], select=straight["select"], test=straight.get("test")
        )

    def fingerprint(self) -> str:
        """SHA-256 of the model's weights, every set's content and the conditions: another world, another result."""
        sets = {"fit": self.fit, "select": self.select, "test": self.test, **self.sites}
        hashes = {name: data.content_hash for name, data in sets.items() if data is not None}
        own = self.conditions
        conditions: list[Any] = [SCHEMA, own.to_dict() | {"seed": 0}, own.multi_label, own.head]
        conditions.append([attribute.name for attribute in self.fit.attributes])
        conditions += reading_of(self.model).described().items()
        facts = [state_hash(tensors_of(self.model)), hashes, conditions]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def trial_key(fingerprint: str, trial: Trial) -> str:
    """What a trial's result is kept under: it changes with the model, the data, the conditions and the settings."""
    settings = {} if trial.method in REFERENCES else settings_for(trial.method, trial.config).to_dict()
    text = json.dumps([fingerprint, trial.method, trial.seed, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_trial(world: World, trial: Trial) -> dict[str, Any]:
    """Run one trial; what comes back are plain values. A method that refuses says why under ``problem``."""
    facts = {"method": trial.method, "seed": trial.seed, "trial": trial.number}
    start = time.perf_counter()
    try:
        done = _reference(world, trial.method) if trial.method in REFERENCES else _method(world, trial)
    except BmftError as error:
        return {**facts, "problem": str(error)}
    return {**facts, **done, "wall_seconds": time.perf_counter() - start}


def _method(world: World, trial: Trial) -> dict[str, Any]:
    model, shared = copy.deepcopy(world.model), world.activations
    with counted_passes(model) as passes:
        # What other trials have computed counts as if this one had: a method costs what it costs by itself.
        shared.meter, spared = passes, shared.spared
        outcome = debias(
            model,
            world.fit,
            world.select,
            test=world.test,
            method=trial.method,
            config=trial.config,
            conditions=world.conditions.but(seed=trial.seed, intervals=False),
            activations=shared,
        )
        used = passes() + shared.spared - spared
    report = outcome.report
    chosen = next(entry for entry in report.history if entry.chosen)
    before, after = _predictions(outcome.before), _predictions(outcome.after)
    probes = (_leakage(world, each) for each in (world.model, outcome.model))
    measured = len(world.measured)
    return {
        "config": report.config,
        "accepted": outcome.accepted,
        "reason": outcome.reason,
        "harm": [str(one) for one in violations(outcome.before, outcome.after, world.conditions.limits)],
        "select": {name: getattr(chosen, name) for name in ("gap", "roc_auc", "worst_group_roc_auc")},
        "evaluated_on": report.evaluated_on,
        "n": len(before),
        **compared(world, trial.method, trial.config, before, after),
        "moved": outcome.patch.moved / sum(p.numel() for p in model.parameters()),
        # Measuring before and after is no part of a method's cost.
        "image_passes": max(0, used - len(world.select) - measured * (outcome.accepted + (world.test is not None))),
        "seconds": report.seconds["total"] - report.seconds["audit"],
        "leakage": compared_leakage(*probes),
        "evaluations": _sites(world, trial, outcome.model),
    }


def _leakage(world: World, model: nn.Module) -> dict[str, Leakage]:
    """What the features tell of the attributes: once for all models that differ in their heads alone."""
    data, given = world.measured, world.conditions.head
    head = find_head(model, data.take(slice(0, 2)).to(next(model.parameters()).device).inputs, name=given)
    body = {name: tensor for name, tensor in tensors_of(model).items() if name not in head.parameters}
    return world.activations.once(
        ("leakage", state_hash(body)), data, lambda: attribute_leakage(model, data, head=given, seed=0)
    )


def _reference(world: World, name: str) -> dict[str, Any]:
    """Decisions of another library made of the untouched model's scores; they are no checkpoint."""
    model, reference = copy.deepcopy(world.model), REFERENCES[name]
    with counted_passes(model) as passes:
        select, before = (predict(model, data, **world.measuring) for data in (world.select, world.measured))
        case = ReferenceInput(
            model,
            world.conditions.head,
            world.fit,
            world.select,
            world.measured,
            select,
            before,
            world.conditions.threshold,
        )
        after = reference.decide(case)
        used = passes()
    found = compared(world, "bmft", {}, before, after)
    # Its answers are decisions: a ranking it does not give.
    for part in ("after", "change"):
        for figure in ("roc_auc", "worst_group_roc_auc"):
            found[part].pop(figure, None)
    where = "select" if world.test is None else "test"
    return {
        "accepted": True,
        "reason": f"needs: {reference.needs}",
        "harm": [],
        "evaluated_on": where,
        "n": len(before),
        **found,
        "moved": 0.0,
        "image_passes": used - len(world.measured),
        "leakage": {},
        "evaluations": {},
    }


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Inside, count the samples that go through the model, or through a copy made inside, forward.

    >>> layer = nn.Linear(2, 1)
    >>> with counted_passes(layer) as passes:
    ...     _ = layer(Tensor(5, 2))
    ...     passes()
    5
    """
    seen: list[int] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        seen.append(next(len(value) for value in [*args, *kwargs.values()] if isinstance(value, Tensor)))

    with model.register_forward_hook(hook, with_kwargs=True):
        yield lambda: sum(seen)


def compared(
    world: World, method: str, config: Mapping[str, Any], before: Predictions, after: Predictions
) -> dict[str, Any]:
    """``before``, ``after`` and ``change``: figure -> ``value`` and ``interval``.

    Intervals are of the cluster bootstrap, both models resampled alike.
    """
    settings, threshold = settings_for(method, config), world.conditions.threshold
    gap = gap_measure(settings, threshold)

    def resampled(predictions: Predictions) -> Any:
        rows = [None, *_resamples(predictions, RESAMPLES)]
        return np.array([_figures(predictions, gap, threshold, index) for index in rows])

    # The original's predictions are one object for all trials of a process.
    key = ("resampled", settings.objective, settings.combine, threshold)
    old = world.activations.once(key, before, lambda: resampled(before))
    new = old if after is before else resampled(after)
    return {"before": _summed(old), "after": _summed(new), "change": _summed(new - old)}


def _figures(
    predictions: Predictions, gap: Callable[[Predictions], float], threshold: float, index: Any
) -> list[float]:
    part = predictions if index is None else predictions.subset(index)
    report = audit_predictions(part, threshold=threshold, intervals=False)
    return [
        gap(part),
        GOALS["equalized_odds"].figure(report),
        report.overall["roc_auc"],
        GOALS["worst_group_auc"].figure(report),
        report.overall["balanced_accuracy"],
    ]


def _resamples(predictions: Predictions, count: int) -> Iterator[Any]:
    """Rows of each resample: whole patients drawn with replacement, the same on every call."""
    ids = np.arange(len(predictions)) if predictions.clusters is None else predictions.clusters
    inverse = np.unique(ids, return_inverse=True)[1]
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    random = np.random.default_rng(0)
    for _ in range(count):
        yield np.concatenate([members[k] for k in random.integers(0, len(members), len(members))])


def _summed(values: Any) -> dict[str, Any]:
    """The first row is the value, the others are its resamples."""
    found: dict[str, Any] = {}
    for name, value, resampled in zip(FIGURES, values[0], values[1:].T, strict=True):
        kept = resampled[np.isfinite(resampled)]
        ends = np.quantile(kept, (0.025, 0.975)).tolist() if len(kept) > RESAMPLES / 2 else None
        found[name] = {"value": float(value) if np.isfinite(value) else None, "interval": ends}
    return found


def _sites(world: World, trial: Trial, model: nn.Module) -> dict[str, Any]:
    found = {}
    for name, data in world.sites.items():
        before = world.activations.once("site", data, lambda data=data: predict(world.model, data, **world.measuring))  # type: ignore[misc]
        after = predict(model, data, **world.measuring)
        found[name] = compared(world, trial.method, trial.config, before, after) | {"n": len(data)}
    return found


def _predictions(report: AuditReport) -> Predictions:
    if report.predictions is None:
        raise TypeError("this audit was read from a file: it has no predictions to resample")
    return report.predictions


def known_methods() -> tuple[str, ...]:
    """Every method, then the references that are installed."""
    # Plain fine-tuning of everything is rw already: without a choice of weights, selective is no method of its own.
    return tuple(name for name in (*METHODS, *REFERENCES) if name != "selective" and name not in not_installed())


def not_installed() -> dict[str, str]:
    """Method or reference -> what it needs that is not installed."""
    methods = {name: f"needs pip install 'bmft[{name}]'" for name in METHODS if name not in installed_methods()}
    return methods | missing_references()
