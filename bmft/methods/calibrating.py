"""Probabilities that mean what they say after a debiasing: a temperature and a shift, folded into a linear head."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, log, log1p, log2
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bmft.auditing import (
    AuditReport,
    Predictions,
    Rescaling,
    audit_predictions,
    fitted_rescaling,
    log_loss,
    rescaled_left_out,
    violations,
)
from bmft.data import GroupedData
from bmft.errors import ConfigError, DataError
from bmft.methods.linear_head import linear_head
from bmft.methods.run import Run
from bmft.models import as_head_of, penultimate_features, reading_of
from bmft.training import Conditions

Floats = NDArray[np.float64]
_DIGITS = 1e-5  # of a logit
_NEAR = tuple(sign * step / 512 for step in range(7) for sign in ((1, -1) if step else (1,)))
_FIGURE = "expected_calibration_error"
_OF_PROBABILITIES = (_FIGURE, "calibration_error_difference", "brier_score")


@dataclass(frozen=True)
class Calibration:
    """The calibration that was folded into the head: logits are divided by `temperature`, then `shift` is added.

    Attributes:
        temperature: more than 1 makes probabilities less certain.
        shift: of the positive class's logit; 0 for several classes, whose decisions a shift would move.
        threshold: where the model decides now; None for several classes.
        threshold_before: where it decided, and decides the same as now.
        positive: the class whose probability is cut there.
        rows: how many it was fitted to.
        folds: how many parts of these were left out once each.
        log_loss: of the rows left out, ``before`` and ``after``.
        reordered: neighbours in the ranking that tie, part or change places by rounding; 0 where that could be had.
        groups: attribute -> group -> calibration error of the rows left out, ``before`` and ``after``.
    """

    temperature: float
    shift: float
    threshold: float | None
    threshold_before: float | None
    positive: str
    rows: int
    folds: int
    log_loss: Mapping[str, float]
    reordered: int
    groups: Mapping[str, Mapping[str, Mapping[str, float]]]

    @property
    def brief(self) -> dict[str, float]:
        """What a patch says of it."""
        return {"temperature": self.temperature, "shift": self.shift}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_calibrates(run: Run) -> None:
    """Raise unless a temperature and a shift can be folded into the head.

    Raises:
        ConfigError: there are several labels, or the head is not one linear layer with a bias of its own.
    """
    if run.select.task == "multilabel":
        raise ConfigError(
            "--calibrate moves the threshold, which several labels share: leave --calibrate out, or debias one label "
            "at a time (--output)"
        )
    layer, name = run.model.get_submodule(run.head.name), run.head.name
    parts = [getattr(layer, part, None) for part in ("weight", "bias")]
    every = [parameter for _, parameter in run.model.named_parameters(remove_duplicate=False)]
    if not isinstance(layer, nn.Linear):
        problem = f"{name!r} is a {type(layer).__name__}"
    elif parts[1] is None:
        problem = f"{name!r} has no bias"
    elif len(run.head.parameters) != 2 or not all(isinstance(part, nn.Parameter) for part in parts):
        problem = f"the logits are made by {', '.join(run.head.parameters)}"
    elif any(sum(part is one for one in every) > 1 for part in parts):
        problem = f"the weights of {name!r} are another layer's, too"
    elif penultimate_features(run.model, run.head, run.fit.subset(torch.arange(2))) is None:
        problem = f"the logits are not what {name!r} gives"
    else:
        return
    raise ConfigError(
        f"--calibrate folds a temperature and a shift into a head of one linear layer with a bias, and {problem}: "
        "leave --calibrate out, or name the layer that makes the logits (--head)"
    )


def fold_in(
    run: Run, model: nn.Module, test: GroupedData | None, out_of_fold: Predictions | None = None
) -> "Calibrated | None":
    """Change `model`, the run's result: fold into its head what makes its probabilities mean what they say.

    1. Fit a temperature and a shift, to classes a temperature alone, to the rows that chose; and without each fifth of
       their patients, which gives the figures of that fifth. The rows that trained would say too little: the model is
       surer of them than of new ones.
    2. Move the threshold along, to a number that can be typed; the shift takes up the rest.
    3. Take a temperature nearby where rounding in the head would tie or part two rows.

    Nothing changes where that does not help on the rows left out, or breaks a limit of harm; a remark says so.

    Args:
        run: whose choice is made; its own model changes, too.
        model: in its own precision.
        test: rows whose ranking and decisions are to stay, too; none of their labels is looked at.
        out_of_fold: what models of folds, which chose, say of the fit rows; the fit is then to that.
    """
    run.model.load_state_dict(model.state_dict())
    layer, own = (linear_head(run, network) for network in (run.model, model))
    chose = run.select if out_of_fold is None else None
    sets = [data for data in (run.fit, chose, test) if data is not None]
    features = [run.features(data) for data in sets]
    # One class against the others: with their rows held, only a shift keeps the ranking.
    tempered = not reading_of(run.model).one_vs_rest
    try:
        with as_head_of(run.model, layer):
            before = [run.predict(layer, data) for data in features]
            known = before[1] if out_of_fold is None else out_of_fold
            left_out, folds = _left_out(known, tempered, run.conditions.seed)
            losses = {"before": log_loss(known), "after": log_loss(left_out)}
            _check_help(run, losses, known, left_out)
            fold = _Fold(run, layer, own.weight.dtype, features, before)
            folded = fold.into(fitted_rescaling(known, tempered=tempered), tempered)
    except _NoHelp as reason:
        run.selection.remarks.append(f"--calibrate changed nothing: {reason}")
        return None
    with torch.no_grad():
        own.weight.copy_(layer.weight)
        own.bias.copy_(layer.bias)
    return Calibrated(
        folded.rescaling,
        Calibration(
            temperature=1 / folded.rescaling.slope,
            shift=folded.rescaling.shift,
            threshold=folded.threshold,
            threshold_before=None if folded.threshold is None else run.conditions.threshold,
            positive="" if folded.threshold is None else known.columns[0],
            rows=len(known),
            folds=folds,
            log_loss=losses,
            reordered=folded.reordered,
            groups=_errors(known, left_out),
        ),
        left_out,
    )


@dataclass(frozen=True)
class Calibrated:
    """What was folded, and the predictions of the rows that chose, each probability by a fit without its row."""

    rescaling: Rescaling
    calibration: Calibration
    select: Predictions

    def conditions(self, before: Conditions) -> Conditions:
        """With the threshold at which the model decides now."""
        threshold = self.calibration.threshold
        return before if threshold is None else before.but(threshold=threshold)

    def left_out(self, after: AuditReport) -> AuditReport:
        """The audit of the rows that chose with what is known of the probabilities from fits without them."""
        level, whole = after.level, bool(after.intervals["overall"])
        found = audit_predictions(self.select, threshold=after.threshold, level=level, intervals=whole)
        return replace(
            after,
            overall=_with(after.overall, found.overall),
            by_group=_with(after.by_group, found.by_group),
            gaps=_with(after.gaps, found.gaps),
            intervals=_with(after.intervals, found.intervals),
        )


def _with(figures: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The figures, those that are of probabilities from the others."""
    return {
        name: others[name]
        if name in _OF_PROBABILITIES
        else _with(value, others[name])
        if isinstance(value, Mapping)
        else value
        for name, value in figures.items()
    }


