"""Images with columns of the table beside them, for a network of several inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bmft._common import Assumption
from bmft.data.arrays import Inputs
from bmft.data.sources import Source
from bmft.errors import DataError
from bmft.tables import InputColumn, Ints, Manifest, Unknown, encode_inputs, input_columns, inputs_in_words


@dataclass(frozen=True)
class WithColumns:
    """Images, and for each of them the values of some columns: ``(images, column, ...)``."""

    images: Source
    columns: tuple[Tensor, ...]

    def take(self, index: Tensor) -> Inputs:
        """The images of these rows, then their values in each column."""
        return (self.images.take(index), *(one.index_select(0, index.to(one.device)) for one in self.columns))

    def digests(self, index: Tensor) -> list[bytes]:
        """Of each image and its values."""
        return [
            hashlib.sha256(digest + b"".join(one[i].cpu().numpy().tobytes() for one in self.columns)).digest()
            for i, digest in zip(index.tolist(), self.images.digests(index), strict=True)
        ]

    def moved(self, images: Source, index: Tensor, device: torch.device) -> WithColumns:
        """These rows' columns alone, on `device`, beside `images`."""
        return WithColumns(images, tuple(one.index_select(0, index).to(device) for one in self.columns))


def images_in(source: Source) -> Source:
    """Where the images come from, whatever stands beside them."""
    return source.images if isinstance(source, WithColumns) else source


def input_names(columns: Sequence[InputColumn]) -> tuple[str, ...]:
    """What the inputs of a network of an image and these columns are called.

    >>> input_names([InputColumn("age", 62, 14), InputColumn("site", names=("head", "limb")), InputColumn("dose")])
    ('image', 'numbers', 'site')
    """
    names = (one.name if one.is_category else "numbers" for one in columns)
    return ("image", *dict.fromkeys(names))


def drawn_columns(columns: Sequence[InputColumn], n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random values of these columns for n samples, in the form in which the network takes them."""
    numbers = sum(not one.is_category for one in columns)
    categories = {one.name: len(one.names) for one in columns if one.is_category}
    return tuple(
        torch.randint(categories[name], (n,), generator=generator)
        if name in categories
        else torch.randn(n, numbers, generator=generator)
        for name in input_names(columns)[1:]
    )


@dataclass(frozen=True)
class Beside:
    """What a network is given of a table: its columns, their values, and what is said of them."""

    columns: tuple[InputColumn, ...]
    values: tuple[Tensor, ...]
    assumed: tuple[Assumption, ...]

    def with_images(self, images: Source, rows: Ints | None) -> Source:
        """The images with these values; `rows` are those of the table that have images, by default all."""
        if not self.columns:
            return images
        return WithColumns(images, self.values if rows is None else tuple(one[rows] for one in self.values))


def columns_of(
    manifest: Manifest, asked: Sequence[str | InputColumn], recorded: Sequence[InputColumn], unknown: Unknown
) -> Beside:
    """The columns that are asked for as a network takes them, else those that are `recorded`.

    Raises:
        ConfigError, DataError: see `bmft.tables.encode_inputs`; and the table lacks a column that is recorded.
    """
    columns, table = input_columns(asked, recorded), manifest.table
    source = "--input" if asked else "the checkpoint's record"
    if not asked and (missing := [one.name for one in recorded if one.name not in table.columns]):
        raise DataError(
            f"{manifest.path}: the network takes {inputs_in_words(recorded)}, as its checkpoint records, and the table "
            f"has no column {missing[0]!r}: add it, or name the columns that hold these (--input)."
        )
    try:
        found = encode_inputs(
            table, columns, manifest.rows, attributes=manifest.attributes, unknown=unknown, source=source
        )
    except DataError as error:
        raise type(error)(f"{manifest.path}: {error}") from error
    assumed = found.assumed
    if recorded and found.columns != tuple(recorded):
        other = f"not as the checkpoint records, {inputs_in_words(recorded)}"
        assumed += (Assumption("inputs", other, "--input says otherwise", "--input", guess=True),)
    return Beside(found.columns, tuple(map(torch.from_numpy, found.arrays)), assumed)
