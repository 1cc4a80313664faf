"""Labelled samples with their groups: a manifest, arrays or a loader in, stratified batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bmft._common import Assumption
from bmft.data.arrays import (
    Inputs,
    as_inputs,
    class_names,
    concatenate,
    is_first,
    known_targets,
    leaves,
    name_attributes,
    whole_numbers,
)
from bmft.data.columns import columns_of
from bmft.data.dataset import GroupBatch, GroupedData, Task
from bmft.data.manifest import image_paths, open_npz, readable, table_beside
from bmft.data.preprocessing import Preprocessing
from bmft.data.sampling import Balance, batch_rows
from bmft.data.sources import ArraySource, DecodedImages, Source, StreamedImages, images_from_array, load_images
from bmft.errors import ConfigError, DataError
from bmft.tables import (
    Attribute,
    ClassNames,
    InputColumn,
    Ints,
    Manifest,
    Unknown,
    about_classes,
    read_manifest,
    split_names as names_in_table,
)


def from_arrays(
    inputs: Inputs,
    targets: npt.ArrayLike | Tensor,
    groups: npt.ArrayLike | Tensor,
    *,
    attributes: Sequence[Attribute | str] | Mapping[str, Sequence[str]] | None = None,
    clusters: npt.ArrayLike | Tensor | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
    normalize: str | None = None,
) -> GroupedData:
    """Data of any modality from tensors or arrays in memory. Samples without any label are left out and counted.

    Args:
        inputs: ``(n, ...)``, or a dict or tuple of such; used as they are (float64 becomes float32).
        targets: ``(n,)`` 0/1 or class numbers, or ``(n, labels)`` 0/1; -1 or NaN: not known.
        groups: ``(n,)`` or ``(n, attributes)`` group ids from 0; -1 is unknown.
        attributes: `Attribute` objects, names, or name -> group names; default ``group``, ``group1``, ...
        clusters: ``(n,)`` patient ids.
        task: checked against the targets, where given.
        classes: class names in the order of their numbers and of the model's outputs, where the targets do not tell
            (a sample without the highest class).
        positive: the positive one of two classes; the second by default.
        normalize: given, `inputs` are uint8 images ``(n, h, w[, c])``, normalized as in `load_manifest`.

    Raises:
        DataError: lengths differ, or targets are not class numbers.
        GroupError: ids and attributes do not fit each other.

    >>> from_arrays(torch.zeros(4, 2), [0, 1, 1, 0], [0, 0, 1, -1], attributes={"sex": ("f", "m")})
    GroupedData(n=4, task='binary', classes=('0', '1'), attributes=(sex))
    """
    tensors, y, ids = as_inputs(inputs), known_targets(targets), whole_numbers(groups, "groups")
    patients, own = (None, None) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)
    lengths = [len(y), len(ids), *map(len, leaves(tensors)), *([] if own is None else [len(own)])]
    if len(set(lengths)) > 1 or not len(y):
        raise DataError(f"targets, groups, inputs (and clusters) have {lengths} rows; expected as many of each.")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    ids = ids[:, None] if ids.ndim == 1 else ids
    rows = torch.nonzero(y != -1 if y.ndim == 1 else (y != -1).any(1))[:, 0]
    if not len(rows):
        raise DataError(f"none of the {len(y)} targets is known.")
    assumed = _unlabelled(y, len(y) - len(rows))
    y, ids, own = y[rows], ids[rows], None if own is None else own[rows.numpy()]
    found, names = class_names(y, classes, task)
    if reverse := is_first(names, positive):
        y, names = 1 - y, names[::-1]
    by = "the numbers of the targets" if positive is None else "positive"
    said = about_classes(names, found, by, "classes, positive", outputs_reversed=reverse)
    source: Source = ArraySource(tensors)
    if normalize is not None:
        channels = tensors.shape[3] if tensors.ndim == 4 else 1
        source = images_from_array(tensors.numpy(), how=Preprocessing(normalize=normalize), channels=channels)
    return GroupedData(
        cast(Task, found),
        y,
        ids,
        name_attributes(ids, attributes),
        names,
        None if own is None else torch.from_numpy(own.astype(np.int64)),
        rows,
        0,
        source,
        rows,
        assumed=(said, *assumed),
        _patients=None if patients is None else patients.astype(str).astype(object),
        outputs_reversed=reverse,
    )


def _unlabelled(targets: Tensor, left_out: int) -> tuple[Assumption, ...]:
    """What is said of targets that are not known."""
    several = targets.ndim == 2 and targets.shape[1] > 1
    said = [f"{left_out:,} samples without a label are left out"] if left_out else []
    if several and (missing := int((targets < 0).sum()) - left_out * targets.shape[1]):
        said.append(f"{missing:,} labels of other samples are not known")
    return tuple(Assumption("unknown", one, "targets of -1 or NaN", "targets") for one in said)


def as_grouped(
    data: Any,
    *,
    batch_fn: Callable[[Any], tuple[Inputs, Tensor, Tensor]] | None = None,
    sensitive: str | Sequence[str] | None = None,
    like: GroupedData | None = None,
) -> GroupedData:
    """`data` as `GroupedData`: itself, or a DataLoader, Dataset or iterable of batches read once into memory.

    Args:
        data: yields ``(inputs, targets, groups)``, or anything `batch_fn` turns into that. A loader that
            shuffles or augments is read once, so every later pass sees the same samples.
        batch_fn: one batch -> ``(inputs, targets, groups)``.
        sensitive: for `GroupedData` the attributes to keep; for others the names of the columns of groups.
        like: take class and group names from this set (a part may lack the highest class or group).

    Raises:
        DataError: no batches, or a batch that is no such triple.
    """
    names = (sensitive,) if isinstance(sensitive, str) else sensitive
    if isinstance(data, GroupedData):
        return data if names is None else data.with_attributes(*names)
    if isinstance(data, Dataset) and not hasattr(data, "__iter__"):
        data = DataLoader(data, batch_size=256)
    if not isinstance(data, Iterable):
        raise DataError(f"data is a {type(data).__name__}; expected GroupedData or an iterable of batches.")
    if like is None and batch_fn is None and isinstance(getattr(data, "dataset", None), GroupedData):
        like = cast(DataLoader[GroupBatch], data).dataset  # type: ignore[assignment]
    triples = [_triple(batch if batch_fn is None else batch_fn(batch), place) for place, batch in enumerate(data)]
    if not triples:
        raise DataError("the data yields no batches (an iterator that was read before yields nothing again).")
    inputs, targets, groups = (concatenate(column) for column in zip(*triples, strict=True))
    attributes, classes = (names, None) if like is None else (like.attributes, like.classes)
    grouped = from_arrays(inputs, targets, groups, attributes=attributes, classes=classes)
    if like is not None:
        own = [one for one in grouped.assumed if one.subject != "classes"]  # `like` says which is which
        assumed = tuple(dict.fromkeys((*like.assumed, *own)))
        grouped = replace(grouped, assumed=assumed, outputs_reversed=like.outputs_reversed)
    return grouped if like is None or names is None else grouped.with_attributes(*names)


def _triple(batch: Any, place: int) -> tuple[Inputs, Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 3:
        kind = f"dict with keys {list(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise DataError(
            f"batch {place} is a {kind}; expected (inputs, targets, groups). Give a batch_fn that makes that."
        )
    return as_inputs(batch[0]), torch.as_tensor(batch[1]).cpu(), torch.as_tensor(batch[2]).cpu()


def load_manifest(
    path: str | Path,
    *,
    target: str | Sequence[str],
    sensitive: str | Sequence[str],
    image: str = "path",
    images: str | Path | None = None,
    split_column: str | None = None,
    split: str | Sequence[str] | None = None,
    allow_shared_rows: bool = False,
    cluster: str | None = None,
    image_size: int | None = None,
    normalize: str | None = None,
    resize: str | None = None,
    crop_fraction: float | None = None,
    interpolation: str | None = None,
    transform: Callable[[Image.Image], Any] | None = None,
    known: tuple[Preprocessing | None, str] = (None, ""),
    channels: int = 3,
    on_bad_image: Literal["fail", "skip"] = "fail",
    cache_bytes: int = 4 << 30,
    workers: int = 0,
    bits: int | None = None,
    classes: Sequence[str] | ClassNames | None = None,
    positive: str | None = None,
    unknown: str | Sequence[str] = (),
    uncertain: str | Sequence[str] | None = None,
    blank: str | Sequence[str] | None = None,
    suffix: str = "",
    multi_label: bool = False,
    inputs: Sequence[str | InputColumn] = (),
    recorded: Sequence[InputColumn] = (),
) -> GroupedData:
    r"""Read a labelled set of images from a table with one row per image: its labels, groups, patients and images.

    Images become float32 tensors ``(channels, height, width)``, decoded when they are asked for and normalized as the
    arguments say. A row without any label is left out and counted; a row of unknown group (-1) stays, and counts in
    the figures over everybody only.

    Args:
        path: the table, a CSV, TSV, Parquet, xlsx or JSON lines file; or an ``.npz`` with ``images`` ``(n, height,
            width[, channels])``, which has its table beside it under the same name.
        target: the column of labels: 0/1, class numbers, or names in the order of `classes`; several columns are
            labels of 0/1 each, or classes where exactly one is 1 in every row.
        sensitive: the attributes: a column (``"sex"``), one of numbers that is cut into groups (``"age:40,60"``: below
            40, 40 to 59, from 60), or the intersection of several (``"sex*age:60"``). Empty values, and the codes of
            `bmft.tables.UNKNOWN`, are of unknown group.
        image: column of image paths; where there is no ``path``, the only one of ``file_name``, ``image``,
            ``image_path``, ``filepath``, ``filename`` and ``img``.
        images: folder the paths are relative to (default: the manifest's own), or an ``.npz`` in row order.
        split_column: column that names each row's split.
        split: load only the rows of this split, or of several.
        allow_shared_rows: take a table in which a patient or an image path is in two splits.
        cluster: column of patient ids; an empty id stands alone.
        image_size: side of the square that images become; default: each as it is.
        normalize: ``imagenet`` (the default), ``half``, ``none`` or ``MEAN/STD`` after scaling to [0, 1].
        resize: ``shorter`` (the default: the shorter side, then the centre is cut out), ``squash`` or ``pad``.
        crop_fraction: share of the resized side that is cut out, such as .875.
        interpolation: ``nearest``, ``bilinear`` (the default), ``bicubic`` or ``lanczos``.
        transform: PIL image -> ``(channels, height, width)`` tensor, in place of all of these.
        known: a checkpoint's ``pixels``: how its images were prepared and where that is said. It is taken for whatever
            is not said here.
        channels: 3 or 1.
        on_bad_image: ``fail`` lists every unreadable image; ``skip`` leaves them out and counts them.
        cache_bytes: up to how many bytes decoded pixels are kept in memory; a larger set is decoded at each request.
        bits: how many bits images of 16 bits per pixel really use, such as 12; default: all.
        workers: decoding threads; 0: one per processor, at most 8.
        classes: class names in the order of the model's outputs. What `bmft.checkpoints.class_names` found in a
            checkpoint may be given, too, and is ignored where the labels have other names.
        positive: the positive one of two classes; see `bmft.tables.encode_labels`.
        unknown, uncertain, blank: which further values mean that a label or group is not known; see
            `bmft.tables.Unknown`.
        suffix: the ending that image paths lack, such as ``.jpg`` where the column holds ids.
        multi_label: several label columns are labels of 0/1 each, also where exactly one is 1 in every row.
        inputs: columns that the network takes beside the image, in order: ``"age=62.5/14.2"`` (mean and deviation of
            its training), ``"sex=female:0,male:1"`` (names as numbers), ``"site=head,trunk,limb"`` (names as integers
            from 0), or a `bmft.tables.InputColumn`. Numbers are one tensor ``(n, k)`` where the first of them is named,
            each category one ``(n,)``: the model is called as ``model(images, numbers, ...)``.
        recorded: how a checkpoint says they were given (`Checkpoint.inputs`): taken for those that `inputs` only names,
            and for all where `inputs` is empty.

    Raises:
        DataError: the table, a label or an image cannot be used (every such row is named), or splits share rows.
        GroupError: an attribute does not have two groups.
        ConfigError: an argument has a value it cannot have, or nothing says which name is which class.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in "abcd":
    ...         Image.new("RGB", (8, 8)).save(Path(folder, f"{name}.png"))
    ...     rows = ["path,ill,sex", "a.png,0,f", "b.png,1,f", "c.png,0,m", "d.png,1,m"]
    ...     _ = Path(folder, "table.csv").write_text("\n".join(rows))
    ...     data = load_manifest(Path(folder, "table.csv"), target="ill", sensitive="sex")
    >>> data, data.inputs(slice(0, 2)).shape
    (GroupedData(n=4, task='binary', classes=('0', '1'), attributes=(sex)), torch.Size([2, 3, 8, 8]))
    """
    own = Preprocessing(image_size, normalize, resize, crop_fraction, interpolation, transform)
    how = own.over(known[0])
    how.check()
    _check_options(channels, on_bad_image)
    path, folder = Path(path), None if images is None else Path(images)
    if path.suffix.lower() == ".npz":
        path, folder = table_beside(path), path
    codes = Unknown(unknown, uncertain, blank)
    manifest = read_manifest(
        path,
        target,
        sensitive,
        classes=classes,
        positive=positive,
        multi_label=multi_label,
        cluster=cluster,
        split_column=split_column,
        split=split,
        image=None if folder is not None and folder.suffix.lower() == ".npz" else image,
        allow_shared_rows=allow_shared_rows,
        unknown=codes,
    )
    columns = columns_of(manifest, inputs, recorded, codes)
    pixels: dict[str, Any] = {"how": how, "channels": channels}
    source: DecodedImages | StreamedImages
    assumed: tuple[Assumption, ...] = ()
    if folder is not None and folder.suffix.lower() == ".npz":
        source, index = open_npz(folder, len(manifest.table), **pixels), manifest.rows
        rows, pictured = index, None
    else:
        files = image_paths(manifest, folder, suffix)
        source, bad = load_images(files, cache_bytes=cache_bytes, workers=workers, bits=bits, **pixels)
        index = readable(manifest, files, bad, on_bad_image)
        rows, pictured, assumed = manifest.rows[index], manifest.rows, files.assumed
    assumed = (*assumed, *own.assumed(*known, resized=source.resized), *columns.assumed)
    data = grouped_from(manifest, columns.with_images(source, pictured), index, rows, assumed)
    return replace(data, columns=columns.columns)


def grouped_from(
    manifest: Manifest, source: Source, index: Ints, rows: Ints, assumed: Sequence[Assumption]
) -> GroupedData:
    """A checked manifest's `rows` and their inputs, at `index` in the `source`."""
    return GroupedData(
        task=cast(Task, manifest.labels.task),
        targets=torch.from_numpy(manifest.labels.targets[rows]),
        groups=torch.from_numpy(manifest.groups[rows]),
        attributes=manifest.attributes,
        classes=manifest.labels.classes,
        clusters=None if manifest.clusters is None else torch.from_numpy(manifest.clusters[rows]),
        rows=torch.from_numpy(rows),
        skipped=len(manifest.rows) - len(rows),
        _source=source,
        _index=torch.from_numpy(index),
        _table=manifest.table,
        _patients=manifest.patients,
        assumed=(*manifest.assumed, *assumed),
        outputs_reversed=manifest.labels.outputs_reversed,
    )


def _check_options(channels: int, on_bad_image: str) -> None:
    if channels not in (1, 3):
        raise ConfigError(f"channels {channels}: expected 1 or 3.")
    if on_bad_image not in ("fail", "skip"):
        raise ConfigError(f"on_bad_image {on_bad_image!r}: expected fail or skip.")


def assumed_of(*parts: GroupedData | None) -> tuple[Assumption, ...]:
    """What was inferred about any of these parts, every choice listed once."""
    return tuple(dict.fromkeys(one for part in parts if part is not None for one in part.assumed))


def skipped_images(*parts: GroupedData) -> int:
    """How many unreadable images were left out when these parts were loaded; parts of one load count once."""
    return sum({id(part._source): part.skipped for part in parts}.values())


def split_names(path: str | Path, split_column: str) -> tuple[str, ...]:
    """The splits that a manifest's column names, in alphabetical order.

    Raises:
        DataError: the table cannot be read, or has no such column.
    """
    path = Path(path)
    return names_in_table(table_beside(path) if path.suffix.lower() == ".npz" else path, split_column)


def stratified_batches(
    data: GroupedData, batch_size: int, *, generator: torch.Generator, balance: Balance = "none"
) -> Iterator[Tensor]:
    """Row numbers of one epoch's batches, every batch with the same share of each group x label cell.

    A batch of 64 drawn at random lacks positives of a 10 % minority with 15 % positives in 39 % of draws.
    Here a cell of m rows is dealt out so that any two batches differ by at most one of them. With several
    attributes the groups are their observed combinations; with several labels a row counts by its rarest
    positive one.

    Args:
        data: where the targets and groups are.
        batch_size: the most rows a batch has; batches differ in size by at most one.
        generator: same state, same batches.
        balance: ``none``: every row once. The others draw as many rows as there are, from each cell its own
            rows only, each once before any comes again, and leave out rows of an unknown group. ``group``:
            groups equal, labels within a group as they are. ``group_in_label``: labels as they are, groups
            equal within each label. ``cell``: all cells equal.

    Raises:
        GroupError: a balance is asked for and no row has a known group.

    >>> data = from_arrays(torch.zeros(8, 1), [0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 0, 1])
    >>> batches = stratified_batches(data, 4, generator=torch.Generator().manual_seed(0), balance="cell")
    >>> [(data.targets[rows].sum().item(), data.groups[rows].sum().item()) for rows in batches]
    [(2, 2), (2, 2)]
    """
    yield from batch_rows(data.targets, data.groups, batch_size, generator=generator, balance=balance)
