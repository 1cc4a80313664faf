"""What a method works on: the model, the data, the two training steps, and who judges."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from bmft.auditing import Predictions
from bmft.compute import AutocastMaker, Room, Share
from bmft.data import GroupedData
from bmft.errors import ConfigError, NonFiniteError
from bmft.inference import predict
from bmft.masks import WeightMask
from bmft.methods.course import Course
from bmft.methods.losses import head_losses, step_of
from bmft.methods.operating_point import OperatingPoint
from bmft.methods.stages import in_a_stage
from bmft.models import (
    Activations,
    Head,
    Tail,
    as_head_of,
    forward_with_others,
    penultimate_features,
    reading_of,
    reset_head,
    state_hash,
    tail_above,
    tensors_of,
    upper,
)
from bmft.settings import Settings
from bmft.training import Conditions, EpochKeeper, Journal, Loss, SelectedWeights, Selection, Step, logits_of, tune

AfterEpoch = Callable[[int, float], bool]


@dataclass
class Run:
    """What a method works on. `model` is a copy that it changes; everything else is as given."""

    model: nn.Module
    head: Head
    fit: GroupedData
    select: GroupedData
    settings: Settings
    conditions: Conditions
    selection: Selection
    generator: torch.Generator
    autocast: Callable[[], AbstractContextManager[Any]]
    course: Course
    activations: Activations = field(default_factory=Activations)
    room: Room = field(default_factory=Room)
    journal: Journal | None = None
    tail: Tail | None = None
    start: torch.Tensor | None = None  # the original's logits of the fit set, where step 2 is held to them
    point: OperatingPoint | None = None
    first: torch.Tensor | None = None  # the original's logits of the viewed fit set, where they are known
    preferred: int = 0
    entering_head: dict[int, tuple[GroupedData, GroupedData]] = field(default_factory=dict)  # at candidates of step 1
    importance: dict[str, float] = field(default_factory=dict)  # parameter -> its weights' sum, for the gap
    upto: int = 0  # step 1 goes on to this one of its strengths and looks at no other; 0: through all of them

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def body(self) -> list[str]:
        """The extractor's parameters that may move: of the upper blocks, or those that the name patterns name."""
        names = upper(self.model, self.head, 1.0 if self.settings.tune else self.settings.depth)
        mask = WeightMask.by_name(self.model, *self.settings.tune)
        mask = mask.excluding(*self.settings.freeze) if self.settings.freeze else mask
        return [name for name in names if bool(mask.tensors[name].any())]

    def head_mask(self) -> WeightMask:
        """A mask of the head: of all of it, or of the one output that is meant."""
        nothing = ~WeightMask.by_name(self.model)
        return WeightMask({**nothing.tensors, **self.head.rows(self.model)})

    def movable(self) -> WeightMask:
        """A mask of every weight but those of other outputs."""
        return ~WeightMask.by_name(self.model, *self.head.parameters) | self.head_mask()

    def body_mask(self) -> WeightMask:
        """A mask of the whole extractor, as far as it may move."""
        if not self.body:
            return ~WeightMask.by_name(self.model)
        return WeightMask.by_name(self.model, *self.body)

    def tune_extractor(self, mask: WeightMask, loss: Loss, step: Step) -> None:
        """Step 1: move the weights of `mask`; the select set is looked at after every epoch."""
        with self.course.timed("extractor"):
            fit, select = self._entering(mask)
            first = self.first_logits(self.tail, fit) if self.stays_below else None
            self.first = None
            if step.strengths:
                look = self._after_strengths(step)
            else:
                look = self._after_epoch(1, self.tail or self.model, select, step)

            def train(keeper: EpochKeeper | None) -> None:
                options = {"tail": self.tail, "autocast": self.autocast, "keeper": keeper, "logits": first}
                self._tune(self.model, fit, loss, mask, step, after_epoch=look, **options)

            self._stage(train)

    def tune_beside(
        self, network: nn.Module, mask: WeightMask, merge: Callable[[], None], loss: Loss, step: Step
    ) -> None:
        """Train a network that stands for the model; after every epoch `merge` puts what it learned into the model."""
        with self.course.timed("extractor"):
            look = self._after_epoch(1, self.model, self.select, step)

            def merged(epoch: int, value: float) -> bool:
                merge()
                return look(epoch, value)

            options = {"autocast": self.autocast, "after_epoch": merged}
            self._stage(lambda _: self._tune(network, self.fit, loss, mask, step, **options))

    def _tune(self, *what: Any, **options: Any) -> None:
        """`bmft.training.tune` with what every step of this run has in common; what was found before it is kept."""
        many, remarks = self.conditions.multi_label, self.selection.remarks
        try:
            tune(*what, generator=self.generator, multi_label=many, room=self.room, remark=remarks.append, **options)
        except NonFiniteError as error:
            if len(self.selection.history) == 1:
                raise
            remarks.append(f"a training was given up: {error}")

    def _stage(self, train: Callable[[EpochKeeper | None], None]) -> None:
        in_a_stage(train, self.model, self.generator, self.selection, self.journal)

    def _entering(self, mask: WeightMask) -> tuple[GroupedData, GroupedData]:
        """The sets for step 1: the activations that enter its lowest layer, where all below it stays as it is."""
        if not self.stays_below:
            return self.viewed, self.select
        tail, fit = self.above([name for name, chosen in mask.tensors.items() if bool(chosen.any())], self.viewed)
        if tail is None:
            return self.viewed, self.select
        select = self.room(lambda size: self.activations.of(tail, self.select, batch_size=size))
        if select is None:
            return self.viewed, self.select
        self.tail = tail
        return fit, select

    @property
    def stays_below(self) -> bool:
        """Whether step 1 sees the same images in every epoch, so that what lies below its lowest layer stays."""
        return not self.settings.augment and self.settings.norm_stats == "frozen"

    @cached_property
    def viewed(self) -> GroupedData:
        """The fit set as step 1 sees it: with the settings' views of every image."""
        return self.fit.with_views(self.settings.views) if self.settings.views else self.fit

    def above(self, names: Sequence[str], given: GroupedData) -> tuple[Tail | None, GroupedData]:
        """The part of the network above all that stays when only these move, and the data as they enter that part.

        None, and the data as they are, where there is no such part or no room for what enters.
        """
        sample = self.fit.take(slice(0, 4)).to(self.device).inputs
        tail = tail_above(self.model, names, sample, autocast=self.autocast)
        if tail is None:
            return None, given
        keep = self.activations.of
        kept = self.room(lambda size: keep(tail, given, autocast=self.autocast, batch_size=size))
        return (None, given) if kept is None else (tail, kept)

    def first_logits(self, tail: Tail | None, data: GroupedData) -> torch.Tensor:
        """The original's logits of the viewed fit set, as it enters the `tail`; step 1 begins with them, too."""
        if self.first is None:
            with self.autocast():
                half = torch.is_autocast_enabled(self.device.type)
            weights, reading = state_hash(tensors_of(self.model)), repr(reading_of(self.model).described())
            args = (self.device, self.autocast)

            def make() -> torch.Tensor:
                return self.room(lambda size: logits_of(tail or self.model, data, size, *args))

            found = self.activations.once(("logits", weights, reading, half, self.settings.views), self.fit, make)
            # A copy: the training writes the latest logits over it.
            self.first = found.clone()
        return self.first

    def tune_head(self, reset: Callable[[], None]) -> None:
        """Step 2: the head alone, from `reset`, once per loss; on cached features where its output is the logits."""
        end = self.course.expect(step_of(self.settings, 1).epochs * len(head_losses(self.settings)))
        with self.course.timed("head"):
            self._stage(lambda _: self._train_heads(reset))
        self.course.begun = end  # also where a journal had it

    def _train_heads(self, reset: Callable[[], None]) -> None:
        step = step_of(self.settings, 1)
        found = self.entering_head.pop(self.preferred, None) or self._entering_head()
        self.entering_head.clear()
        if found is None:
            model, mask, fit, select = self.model, self.head_mask(), self.fit, self.select
        else:
            model, (fit, select) = self.model.get_submodule(self.head.name), found
            inside = f"{self.head.name}." if self.head.name else ""
            rows = self.head.rows(self.model)
            mask = WeightMask({name: rows[inside + name] for name, _ in model.named_parameters()})
        strength = self.selection.history[self.preferred].strength
        with as_head_of(self.model, model):
            for loss in head_losses(self.settings):
                reset()
                look = self._after_epoch(2, model, select, step, strength)
                look = self._at_the_operating_point(look, model, fit, both=strength is None)
                if strength is not None:
                    look = partial(_last_of, step.epochs, look)
                self._tune(model, fit, loss, mask, step, after_epoch=look, start=self.start)

    def _at_the_operating_point(
        self, look: AfterEpoch, model: nn.Module, fit: GroupedData, *, both: bool
    ) -> AfterEpoch:
        """`look` at the head held to the original's operating point; with `both` as it was trained, too."""
        head = model if model not in (self.model, self.tail) else self.model.get_submodule(self.head.name)
        bias, point = getattr(head, "bias", None), self.point
        if point is None or not isinstance(bias, nn.Parameter):
            return look

        def shifted(epoch: int, loss: float) -> bool:
            with point.held(bias, self.head.output, self.own(self._logits(model, fit))):
                stop = look(epoch, loss)
            return look(epoch, loss) if both else stop

        return shifted

    @torch.no_grad()
    def _logits(self, model: nn.Module, data: GroupedData) -> torch.Tensor:
        share = Share(len(data))

        def work(size: int) -> torch.Tensor:
            batches = share.of(data).batches(size)
            return torch.cat([forward_with_others(model, batch.to(self.device).inputs).float() for batch in batches])

        return share.gather(self.room(work))

    def own(self, logits: torch.Tensor) -> torch.Tensor:
        """Those of the output that is meant, where it is one of many."""
        return logits if reading_of(self.model).output is None else logits[:, :1]

    def measure_operating_point(self) -> None:
        """Note what the model as it is says of the fit set, and how many of it it calls positive.

        In step 1's precision, as all that is held to it, where that is known already.
        """
        known = None if self.first is None else self.first[: len(self.fit)].clone()
        self.start = self._logits(self.model, self.fit) if known is None else known
        many = self.conditions.multi_label
        self.point = OperatingPoint.of(self.own(self.start), self.conditions.threshold, multi_label=many)

    def _as_trained(self) -> GroupedData | None:
        """The fit images as they enter step 1, in its precision; None where the whole network trains."""
        tail = self.tail
        if tail is None:
            return None
        kept = self.room(lambda size: self.activations.of(tail, self.viewed, autocast=self.autocast, batch_size=size))
        return None if kept is None else kept.subset(torch.arange(len(self.fit)))

    def _precise(self, data: GroupedData) -> GroupedData:
        """What the tail takes for this set in full precision; the set itself without one."""
        tail = self.tail
        if tail is None:
            return data
        kept = self.room(lambda size: self.activations.of(tail, data, batch_size=size))
        if kept is None:
            self.tail = None
        return data if kept is None else kept

    def along(self, moved: SelectedWeights) -> Iterator[float]:
        """Change the model: its weights to each point of the settings' path from `moved`'s to where they are now."""
        start, end = moved.vector.detach(), moved.values()
        for fraction in self.settings.path:
            # A weight that did not move stays as it is to the last bit: interpolating -0.0 would give 0.0.
            moved.write_back(torch.where(start == end, start, torch.lerp(start, end, fraction)))
            yield fraction

    def features(self, data: GroupedData) -> GroupedData:
        """The inputs of a linear head for every sample, computed once.

        Raises:
            ConfigError: the head is not one linear layer whose output is the logits.
        """
        with self.course.timed("features"):
            found = self._features(data, None)
        if found is None or not isinstance(self.model.get_submodule(self.head.name), nn.Linear):
            raise ConfigError(
                f"this method writes the weights of one linear layer that makes the logits, and {self.head.name!r} is "
                "not one: take another --method, or name the layer (--head)"
            )
        return found

    def _entering_head(self) -> tuple[GroupedData, GroupedData] | None:
        """What enters the head for the fit and the select set; None where its output is not the logits.

        For the fit set, which trains a head and holds it to the operating point, in step 1's precision; for the select
        set in full, as those who use the model have it.
        """
        trained = self._as_trained()
        rough = nullcontext if trained is None else self.autocast
        fit = self._features(self.fit if trained is None else trained, self.tail, rough)
        select = self._features(self._precise(self.select), self.tail)
        return None if fit is None or select is None else (fit, select)

    def _keep(self, place: int, *entering: GroupedData) -> None:
        """Keep what enters the head at a candidate for step 2, where it takes little room."""
        size = sum(len(part) * part.take(slice(0, 1)).inputs.nbytes for part in entering)
        if (len(self.entering_head) + 1) * size <= self.activations.limit:
            self.entering_head[place] = entering[0], entering[1]

    def _features(
        self, data: GroupedData, tail: Tail | None, autocast: AutocastMaker = nullcontext
    ) -> GroupedData | None:
        def work(size: int) -> GroupedData | None:
            return penultimate_features(self.model, self.head, data, tail=tail, autocast=autocast, batch_size=size)

        return self.room(work)

    def predict(self, model: nn.Module, data: GroupedData) -> Predictions:
        """Probabilities of `data` by any model, where this run's is."""
        where, labels = str(self.device), self.conditions.multi_label
        return self.room(lambda size: predict(model, data, multi_label=labels, device=where, batch_size=size))

    def first_look(self, model: nn.Module, data: GroupedData) -> Predictions:
        """`predict` by a model that has the original weights: once for all runs that share `activations`."""
        weights = tensors_of(model)
        layout = tuple(tensor.stride() for tensor in weights.values())
        reading = repr(reading_of(model).described())
        key = (state_hash(weights), layout, reading, self.conditions.multi_label, self.device)
        return self.activations.once(key, data, lambda: self.predict(model, data))

    def try_out(self, number: int, of: int, *, predictions: Predictions | None = None) -> None:
        """Let the select set judge the model as it is, as candidate `number` of a method without epochs."""
        with self.course.timed("selection"):
            found = self.predict(self.model, self.select) if predictions is None else predictions
            entry = self.selection.consider(found, step=1, epoch=number, loss=math.nan)
        self.course.expect(of)
        self.course.tell("candidates", number, of, entry, self.selection.kept)

    def _after_strengths(self, step: Step) -> AfterEpoch:
        """Look at the last epoch of each strength, with the head as it is; what enters that is kept for step 2.

        After two strengths that do harm there is no third, where this run's own select set is who chooses.
        """
        pairs = zip(step.strengths, (*step.strengths[1:], None), strict=True)
        ends = [epoch for epoch, (own, later) in enumerate(pairs, 1) if own != later]
        ends = ends[self.upto - 1 : self.upto] if self.upto else ends

        def look(epoch: int, loss: float) -> bool:
            if epoch not in ends:
                self.course.tell("step 1", epoch, step.epochs, None, self.selection.kept)
                return False
            place, found = len(self.selection.history), self._entering_head()
            if found is None:
                fit, select = self._precise(self.fit), self._precise(self.select)
                head, runs = self.model, self.tail or self.model
            else:
                (fit, select), head = found, self.model.get_submodule(self.head.name)
                runs = head
                self._keep(place, *found)
            with as_head_of(self.model, head):
                judged = self._after_epoch(1, runs, select, step, step.strengths[epoch - 1])
                stop = self._at_the_operating_point(judged, runs, fit, both=False)(epoch, loss)
            with self.course.timed("selection"):
                return stop or bool(self.upto) or self.selection.too_far()

        return look

    def prefer(self) -> None:
        """Change the model: to the candidate of step 1 that would be chosen if this were the end."""
        with self.course.timed("selection"):
            self.preferred = self.selection.prefer()

    def _after_epoch(
        self, number: int, model: nn.Module, select: GroupedData, step: Step, strength: float | None = None
    ) -> AfterEpoch:
        first, before = len(self.selection.history), self.course.begun
        if strength is None:
            self.course.begun = self.course.expect(step.epochs)

        def look(epoch: int, loss: float) -> bool:
            with self.course.timed("selection"):
                predictions = self.predict(model, select)
                entry = self.selection.consider(predictions, step=number, epoch=epoch, loss=loss, strength=strength)
            self.course.tell(f"step {number}", epoch, step.epochs, entry, self.selection.kept, before)
            patience = self.settings.patience if number == 1 and strength is None else 0
            ranks = [self.selection.rank(entry) for entry in self.selection.history[first:]]
            return bool(patience) and no_better_for(patience, ranks)

        return look