class _NoHelp(Exception):
    """Why the head had better stay as it is."""


def _left_out(known: Predictions, tempered: bool, seed: int) -> tuple[Predictions, int]:
    try:
        return rescaled_left_out(known, tempered=tempered, seed=seed)
    except DataError as error:
        raise _NoHelp(str(error)) from error


def _check_help(run: Run, losses: Mapping[str, float], before: Predictions, after: Predictions) -> None:
    if not losses["after"] < losses["before"]:
        old, new = losses["before"], losses["after"]
        raise _NoHelp(f"on rows left out of it the log loss would go from {old:.4f} to {new:.4f}")
    first = run.selection.untouched or _audited(before)
    known = {one.what for one in violations(first, _audited(before), run.conditions.limits)}
    for one in violations(first, _audited(after), run.conditions.limits):
        if one.what.startswith("calibration error") and one.what not in known:
            raise _NoHelp(f"it would do harm: {one}")


def _audited(predictions: Predictions) -> AuditReport:
    return audit_predictions(predictions, intervals=False)


def _errors(before: Predictions, after: Predictions) -> dict[str, dict[str, dict[str, float]]]:
    sides = {"before": _audited(before).by_group, "after": _audited(after).by_group}
    return {
        attribute: {group: {side: sides[side][attribute][group][_FIGURE] for side in sides} for group in groups}
        for attribute, groups in sides["before"].items()
    }


@dataclass(frozen=True)
class _Folded:
    """What the head holds now, where it decides the same, and how many neighbours rounding moved."""

    rescaling: Rescaling
    threshold: float | None
    reordered: int


