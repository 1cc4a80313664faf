"""The rows of a table that were asked for, checked: labels, groups, patients and splits."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bmft._common import Assumption, did_you_mean, listed, short
from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables.attributes import Attribute, encode_attributes
from bmft.tables.labels import ClassNames, Labels, encode_labels
from bmft.tables.reading import Ints, Texts, column, path_column, read_table
from bmft.tables.unknown import BY_DEFAULT, Unknown, said_of_groups, said_of_label

log = logging.getLogger(__name__)
ALONE = "\0"


@dataclass(frozen=True)
class Manifest:
    """A manifest's checked contents; every array but `rows` has one entry per row of the whole table."""

    path: Path
    table: pd.DataFrame
    labels: Labels
    attributes: tuple[Attribute, ...]
    groups: Ints
    clusters: Ints | None
    rows: Ints
    patients: Texts | None  # the name behind each cluster
    assumed: tuple[Assumption, ...]
    image: str | None = None  # the column of image paths


def read_manifest(
    path: Path,
    target: str | Sequence[str],
    sensitive: str | Sequence[str],
    *,
    table: pd.DataFrame | None = None,
    classes: Sequence[str] | ClassNames | None = None,
    positive: str | None = None,
    multi_label: bool = False,
    cluster: str | None = None,
    split_column: str | None = None,
    split: str | Sequence[str] | None = None,
    image: str | None = None,
    allow_shared_rows: bool = False,
    unknown: Unknown = BY_DEFAULT,
) -> Manifest:
    """Read and check a table, or the `table` given; the arguments are `data.load_manifest`'s.

    Classes, groups and clusters are numbered over the whole table, so that its splits agree. Rows without any label
    are left out and counted.
    """
    table = read_table(path) if table is None else table
    try:
        labels = encode_labels(table, target, classes, positive, unknown, multi_label)
        rows = rows_of_splits(table, split_column, split)
        image, guessed = (None, None) if image is None else path_column(table, image)
        if split_column is not None and not allow_shared_rows:
            _check_leaks(
                table, split_column, [name for name in (cluster, image) if name and name in table.columns], unknown
            )
        rows, said = labelled(labels, rows, where := in_splits(split), unknown)
        groups = encode_attributes(table, sensitive, unknown, rows, where)
        _check_groups(groups.attributes, groups.ids[rows])
        patients, clusters = None, None
        if cluster is not None:
            patients, clusters = np.unique(cluster_names(table, cluster, unknown), return_inverse=True)
            said += said_of_clusters(table, cluster, unknown, rows, where)
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error
    assumed = (*labels.assumed, *said, *groups.assumed, *([guessed] if guessed else []))
    return Manifest(path, table, labels, groups.attributes, groups.ids, clusters, rows, patients, assumed, image)


def cluster_names(table: pd.DataFrame, name: str, unknown: Unknown = BY_DEFAULT) -> Texts:
    """``(rows,)`` the patient; a row whose id is not known is a patient of its own, whose name begins with `ALONE`."""
    text = column(table, name, role="cluster")
    for row in np.flatnonzero(unknown.why_not(table, name, text) != ""):
        text[row] = f"{ALONE}{row}"
    return text


def said_of_clusters(
    table: pd.DataFrame, name: str, unknown: Unknown, rows: Ints, where: str
) -> tuple[Assumption, ...]:
    """What is assumed of the patients of these rows whose id is not known; nothing where all are known."""
    why = unknown.why_not(table, name, column(table, name, role="cluster"))
    return tuple(said_of_groups(name, why, np.full_like(why, ""), rows, f", each a patient of its own{where}"))


def rows_of_splits(table: pd.DataFrame, name: str | None, split: str | Sequence[str] | None) -> Ints:
    """The rows of one split or several, or all of them.

    Raises:
        DataError: there is no such split; the message names the nearest one.
    """
    wanted = [split] if isinstance(split, str) else split
    if name is None and wanted is not None:
        raise ConfigError(f"split {split!r} was asked for without a split column.")
    if name is None or wanted is None:
        return np.arange(len(table))
    text = column(table, name, role="split")
    known = sorted(set(text) - {""})
    if not wanted or (unknown := [one for one in wanted if one not in known]):
        missing = str(unknown[0]) if wanted else ""
        hint = did_you_mean(missing, known)
        there = "" if hint.startswith("There") else f" There are {', '.join(map(repr, known[:12]))}."
        raise DataError(f"column {name!r} has no split {short(missing)!r}. {hint}{there}")
    return np.flatnonzero(np.isin(text, list(wanted)))


def _check_leaks(table: pd.DataFrame, name: str, columns: Sequence[str], unknown: Unknown) -> None:
    """Refuse a patient or an image path that is in several splits."""
    split = column(table, name, role="split")
    for shared in columns:
        names = [name.replace("\\", "/").removeprefix("./") for name in cluster_names(table, shared, unknown)]
        text = ["" if name.startswith(ALONE) else name for name in names]
        places = pd.DataFrame({"value": text, "split": split}).drop_duplicates()
        places = places[(places["value"] != "") & (places["split"] != "")]
        leaks = places[places["value"].duplicated(keep=False)].groupby("value", sort=False)
        if len(leaks):
            some = [
                f"{short(value, 60)}: " + ", ".join(f"{short(part, 40)} (row {row})" for row, part in parts.items())
                for value, parts in itertools.islice(leaks["split"], 5)
            ]
            more = f"\n  ... and {len(leaks) - 5:,} more" if len(leaks) > 5 else ""
            raise DataError(
                f"{len(leaks):,} values of {shared!r} are in several splits of {name!r}: what is measured on one leaks "
                f"from another. Keep each in one split, or give --allow-shared-rows:\n{listed(some)}{more}"
            )


def in_splits(split: str | Sequence[str] | None) -> str:
    """The words for where rows lie, to end a sentence with: `` in test``, or nothing where they are all rows.

    >>> in_splits(["valid", "test"])
    ' in valid, test'
    """
    names = [split] if isinstance(split, str) else split
    return "" if names is None else f" in {', '.join(short(name, 40) for name in names)}"


def labelled(labels: Labels, rows: Ints, where: str, unknown: Unknown) -> tuple[Ints, tuple[Assumption, ...]]:
    """The `rows` that have a label, and what was assumed of the others.

    Raises:
        DataError: no row has one.
    """
    targets = labels.targets[rows]
    kept = rows[(targets if targets.ndim == 1 else targets.max(axis=1)) >= 0]
    if not len(kept):
        names = ", ".join(short(name, 40) for name in labels.why)
        raise DataError(f"none of the {len(rows)} rows{where} has a label in {names}.")
    said = [one for name, why in labels.why.items() for one in said_of_label(name, why, rows, where, unknown)]
    return kept, tuple(said)


def _check_groups(attributes: Sequence[Attribute], groups: Ints) -> None:
    for attribute, ids in zip(attributes, groups.T, strict=True):
        counts = np.bincount(ids[ids >= 0], minlength=len(attribute.groups))
        found = [group for group, count in zip(attribute.groups, counts, strict=True) if count]
        if len(found) < 2:
            raise GroupError(
                f"attribute {attribute.name!r} has {f'only the group {found[0]!r}' if found else 'no value'} "
                f"in these {len(ids)} rows; a gap needs two groups. Choose another attribute or other cuts."
            )
        for group in np.array(attribute.groups, dtype=object)[counts == 1]:
            log.warning("attribute %r: group %r has a single member", attribute.name, short(group))
