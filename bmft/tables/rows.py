"""The rows of a table that were asked for, checked: labels, groups, patients and splits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bmft._text import did_you_mean, listed, short
from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables.attributes import Attribute, encode_attribute
from bmft.tables.labels import encode_labels
from bmft.tables.reading import Ints, Texts, column, read_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """A manifest's checked contents; every array but `rows` has one entry per row of the whole table."""

    path: Path
    table: pd.DataFrame
    task: str
    classes: tuple[str, ...]
    targets: Ints
    attributes: tuple[Attribute, ...]
    groups: Ints
    clusters: Ints | None
    rows: Ints


def read_manifest(
    path: Path,
    target: str | Sequence[str],
    sensitive: str | Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    cluster: str | None = None,
    split_column: str | None = None,
    split: str | None = None,
) -> Manifest:
    """Read and check a table; the arguments are `data.load_manifest`'s.

    Classes, groups and clusters are numbered over the whole table, so that its splits agree.
    """
    table = read_table(path)
    try:
        targets, names, task = encode_labels(table, target, classes)
        specs = [sensitive] if isinstance(sensitive, str) else list(sensitive)
        encoded = [encode_attribute(table, spec) for spec in specs]
        rows = _split_rows(table, split_column, split, cluster)
        _check_labels(targets[rows], rows)
        _check_groups([(attribute, ids[rows]) for attribute, ids in encoded])
        clusters = None if cluster is None else cluster_ids(table, cluster)
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error
    groups = np.stack([ids for _, ids in encoded], axis=1)
    attributes = tuple(attribute for attribute, _ in encoded)
    return Manifest(path, table, task, names, targets, attributes, groups, clusters, rows)


def cluster_ids(table: pd.DataFrame, name: str) -> Ints:
    """``(rows,)`` a number per patient; a row without an id is a patient of its own."""
    text = column(table, name, role="cluster")
    alone = np.array([f"\0{row}" if value == "" else value for row, value in enumerate(text)], dtype=object)
    return np.asarray(np.unique(alone, return_inverse=True)[1], dtype=np.int64)


def _split_rows(table: pd.DataFrame, name: str | None, split: str | None, cluster: str | None) -> Ints:
    if name is None and split is not None:
        raise ConfigError(f"split {split!r} was asked for without a split column.")
    if name is None:
        return np.arange(len(table))
    text = column(table, name, role="split")
    if cluster is not None:
        _check_leaks(text, column(table, cluster, role="cluster"), name, cluster)
    rows = np.arange(len(table)) if split is None else np.flatnonzero(text == split)
    if not len(rows):
        known = sorted(set(text) - {""})
        hint = did_you_mean(str(split), known)
        there = "" if hint.startswith("There") else f" There are {', '.join(map(repr, known[:12]))}."
        raise DataError(f"column {name!r} has no split {short(split)!r}. {hint}{there}")
    return rows


def _check_leaks(split: Texts, cluster: Texts, name: str, cluster_name: str) -> None:
    places: dict[str, dict[str, int]] = {}
    for row, (part, patient) in enumerate(zip(split, cluster, strict=True)):
        if part and patient:
            places.setdefault(patient, {}).setdefault(part, row)
    leaks = [
        f"{short(patient, 60)}: " + ", ".join(f"{short(part, 40)} (row {row})" for part, row in parts.items())
        for patient, parts in places.items()
        if len(parts) > 1
    ]
    if leaks:
        raise DataError(
            f"{len(leaks)} values of {cluster_name!r} are in several splits of {name!r}: what is measured "
            f"on one leaks from another. Keep each in one split:\n{listed(leaks, 5)}"
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