@dataclass(frozen=True)
class _Fold:
    """A linear head, what enters it, and what it said before."""

    run: Run
    layer: nn.Linear
    dtype: torch.dtype  # of the file's weights
    features: Sequence[GroupedData]
    before: Sequence[Predictions]

    def into(self, wanted: Rescaling, tempered: bool) -> _Folded:
        """Change the layer; the slope, or one nearby, with which the fewest rows change places.

        Raises:
            _NoHelp: with none of them is there a threshold that decides the same.
        """
        start = [part.detach().clone() for part in (self.layer.weight, self.layer.bias)]
        best: _Folded | None = None
        for slope in self._slopes(wanted.slope) if tempered else (1.0,):
            found = self._tried(replace(wanted, slope=slope), *start)
            if found is not None and (best is None or found.reordered < best.reordered):
                best = found
            if best is not None and not best.reordered:
                break
        if best is None:
            raise _NoHelp("rounding in the head leaves no threshold that decides the same")
        self._write(best.rescaling, *start)
        return best

    @staticmethod
    def _slopes(slope: float) -> Iterator[float]:
        """The slope, some nearby, and the nearest one that rounds nothing."""
        yield from (slope * (1 + step) for step in _NEAR)
        yield 2.0 ** round(log2(slope))

    def _tried(self, wanted: Rescaling, weight: Tensor, bias: Tensor) -> _Folded | None:
        classes = self.run.select.task == "multiclass"
        at = self.run.conditions.threshold
        rescaling = wanted if classes else wanted.rounded(at)
        rescaling = self._write(rescaling, weight, bias)
        after = [self.run.predict(self.layer, data) for data in self.features]
        pairs = list(zip(self.before, after, strict=True))
        if classes:
            # A shift per class would move the largest score, which decides.
            same = all((old.scores.argmax(1) == new.scores.argmax(1)).all() for old, new in pairs)
            return _Folded(rescaling, None, 0) if same else None
        called = np.concatenate([old.decisions(at)[:, 0] == 1 for old in self.before])
        threshold = _between(np.concatenate([new.scores[:, 0] for new in after]), called, rescaling.threshold(at))
        if threshold is None:
            return None
        return _Folded(rescaling, threshold, sum(_reordered(old.scores[:, 0], new.scores[:, 0]) for old, new in pairs))

    @torch.no_grad()
    def _write(self, rescaling: Rescaling, weight: Tensor, bias: Tensor) -> Rescaling:
        """Change the layer; what it now does to its logits, as far as the file's precision can hold it."""
        place = self.run.head.output
        rows = slice(None) if place is None else slice(place, place + 1)
        for parameter, old in ((self.layer.weight, weight), (self.layer.bias, bias)):
            parameter.copy_(old)
            parameter[rows] = self._kept(old[rows].double() * rescaling.slope)
        # Of two outputs the second's: the first is its reference.
        last = -1 if place is None else place
        self.layer.bias[last] = self._kept(bias[last].double() * rescaling.slope + rescaling.shift)
        moved = self.layer.bias.double() - bias.double() * rescaling.slope
        if self.run.select.task == "multiclass":
            return rescaling
        first = moved[0] if place is None and len(moved) == 2 else 0.0
        return replace(rescaling, shift=float(moved[last] - first))

    def _kept(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).to(self.layer.weight.dtype)


def _between(scores: Floats, called: NDArray[np.bool_], wanted: float) -> float | None:
    """A short number near `wanted` that has those that are called at or above it, and the rest below; None without one.

    >>> _between(np.array([0.1, 0.3, 0.6]), np.array([False, False, True]), 0.51239999999), _between(
    ...     np.array([0.1, 0.3]), np.array([True, False]), 0.2
    ... )
    (0.5124, None)
    """
    low, high = scores[~called].max(initial=0.0), scores[called].min(initial=1.0)
    inside = low < wanted <= high
    wanted, near = (wanted, _DIGITS) if inside else ((low + high) / 2, np.inf)
    for digits in range(1, 18):
        short = float(f"{wanted:.{digits}g}")
        if low < short <= high and abs(_logit(short) - _logit(wanted)) <= near:
            return short
    return None


def _logit(probability: float) -> float:
    return log(probability) - log1p(-probability) if 0 < probability < 1 else inf


def _reordered(before: Floats, after: Floats) -> int:
    """How many neighbours of a ranking tie, part or change places in another.

    >>> _reordered(np.array([0.1, 0.2, 0.2, 0.9]), np.array([0.3, 0.4, 0.4, 0.4]))
    1
    """
    order = np.lexsort((after, before))
    return int((np.sign(np.diff(before[order])) != np.sign(np.diff(after[order]))).sum())