def _last_of(epochs: int, look: AfterEpoch, epoch: int, loss: float) -> bool:
    return look(epoch, loss) if epoch == epochs else False


def no_better_for(patience: int, ranks: Sequence[float]) -> bool:
    """Whether none of the last epochs is as good as an earlier one; those that do harm rank infinitely bad.

    The first steps often take the gap and the AUC down together, and the AUC comes back later.

    >>> ranks = [0.1, 0.2, 0.3]
    >>> no_better_for(1, ranks), no_better_for(1, ranks[::-1]), no_better_for(2, [math.inf, 0.2, 0.3])
    (True, False, False)
    """
    return min(ranks[-patience:]) > min(ranks)


def from_original_head(run: Run, where: Mapping[str, torch.Tensor] | None = None) -> Callable[[], None]:
    """What puts the head back to its original weights and then resets them as the settings say, for every try alike.

    To be called before anything moves: it also notes the original's operating point.

    With ``reset = "partial"`` only the weights that `where` marks become zero.
    """
    if run.settings.reset == "partial" and where is None:
        raise ConfigError("reset = 'partial' needs a soft mask of the head, which only swift has: use zero or keep")
    if run.settings.operating_point == "kept":
        run.measure_operating_point()
    original = {name: run.model.get_parameter(name).detach().clone() for name in run.head.parameters}

    def reset() -> None:
        with torch.no_grad():
            for name, value in original.items():
                run.model.get_parameter(name).copy_(value)
        if run.settings.reset != "keep":
            reset_head(run.model, run.head, where=where if run.settings.reset == "partial" else None)

    return reset
