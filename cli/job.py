"""The model and the rows that a command's options name, checked against each other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from bmft._common import Assumption, folded
from bmft.auditing import pick_threshold
from bmft.checkpoints import Checkpoint, assembled, class_names, output_names, own_threshold, read_checkpoint
from bmft.data import GroupedData, Preprocessing, apart, load_manifest, shared_with, split_names
from bmft.errors import ConfigError, DataError
from bmft.inference import predict
from bmft.methods import folds_of
from bmft.models import find_head, listed_outputs, read_as, reading_of, settle, unlike_training
from bmft.report import OUT_OF_FOLD
from bmft.tables import ROLES, InputColumn, no_split, splits_by_role
from bmft.training import Conditions

from .console import settings
from .options import Common, first_line, import_from_here, imported

# Options that `load_manifest` takes by the same names.
_AS_THEY_ARE = (
    "sensitive",
    "positive",
    "multi_label",
    "images",
    "allow_shared_rows",
    "cluster",
    "unknown",
    "uncertain",
    "blank",
    "suffix",
    "image_size",
    "normalize",
    "resize",
    "crop_fraction",
    "interpolation",
    "bits",
    "on_bad_image",
    "workers",
)
CUT = (0.5, 0.5)  # fit and select, where no column says which row is which


def open_network(
    path: str, *, entry: str | None, arch: str | None, num_classes: int | None, trust_pickle: bool
) -> tuple[Checkpoint, nn.Module]:
    """Read a checkpoint, with all that was inferred of it, and build its network, in eval mode on the CPU."""
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle, entry=entry)
    import_from_here()
    model, assumed = assembled(checkpoint, arch=arch, num_classes=num_classes)
    threshold, told = own_threshold(model, checkpoint)
    read_as(model, threshold=threshold)
    return replace(checkpoint, assumed=(*checkpoint.assumed, *assumed, *told)), model


def load_model(common: Common, path: str) -> tuple[Checkpoint, nn.Module]:
    """Read a checkpoint and build its model, in eval mode on the CPU."""
    how = {name: getattr(common, name) for name in ("entry", "arch", "num_classes", "trust_pickle")}
    checkpoint, model = open_network(path, **how)
    read_as(
        model,
        answer=common.answer,
        answer_is=common.answer_is,
        output=common.output,
        output_is=common.output_is,
        names=output_names(checkpoint),
    )
    return checkpoint.under(model.state_dict()), model


def load_job(common: Common, path: str) -> Job:
    """The checkpoint's model, and its rows once they are asked for."""
    return Job(common, *load_model(common, path))


