"""`GroupedData`: samples with targets and groups in memory, inputs on request; `GroupBatch`: some of them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bmft._common import MOST, Assumption, did_you_mean, html_table, short
from bmft.data.arrays import Inputs, map_tensors
from bmft.data.columns import WithColumns, images_in
from bmft.data.sampling import cells, split_cells, together
from bmft.data.sources import ArraySource, DecodedImages, Flipped, Source, StreamedImages
from bmft.data.transforms import Normalization
from bmft.errors import DataError, GroupError
from bmft.tables import ALONE, Attribute, InputColumn, Ints, Texts, cluster_names, product

Task = Literal["binary", "multiclass", "multilabel"]


class GroupBatch(NamedTuple):
    """A batch of n samples: the inputs of the model, the labels, and the groups the samples belong to."""

    inputs: Inputs
    """``(n, ...)``, or a dict or tuple of such tensors."""
    targets: Tensor
    """``(n,)`` int64 0/1 or class number; ``(n, labels)`` 0/1 for several labels, -1 where one is not known."""
    groups: Tensor
    """``(n, attributes)`` int64 group ids; -1 is unknown."""

    def to(self, device: torch.device | str) -> GroupBatch:
        """The same batch on `device`."""
        inputs = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), self.inputs)
        return GroupBatch(inputs, self.targets.to(device), self.groups.to(device))


@dataclass(frozen=True, eq=False, repr=False)
class GroupedData(Dataset[GroupBatch]):
    """Samples with targets and groups in memory and inputs on request. Made by `load_manifest`,
    `from_arrays` and `as_grouped`; a part made by `subset` or `split` shares the inputs' memory.

    Attributes:
        task: ``binary``, ``multiclass`` or ``multilabel``.
        targets: ``(n,)`` int64 0/1 or class number; ``(n, labels)`` 0/1 for several labels, -1 where one is not known.
        groups: ``(n, attributes)`` int64 group ids; -1 is unknown.
        attributes: name and group names of each column of `groups`.
        classes: class names in the order of their numbers; label names for several labels.
        clusters: ``(n,)`` int64 patient (or lesion, ...) ids, or None.
        rows: ``(n,)`` int64 row of the manifest each sample came from, counted from 0 after the header.
        skipped: unreadable images left out (``on_bad_image="skip"``).
        assumed: what was inferred about the classes, the pixels and the rows.
        outputs_reversed: a model's output for class 1 is its first of two (or its only one is for class 0).
        columns: what the model is given of the table beside the image, see `load_manifest`.
    """

    task: Task
    targets: Tensor
    groups: Tensor
    attributes: tuple[Attribute, ...]
    classes: tuple[str, ...]
    clusters: Tensor | None
    rows: Tensor
    skipped: int
    _source: Source
    _index: Tensor
    _table: pd.DataFrame | None = None
    assumed: tuple[Assumption, ...] = ()
    _patients: Texts | None = None
    outputs_reversed: bool = False
    columns: tuple[InputColumn, ...] = ()
    _elsewhere: dict[torch.device, GroupedData] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.targets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_elsewhere": {}}

    def __repr__(self) -> str:
        names = ", ".join(attribute.name for attribute in self.attributes)
        about = f"n={len(self)}, task={self.task!r}, classes={self.classes}, attributes=({names})"
        return short(f"GroupedData({about})", 240)

    def _repr_html_(self) -> str:
        one_hot = self.targets if self.targets.ndim == 2 else torch.eye(len(self.classes)).long()[self.targets]
        lines = [
            (attribute.name, group, int((ids == g).sum()), *one_hot[ids == g].sum(0).tolist())
            for attribute, ids in zip(self.attributes, self.groups.T, strict=True)
            for g, group in [*enumerate(attribute.groups), (-1, "unknown")]
        ]
        header = ("attribute", "group", "n", *self.classes[:MOST])
        return html_table(f"{len(self):,} samples, {self.task}", header, [line[: len(header)] for line in lines])

    def __getitem__(self, i: int) -> GroupBatch:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        i %= len(self)
        inputs = map_tensors(lambda tensor: tensor[0], self.inputs(slice(i, i + 1)))
        return GroupBatch(inputs, self.targets[i], self.groups[i])

    def inputs(self, index: Tensor | slice) -> Inputs:
        """The inputs of these samples: for images float32 ``(n, c, h, w)``, normalized; on the CPU but for `on`."""
        return self._source.take(self._index[index])

    @property
    def normalization(self) -> Normalization | None:
        """What is done last to images that bmft prepared itself; None for other inputs."""
        found: Normalization | None = getattr(images_in(self._source), "normalization", None)
        return found

    def take(self, index: Tensor | slice) -> GroupBatch:
        """These samples as one batch."""
        return GroupBatch(self.inputs(index), self.targets[index], self.groups[index])

    def batches(self, batch_size: int) -> Iterator[GroupBatch]:
        """Every sample once, in order; the last batch may be smaller."""
        return self.iterate(torch.split(torch.arange(len(self)), batch_size))

    def iterate(self, indices: Iterable[Tensor]) -> Iterator[GroupBatch]:
        """One batch per index tensor; files are decoded one batch ahead while a batch is used."""
        if not isinstance(images_in(self._source), StreamedImages):
            yield from map(self.take, indices)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead: deque[Future[GroupBatch]] = deque()
            for index in indices:
                ahead.append(pool.submit(self.take, index))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def subset(self, index: Tensor) -> GroupedData:
        """These samples (numbers or a boolean mask), in this order."""
        clusters = None if self.clusters is None else self.clusters[index]
        return replace(
            self,
            targets=self.targets[index],
            groups=self.groups[index],
            clusters=clusters,
            rows=self.rows[index],
            _index=self._index[index],
        )

    def on(self, device: torch.device, room: int) -> GroupedData:
        """The same samples with their pixels on `device`, where batches are then normalized and need not travel.

        As they are where they are no decoded images, not on the CPU any more, or more than `room` bytes. The same
        object each time.
        """
        images = images_in(self._source)
        if not isinstance(images, DecodedImages) or images.pixels.device.type != "cpu":
            return self
        if len(self) * images.pixels[0].nbytes > room:
            return self
        if device not in self._elsewhere:
            moved: Source = images.on(device, self._index)
            if isinstance(self._source, WithColumns):
                moved = self._source.moved(moved, self._index, device)
            self._elsewhere[device] = replace(self, _source=moved, _index=torch.arange(len(self)))
        return self._elsewhere[device]

    def with_views(self, flips: Sequence[str]) -> GroupedData:
        """The same samples, then all of them again with their images flipped, once for every subset of `flips`.

        Args:
            flips: names in `bmft.data.FLIPS`; two of them give four views.

        Raises:
            ConfigError: the inputs are no images ``(n, c, h, w)``, or not square where they are transposed.

        >>> from bmft.data import from_arrays
        >>> data = from_arrays(torch.arange(8.0).reshape(2, 1, 2, 2), [0, 1], [0, 1])
        >>> data.with_views(["hflip"]).take(slice(2, 3)).inputs
        tensor([[[[1., 0.],
                  [3., 2.]]]])
        """
        source = Flipped(self._source, self._index, tuple(flips))
        source.check()
        clusters = None if self.clusters is None else self.clusters.repeat(source.views)
        return replace(
            self,
            targets=torch.cat([self.targets] * source.views),
            groups=torch.cat([self.groups] * source.views),
            clusters=clusters,
            rows=self.rows.repeat(source.views),
            _source=source,
            _index=torch.arange(len(self) * source.views),
        )

    def with_inputs(self, inputs: Inputs) -> GroupedData:
        """The same samples with other inputs ``(n, ...)`` in their place, such as what a layer made of them."""
        return replace(self, _source=ArraySource(inputs), _index=torch.arange(len(self)))

    def split(self, *fractions: float, by: str | None = None, seed: int = 0) -> tuple[GroupedData, ...]:
        """Cut into disjoint parts, stratified by group x label; what the fractions leave is left out.

        Args:
            fractions: size of each part; at most 1 together.
            by: manifest column whose values (patients) stay whole; default: the `clusters`, if any. Samples that look
                the same to the model stay in one part too.
            seed: same seed, same parts.

        Raises:
            DataError: a part would be empty, or there is no column `by`.

        >>> from bmft.data.loading import from_arrays
        >>> data = from_arrays(torch.zeros(8, 3), [0, 1] * 4, [0, 0, 1, 1] * 2)
        >>> [len(part) for part in data.split(0.5, 0.25, 0.25)]
        [4, 2, 2]
        """
        whole = self if by is None else self._clustered_by(by)
        part = split_cells(cells(self.targets, self.groups), fractions, whole.kept_whole, seed)
        sizes = np.bincount(part[part >= 0], minlength=len(fractions))
        if not sizes.all():
            raise DataError(
                f"{len(self)} rows cut into {fractions} with every cluster whole would make parts of "
                f"{sizes.tolist()} rows. Give more data or fewer parts."
            )
        return tuple(whole.subset(torch.from_numpy(np.flatnonzero(part == k))) for k in range(len(sizes)))

    def folds(self, number: int, *, seed: int = 0) -> Tensor:
        """``(n,)`` int64, the fold of each row: parts of about equal size, cut as `split` does.

        Raises:
            DataError: a fold would be empty.

        >>> from bmft.data.loading import from_arrays
        >>> data = from_arrays(torch.zeros(8, 3), [0, 1] * 4, [0, 0, 1, 1] * 2)
        >>> data.folds(2).bincount().tolist()
        [4, 4]
        """
        part = split_cells(cells(self.targets, self.groups), [1 / number] * number, self.kept_whole, seed)
        if len(np.unique(part)) < number:
            raise DataError(
                f"{len(self)} rows cut into {number} folds with every cluster whole would leave a fold empty: give "
                "more data or fewer folds (--folds)"
            )
        return torch.from_numpy(part)

    @property
    def kept_whole(self) -> Ints | None:
        """``(n,)`` a number for what a split keeps in one part: patients, and rows that look the same to the model."""
        return together(None if self.clusters is None else self.clusters.numpy(), self.looks)

    def _clustered_by(self, by: str) -> GroupedData:
        if self._table is None:
            raise DataError(f"by={by!r}: this data has no manifest columns; give clusters to from_arrays.")
        names, ids = np.unique(cluster_names(self._table, by), return_inverse=True)
        return replace(self, clusters=torch.from_numpy(ids)[self.rows], _patients=names)

    def with_attributes(self, *names: str) -> GroupedData:
        """Keep these attributes, in this order; ``"a*b"`` makes the product of two that are present.

        Raises:
            GroupError: there is no such attribute; the message names the nearest.
        """
        picked = [self._attribute(name) for name in names]
        if not picked:
            raise GroupError("name at least one sensitive attribute.")
        ids = torch.from_numpy(np.stack([ids for _, ids in picked], axis=1))
        return replace(self, attributes=tuple(attribute for attribute, _ in picked), groups=ids)

    def _attribute(self, name: str) -> tuple[Attribute, Ints]:
        known = {attribute.name: place for place, attribute in enumerate(self.attributes)}
        factors = [name] if name in known else name.split("*")
        missing = [factor for factor in factors if factor not in known]
        if missing:
            hint = did_you_mean(missing[0], known)
            raise GroupError(f"no sensitive attribute {short(missing[0])!r} in this data. {hint}")
        attributes = [self.attributes[known[factor]] for factor in factors]
        ids = [self.groups[:, known[factor]].numpy() for factor in factors]
        return (attributes[0], ids[0]) if len(ids) == 1 else product(attributes, ids)

    @cached_property
    def patients(self) -> Texts | None:
        """``(n,)`` the name behind each cluster, "" where it has none; None without clusters."""
        if self.clusters is None or self._patients is None:
            return None
        names = ["" if name.startswith(ALONE) else name for name in self._patients]
        found: Texts = np.array(names, dtype=object)[self.clusters.numpy()]
        return found

    @cached_property
    def looks(self) -> npt.NDArray[np.uint64] | None:
        """``(n,)`` 64 bits of a digest of what the model is shown; None for arrays that tell most samples not apart."""
        source = images_in(self._source)
        own: npt.NDArray[np.uint64] | None = getattr(source, "looks", None)
        if own is not None:
            chosen: npt.NDArray[np.uint64] = own[self._index.numpy()]
            return chosen
        digests = self.row_digests if source is self._source else source.digests(self._index)
        found: npt.NDArray[np.uint64] = np.frombuffer(b"".join(digest[:8] for digest in digests), np.uint64)
        images = isinstance(source, DecodedImages)
        return found if images or 2 * len(np.unique(found)) > len(found) else None

    @cached_property
    def row_digests(self) -> tuple[bytes, ...]:
        """SHA-256 of each row's input (the file's bytes where there is a file)."""
        return tuple(self._source.digests(self._index))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over every row's input, target and groups; the order of the rows does not matter."""
        rows = zip(self.row_digests, self.targets.tolist(), self.groups.tolist(), strict=True)
        digests = sorted(
            hashlib.sha256(digest + repr((self._class_names(y), self._group_names(ids))).encode()).digest()
            for digest, y, ids in rows
        )
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def _class_names(self, target: int | list[int]) -> str | list[str]:
        if isinstance(target, int):
            return self.classes[target]
        marks = {0: None, 1: "{}", -1: "{}?"}
        named = zip(self.classes, target, strict=True)
        return [mark.format(name) for name, value in named if (mark := marks[value]) is not None]

    def _group_names(self, ids: list[int]) -> list[tuple[str, str]]:
        pairs = zip(self.attributes, ids, strict=True)
        return sorted((attribute.name, attribute.groups[i] if i >= 0 else "") for attribute, i in pairs)
