"""The rows of a manifest that were asked for, checked: labels, groups, patients, splits and image paths."""

from __future__ import annotations

import itertools
import logging
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import overload

import numpy as np

from bmft._common import MOST, Assumption, did_you_mean, listed, short
from bmft.data.images import LARGEST_IMAGE
from bmft.data.preprocessing import Preprocessing
from bmft.data.sources import BadImage, DecodedImages, images_from_array
from bmft.errors import DataError
from bmft.tables import Ints, Manifest, column

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImagePaths(Sequence[Path]):
    """The files `names` in the folder `base`, each made a path when it is asked for: a million paths are large."""

    base: Path
    names: Sequence[str]
    assumed: tuple[Assumption, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Path: ...

    @overload
    def __getitem__(self, place: slice) -> ImagePaths: ...

    def __getitem__(self, place: int | slice) -> Path | ImagePaths:
        if isinstance(place, slice):
            return replace(self, names=self.names[place])
        return self.base / self.names[place]


def image_paths(manifest: Manifest, folder: Path | None, suffix: str = "") -> ImagePaths:
    """The image file of each of the manifest's rows.

    A relative path starts at `folder`, else at the manifest's own folder, and may not climb out of it with
    ``..``; an absolute one is taken only where no folder is given. Names that do not end in `suffix` get it.
    Backslashes are separators where there is no file whose name holds them.

    Raises:
        DataError: no such column or folder, or paths that are refused, each named with its row.
    """
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images.")
    image = str(manifest.image)
    if image not in manifest.table.columns:
        hint = did_you_mean(image, map(str, manifest.table.columns))
        raise DataError(f"{manifest.path}: no image path column {image!r}. {hint} Images may also be an npz.")
    base = manifest.path.parent if folder is None else folder
    names = [str(name).strip() for name in manifest.table[image].to_numpy()[manifest.rows]]
    if suffix:
        # An id from a column of floats is a whole number all the same.
        ids = column(manifest.table, image, role="image")[manifest.rows]
        end = f".{suffix.lstrip('.')}"
        names = [one if not one or one.lower().endswith(end.lower()) else f"{one}{end}" for one in ids]
    problem = _path_problem(folder is not None)
    refused = [
        f"row {row}: {short(name)!r}: {problem(name)}"
        for row, name in zip(manifest.rows, names, strict=True)
        if problem(name)
    ]
    if refused:
        raise DataError(
            f"{manifest.path}: {len(refused)} image paths are refused. Paths are relative to {base} and stay "
            f"inside it; absolute ones are taken only without an images folder:\n{listed(refused)}"
        )
    windows = {name: _with_slashes(base, name) for name in names if "\\" in name}
    turned = [name for name in names if windows.get(name, name) != name]
    value = f"backslashes separate folders in {len(turned):,} of {len(names):,} image paths"
    said = Assumption("paths", value, "the files that are there", "--path-column")
    return ImagePaths(base, [windows.get(name, name) for name in names], (said,) if turned else ())


def _with_slashes(base: Path, name: str) -> str:
    """A path of Windows as it is written here, if only so it leads to a file."""
    other = name.replace("\\", "/")
    return other if not os.path.isfile(base / name) and os.path.isfile(base / other) else name


def _path_problem(folder_given: bool) -> Callable[[str], str]:
    def problem(name: str) -> str:
        if not name.strip() or "\0" in name:
            return "holds a NUL character" if name.strip() else "empty"
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
            return "absolute, beside an images folder" if folder_given else ""
        steps = [{"..": -1, ".": 0}.get(part, 1) for part in PureWindowsPath(name).parts]
        return "climbs out with '..'" if min(itertools.accumulate(steps), default=0) < 0 else ""

    return problem


def table_beside(npz: Path) -> Path:
    """The table of the same name beside an ``.npz``.

    Raises:
        DataError: there is none.
    """
    for suffix in (".csv", ".tsv", ".parquet", ".xlsx", ".jsonl"):
        if npz.with_suffix(suffix).is_file():
            return npz.with_suffix(suffix)
    raise DataError(f"{npz}: expected {npz.with_suffix('.csv').name} beside it, one row per image in order.")


def open_npz(path: Path, rows: int, *, how: Preprocessing, channels: int) -> DecodedImages:
    """The array ``images`` of an ``.npz``, one entry per row of the whole table.

    Raises:
        DataError: no such file or array, another number of images, another type or shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_array(archive, rows)
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            array = file["images"]
        return images_from_array(array, how=how, channels=channels)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except (*_NPZ, DataError) as error:
        raise DataError(f"{path}: expected an npz with an array `images`: {short(error).rstrip('.')}.") from error


def _with_an_ending(missing: Sequence[Path]) -> str:
    """The hint for paths that are no files, where there are files of that name with an ending."""
    for written in missing:
        path = Path(str(written).replace("\\", "/"))
        if os.path.exists(path) or not os.path.isdir(path.parent):
            continue
        there = sorted(one.name for one in path.parent.iterdir() if one.name.startswith(f"{path.name}."))
        if there:
            names = " and ".join(map(short, there[:3]))
            return f"\nFor {short(path.name)} there is {names}: say --suffix {Path(there[0]).suffix} (suffix=...)."
    return ""


# What zipfile and numpy raise on damaged files; a RuntimeError is a password or an unknown way of packing.
_NPZ = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def _check_array(archive: zipfile.ZipFile, rows: int) -> None:
    """Refuse by its header what is no array of images, before a small file takes all memory."""
    record = archive.getinfo("images.npy")
    with archive.open(record) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"an array of format {version}; bytes need (1, 0)")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if len(shape) not in (3, 4) or dtype != np.uint8:
        raise ValueError(f"{dtype} {short(shape)}; expected uint8 (n, h, w) or (n, h, w, 1|3|4)")
    if shape[0] != rows:
        raise ValueError(f"{shape[0]} images for {rows} rows; expected one per row, in order")
    if math.prod(shape) != record.file_size - start:
        raise ValueError(f"{record.file_size - start} bytes for an array of {short(shape)}")
    if math.prod(shape[1:]) > LARGEST_IMAGE:
        raise ValueError(f"images of {short(shape[1:])}; expected at most {LARGEST_IMAGE} bytes each")


def readable(manifest: Manifest, files: Sequence[Path], bad: Sequence[BadImage], on_bad_image: str) -> Ints:
    """The positions in `files` to keep: all, or those that could be read.

    Raises:
        DataError: some cannot be read and `on_bad_image` is ``fail``, or none can.
    """
    lines = [f"row {manifest.rows[one.position]}: {short(files[one.position])}: {short(one.reason)}" for one in bad]
    if bad:
        message = f"{manifest.path}: {len(bad)} of {len(files)} images cannot be read:\n{listed(lines)}"
        message += _with_an_ending([files[one.position] for one in bad[:MOST]])
        if on_bad_image == "fail" or len(bad) == len(files):
            raise DataError(message)
        log.warning("left out: %s", message)
    return np.setdiff1d(np.arange(len(files)), [one.position for one in bad])
