"""Predictions of any model, in any framework, from a table: so that it can be audited and gated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bmft._common import listed, short
from bmft.auditing.predictions import Predictions
from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables import Labels, column, encode_attribute, encode_labels, read_table, rows_of_splits

TARGET, SCORE = "y_true", "y_score"


def read_predictions(
    path: str | Path,
    *,
    sensitive: str | Sequence[str],
    cluster: str | None = None,
    split_column: str | None = None,
    split: str | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
) -> Predictions:
    """Read scores, labels and attributes from a CSV, TSV or Parquet table.

    A binary label is ``y_true`` (0/1, or two names of which `positive` says the positive one) beside ``y_score``,
    the probability of the positive one, or with `classes` of their second. Several classes: ``y_true`` beside
    ``y_score_NAME`` for every class. Several labels: ``y_true_NAME`` (0/1) beside ``y_score_NAME`` for each. A row
    with an empty attribute is of an unknown group.

    Args:
        path: the table.
        sensitive: attributes as in a manifest: ``"sex"``, ``"age:40,60"``, ``"sex*age:60"``.
        cluster: column of the patient; a row without one is a patient of its own.
        split_column: column that says which split a row is in.
        split: the split to read, or several.
        classes: the two classes of ``y_true`` in order.
        positive: the positive one of two classes; see `bmft.tables.encode_labels`.

    Raises:
        DataError: a column is missing, a label is empty, or a score is no probability (all are listed).
        ConfigError: nothing says which of two names is positive.
        GroupError: an attribute has too many values, or is not there.
    """
    table = read_table(path)
    specs = [sensitive] if isinstance(sensitive, str) else list(sensitive)
    try:
        if split_column is not None:
            table = pd.DataFrame(table.iloc[rows_of_splits(table, split_column, split)])
        labels, scores = _answers(table, classes, positive)
        encoded = [encode_attribute(table, spec) for spec in specs]
        clusters = None if cluster is None else _clusters(column(table, cluster, role="cluster"))
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error
    if not encoded:
        raise GroupError(f"{path}: name at least one sensitive attribute")
    groups = np.stack([ids for _, ids in encoded], axis=1)
    return Predictions(
        scores=scores,
        targets=labels.targets,
        groups=groups,
        attributes=tuple(attribute for attribute, _ in encoded),
        task=labels.task,
        classes=labels.classes,
        clusters=clusters,
        rows=np.asarray(table.index, dtype=np.int64),
        content_hash=hashlib.sha256(pd.util.hash_pandas_object(table).to_numpy().tobytes()).hexdigest(),
        assumed=labels.assumed,
    )


def _answers(
    table: pd.DataFrame, classes: Sequence[str] | None, positive: str | None
) -> tuple[Labels, NDArray[np.float64]]:
    """The labels and the scores ``(n, columns)``."""
    names = [str(name)[len(SCORE) + 1 :] for name in table.columns if str(name).startswith(f"{SCORE}_")]
    if SCORE in table.columns or not names:
        scores = _numbers(table, SCORE)
        several = sorted(set(column(table, TARGET, role="label")) - {""})
        if len(several) > 2:
            shown = ", ".join(several[:12])
            raise DataError(f"{TARGET!r} has the classes {shown}: give a column {SCORE}_NAME for each")
        labels = encode_labels(table, TARGET, classes, positive)
        return _complete(labels, TARGET), (1 - scores if labels.outputs_reversed else scores)[:, None]
    if positive is not None:
        raise ConfigError(f"--positive is for a column {SCORE!r}; each {SCORE}_NAME names its own class")
    scores = np.stack([_numbers(table, f"{SCORE}_{name}") for name in names], axis=1)
    if TARGET in table.columns:
        labels = _complete(encode_labels(table, TARGET, names, names[-1] if len(names) == 2 else None), TARGET)
        said = tuple(replace(one, source=f"the columns {SCORE}_NAME") for one in labels.assumed)
        return labels._replace(task="multiclass", assumed=said), scores
    columns = [encode_labels(table, f"{TARGET}_{name}", ("0", "1")) for name in names]
    targets = [_complete(one, f"{TARGET}_{name}").targets for one, name in zip(columns, names, strict=True)]
    return Labels(np.stack(targets, axis=1), tuple(names), "multilabel", False, ()), scores


def _numbers(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    text = column(table, name, role="score")
    numbers = pd.to_numeric(pd.Series(text), errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~((numbers >= 0) & (numbers <= 1)))
    if len(bad):
        rows = table.index.to_list()
        shown = listed([f"row {rows[place]}: {short(text[place], 60)!r}" for place in bad])
        raise DataError(f"column {name!r} has values that are no probability between 0 and 1:\n{shown}")
    return numbers


def _complete(labels: Labels, name: str) -> Labels:
    empty = int((labels.targets < 0).sum())
    if empty:
        raise DataError(f"column {name!r} is empty in {empty} of {len(labels.targets)} rows: fill or remove them")
    return labels


def _clusters(text: NDArray[Any]) -> NDArray[np.int64]:
    alone = np.array([value or f"\0{row}" for row, value in enumerate(text)], dtype=object)
    return np.asarray(np.unique(alone, return_inverse=True)[1], dtype=np.int64)
