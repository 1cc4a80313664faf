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
from bmft.tables.attributes import Attribute, encode_attribute
from bmft.tables.labels import ClassNames, Labels, encode_labels
from bmft.tables.reading import Ints, Texts, column, read_table

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


def read_manifest(
    path: Path,
    target: str | Sequence[str],
    sensitive: str | Sequence[str],
    *,
    classes: Sequence[str] | ClassNames | None = None,
    positive: str | None = None,
    cluster: str | None = None,
    split_column: str | None = None,
    split: str | Sequence[str] | None = None,
    image: str | None = None,
    allow_shared_rows: bool = False,
) -> Manifest:
    """Read and check a table; the arguments are `data.load_manifest`'s.

    Classes, groups and clusters are numbered over the whole table, so that its splits agree.
    """
    table = read_table(path)
    try:
        labels = encode_labels(table, target, classes, positive)
        specs = [sensitive] if isinstance(sensitive, str) else list(sensitive)
        encoded = [encode_attribute(table, spec) for spec in specs]
        rows = rows_of_splits(table, split_column, split)
        if split_column is not None and not allow_shared_rows:
            _check_leaks(table, split_column, [name for name in (cluster, image) if name and name in table.columns])
        _check_labels(labels.targets[rows], rows)
        _check_groups([(attribute, ids[rows]) for attribute, ids in encoded])
        patients, clusters = (
            (None, None) if cluster is None else np.unique(cluster_names(table, cluster), return_inverse=True)
        )
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error
    groups = np.stack([ids for _, ids in encoded], axis=1)
    attributes = tuple(attribute for attribute, _ in encoded)
    return Manifest(path, table, labels, attributes, groups, clusters, rows, patients, labels.assumed)


def cluster_names(table: pd.DataFrame, name: str) -> Texts:
    """``(rows,)`` the patient; a row without an id is a patient of its own, whose name begins with `ALONE`."""
    text = column(table, name, role="cluster")
    return np.array([f"{ALONE}{row}" if value == "" else value for row, value in enumerate(text)], dtype=object)


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


def _check_leaks(table: pd.DataFrame, name: str, columns: Sequence[str]) -> None:
    """Refuse a patient or an image path that is in several splits."""
    split = column(table, name, role="split")
    for shared in columns:
        text = [value.replace("\\", "/").removeprefix("./") for value in column(table, shared, role="cluster")]
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


def _check_labels(targets: Ints, rows: Ints) -> None:
    empty = rows[(targets if targets.ndim == 1 else targets.min(axis=1)) < 0]
    if len(empty):
        where = ", ".join(map(str, empty[:20])) + (f" and {len(empty) - 20} more" if len(empty) > 20 else "")
        raise DataError(f"{len(empty)} of {len(rows)} rows have no label: rows {where}. Fill or remove them.")


def _check_groups(encoded: Sequence[tuple[Attribute, Ints]]) -> None:
    names = [attribute.name for attribute, _ in encoded]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"sensitive attributes {names}: name at least one, each once.")
    for attribute, ids in encoded:
        counts = np.bincount(ids[ids >= 0], minlength=len(attribute.groups))
        found = [group for group, count in zip(attribute.groups, counts, strict=True) if count]
        if len(found) < 2:
            raise GroupError(
                f"attribute {attribute.name!r} has {f'only the group {found[0]!r}' if found else 'no value'} "
                f"in these {len(ids)} rows; a gap needs two groups. Choose another attribute or other cuts."
            )
        for group in np.array(attribute.groups, dtype=object)[counts == 1]:
            log.warning("attribute %r: group %r has a single member", attribute.name, short(group))