@dataclass(frozen=True)
class Job:
    """A checkpoint, its model, and the labelled rows to measure or debias it on.

    Rows are loaded once, on first use: an audit never decodes the images that only a debiasing fits on. With `folds`
    there is no select set: the rows that fit and those that would choose are one set, which is cross-fitted.
    """

    common: Common
    checkpoint: Checkpoint
    model: nn.Module
    like: Checkpoint | None = None
    folds: int = 0

    @property
    def known_pixels(self) -> tuple[Preprocessing | None, str]:
        """How the checkpoint says that images were prepared; where it says nothing, how `like` does."""
        said = self.checkpoint.pixels
        if said[0] is not None or self.like is None:
            return said
        known, source = self.like.pixels
        return known, f"{source}, which is said of {self.like.path}"

    @property
    def recorded_inputs(self) -> tuple[InputColumn, ...]:
        """What the checkpoint, or `like`, records of the columns that its network takes."""
        return self.checkpoint.inputs or (() if self.like is None else self.like.inputs)

    @cached_property
    def data(self) -> GroupedData:
        """What audit and gate measure: the test split where there is a split column, else every row."""
        if self.splits:
            return self._part("test")
        data = self._load(None)
        every = f"every row is measured, {len(data):,}"
        return _told(data, Assumption("splits", every, self._without_splits, "--split-column"))

    @cached_property
    def splits(self) -> dict[str, tuple[str, ...]] | None:
        """Fit, select and test -> the splits that they are; None where no column says, or all of it is empty."""
        common = self.common
        if not common.split_column:
            return None
        names, asked = split_names(common.data, common.split_column), {role: getattr(common, role) for role in ROLES}
        return splits_by_role(names, asked) if names or any(asked.values()) else None

    @property
    def fit(self) -> GroupedData:
        """The rows that weights are moved on."""
        return self._sets["fit"]

    @property
    def select(self) -> GroupedData:
        """The rows that the result is chosen on."""
        return self._sets["select"]

    @property
    def test(self) -> GroupedData | None:
        """The rows that a debiasing is only measured on, if any are set apart."""
        return self._sets.get("test")

    @property
    def assumed(self) -> tuple[Assumption, ...]:
        """What was inferred about the model and the rows that a debiasing works on."""
        return self.fit.assumed

    @cached_property
    def threshold(self) -> float:
        """What ``--threshold`` says, or ``--threshold-from`` picks on the untouched model; else its own, or 0.5."""
        common = self.common
        if common.threshold_from is None:
            own, asked = reading_of(self.model).threshold, common.threshold
            if asked is not None and own not in (None, asked):
                differs = f"{self.checkpoint.path} decides at {own:.12g}, and differently at {asked:.12g}"
                settings().say(f"warning: {differs}, which --threshold says")
            return next((value for value in (asked, own) if value is not None), 0.5)
        if common.threshold is not None:
            raise ConfigError("--threshold and --threshold-from both say where to cut: give one of them")
        if self.splits:
            apart({"select": self._chooses, "test": self.data}, allow=common.allow_shared_rows)
        return pick_threshold(predict(self.model, self._chooses, **self.measuring))

    @property
    def measuring(self) -> dict[str, Any]:
        """How `bmft.audit` is to run the model."""
        common = self.common
        size: dict[str, Any] = {} if common.batch_size is None else {"batch_size": common.batch_size}
        return {"device": common.device, "multi_label": common.multi_label, **size}

    def conditions(self, asked: Mapping[str, Any]) -> Conditions:
        """What the options say, and these."""
        common = self.common
        return Conditions(
            threshold=self.threshold,
            head=common.head,
            multi_label=common.multi_label,
            seed=common.seed,
            device=common.device,
        ).but(**asked)

    @cached_property
    def _sets(self) -> dict[str, GroupedData]:
        """Fit, select and test, none of whose rows is in two of them."""
        common = self.common
        if self.folds and not self.splits:
            return {"fit": self._whole}
        if not self.splits:
            return apart({"fit": self._cut[0], "select": self._cut[1]})
        for one, other in itertools.combinations(ROLES, 2):
            twice = set(self.splits[one]) & set(self.splits[other])
            if twice and not common.allow_shared_rows:
                raise DataError(
                    f"--{one} and --{other} both name the split {min(twice)!r}: what is measured on one leaks from the "
                    "other. Name different splits, or give --allow-shared-rows."
                )
        if self.folds:
            parts = {"fit": self._whole}
        else:
            parts = {"fit": self._part("fit") if self.splits["select"] else self._cut[0], "select": self._chooses}
        if self.splits["test"]:
            parts["test"] = self.data
        return apart(parts, allow=common.allow_shared_rows)

    @cached_property
    def _whole(self) -> GroupedData:
        """The rows that are cross-fitted: every row, or those of the splits that fit and choose."""
        if not self.splits:
            data, why = self._load(None), self._without_splits
        elif self.splits["select"]:
            names = (*self.splits["fit"], *self.splits["select"])
            data, why = self._load(tuple(dict.fromkeys(names))), f"--folds, of the splits {', '.join(names)} together"
        else:
            data, why = self._part("fit"), f"no split of {self.common.split_column!r} is for choosing"
        return _told(data, folds_of(data, self.folds, seed=self.common.seed, why=why)[1])

    def measured(self, evaluated_on: str) -> GroupedData:
        """The rows that a report's results are of; out of fold they are those that fit."""
        if evaluated_on == OUT_OF_FOLD:
            return self.fit
        return self.select if evaluated_on == "select" else self.data

    @cached_property
    def _chooses(self) -> GroupedData:
        if self.folds:
            return self._whole
        return self._part("select") if self.splits and self.splits["select"] else self._cut[1]

    @cached_property
    def _cut(self) -> tuple[GroupedData, ...]:
        """Fit and select where no split is for choosing: halves of the fit split, or of every row."""
        common = self.common
        whole = self._part("fit") if self.splits else self._load(None)
        parts = whole.split(*CUT, seed=common.seed)
        people = f"every {common.cluster} in one of them" if common.cluster else "a patient may be in both"
        sizes = " and ".join(f"{len(part):,}" for part in parts)
        what = "the fit split's rows" if self.splits else "the rows"
        value = f"half of {what} are fit and half select, {sizes}, cut by seed {common.seed}, {people}"
        why = f"no split of {common.split_column!r} is for choosing" if self.splits else self._without_splits
        option = ", ".join(
            ["--select" if self.splits else "--split-column", *([] if common.cluster else ["--cluster"])]
        )
        cut = Assumption("splits", value, why, option, guess=common.cluster is None)
        return tuple(_told(part, cut) for part in parts)

    def _part(self, role: str) -> GroupedData:
        """The rows of the splits that ``--fit``, ``--select`` or ``--test`` names."""
        common, names = self.common, (self.splits or {}).get(role)
        if not names:
            column = str(common.split_column)
            raise no_split(role, column, split_names(common.data, column))
        data = self._load(names)
        if getattr(common, role):
            return data
        called = "" if names == (role,) else f", split {names[0]!r}"
        value = f"{role} is {len(data):,} rows{called}"
        return _told(data, Assumption("splits", value, "the splits' names", "--fit, --select, --test"))

    @property
    def _without_splits(self) -> str:
        column = self.common.split_column
        return f"the split column {column!r} is empty" if column else "there is no --split-column"

    def site(self, path: str) -> GroupedData:
        """Every row of another manifest, read with the same options; image paths are relative to that manifest.

        Raises:
            DataError: it has a label that the fit rows do not have.
        """
        common = self.common.but(data=path, images=None, split_column=None)
        data = replace(self, common=common)._load(None)
        known = self.fit.classes
        name = Path(path).name
        unlike = (replace(one, value=f"of {name}, {one.value}") for one in unlike_training(self.model, data))
        also = (*shared_with(self.fit, data, name), *unlike)
        settings().announce(also)
        data = _told(data, *also)
        if data.classes == known:
            return data
        if data.task == "multilabel" or not set(data.classes) <= set(known):
            raise DataError(
                f"{path}: the labels are {', '.join(data.classes)}, those of {self.common.data} are "
                f"{', '.join(known)}. Code both alike."
            )
        numbers = torch.tensor([known.index(name) for name in data.classes])
        return replace(data, targets=numbers[data.targets], classes=known, task=self.fit.task)

    def _load(self, split: tuple[str, ...] | None) -> GroupedData:
        common = self.common
        data = load_manifest(
            common.data,
            **{name: getattr(common, name) for name in _AS_THEY_ARE},
            target=common.label[0] if len(common.label) == 1 else common.label,
            classes=common.classes or class_names(self.checkpoint),
            image=common.path_column,
            inputs=common.input,
            recorded=self.recorded_inputs,
            split_column=common.split_column if self.splits else None,
            split=split,
            transform=None if common.transform is None else Transform(common.transform),
            known=self.known_pixels,
            channels=channels_of(self.model),
        )
        return self._fitted(_told(data, *self.checkpoint.assumed))

    def _fitted(self, data: GroupedData) -> GroupedData:
        """`data` with as many classes as the head has outputs, if the two can go together.

        Raises:
            DataError: they cannot.
        """
        data = _told(data, *settle(self.model, data, multi_label=self.common.multi_label))
        outputs = find_head(self.model, data.inputs(slice(0, 2)), name=self.common.head).num_outputs
        wanted = {1, 2} if data.task == "binary" else {len(data.classes)}
        if outputs in wanted or self.common.output is not None:
            return data
        labels = "labels" if data.task == "multilabel" else "classes"
        raise DataError(
            f"the head of {self.checkpoint.path} has {outputs} outputs, but "
            f"--label {' '.join(self.common.label)} has {len(data.classes)} {labels}. {self._ways_out(data, outputs)}"
        )

    def _ways_out(self, data: GroupedData, outputs: int) -> str:
        """What to say where the labels are not about all of the outputs."""
        every = "If rows of some classes are missing, name all of them in the order of the outputs (--classes A,B,...)."
        if data.task != "binary" or outputs == 1:
            return "Name the column the model was trained on." + (f" {every}" if data.task == "multiclass" else "")
        names = output_names(self.checkpoint).names
        names = names if len(names) == outputs else ()
        own = folded(self.common.label[0])
        name = next((name for name in names if folded(name) == own), "NAME|INDEX")
        return f"Say which output it is about (--output {name}): they are {listed_outputs(names, outputs)}. {every}"


def _told(data: GroupedData, *assumed: Assumption) -> GroupedData:
    return replace(data, assumed=(*data.assumed, *assumed))


class Transform:
    """What ``--transform package.module:callable`` names; what it raises on an image is a `DataError`."""

    def __init__(self, name: str) -> None:
        self.name = name
        # What a function has, so that it is called so in reports.
        self.__module__, _, self.__qualname__ = name.partition(":")
        self._function = imported("--transform", name)
        if not callable(self._function):
            kind = type(self._function).__name__
            raise ConfigError(f"--transform {name} is a {kind}: expected a function of a PIL image")

    def __reduce__(self) -> tuple[type[Transform], tuple[str]]:
        # Other processes import it themselves.
        return Transform, (self.name,)

    def __call__(self, image: Image.Image) -> Any:
        """What the function makes of an image."""
        try:
            return self._function(image)
        except Exception as error:  # a user's function can fail in any way
            raise DataError(f"--transform {self.name} raises {type(error).__name__}: {first_line(error)}") from error


def channels_of(model: nn.Module) -> int:
    """Channels of the images: what the first convolution takes; 3 where there is none."""
    layers = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    # A kernel's own shape tells the channels of one group only.
    channels = next((layer.in_channels for layer in layers), 0)
    channels = channels or next((p.shape[1] for p in model.parameters() if p.dim() == 4), 3)
    if channels not in (1, 3):
        raise DataError(f"the model takes images of {channels} channels; a manifest's have 1 or 3")
    return channels
