"""Predictions of any model, in any framework, from a table: so that it can be audited and gated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bmft._common import listed, short
from bmft.auditing.predictions import Predictions
from bmft.errors import DataError, GroupError
from bmft.tables import column, encode_attribute, encode_labels, read_table, rows_of_splits

TARGET, SCORE = "y_true", "y_score"


def read_predictions(
    path: str | Path,
    *,
    sensitive: str | Sequence[str],
    cluster: str | None = None,
    split_column: str | None = None,
    split: str | Sequence[str] | None = None,
) -> Predictions:
    """Read scores, labels and attributes from a CSV, TSV or Parquet table.

    A binary label is ``y_true`` (0/1 or two names) beside ``y_score``, the probability of the second. Several
    classes: ``y_true`` beside ``y_score_NAME`` for every class. Several labels: ``y_true_NAME`` (0/1) beside
    ``y_score_NAME`` for each. A row with an empty attribute is of an unknown group.

    Args:
        path: the table.
        sensitive: attributes as in a manifest: ``"sex"``, ``"age:40,60"``, ``"sex*age:60"``.
        cluster: column of the patient; a row without one is a patient of its own.
        split_column: column that says which split a row is in.
        split: the split to read, or several.

    Raises:
        DataError: a column is missing, a label is empty, or a score is no probability (all are listed).
        GroupError: an attribute has too many values, or is not there.
    """
    table = read_table(path)
    specs = [sensitive] if isinstance(sensitive, str) else list(sensitive)
    try:
        if split_column is not None:
            table = pd.DataFrame(table.iloc[rows_of_splits(table, split_column, split)])
        targets, classes, task, scores = _answers(table)
        encoded = [encode_attribute(table, spec) for spec in specs]
        clusters = None if cluster is None else _clusters(column(table, cluster, role="cluster"))
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error
    if not encoded:
        raise GroupError(f"{path}: name at least one sensitive attribute")
    groups = np.stack([ids for _, ids in encoded], axis=1)
    return Predictions(
        scores=scores,
        targets=targets,
        groups=groups,
        attributes=tuple(attribute for attribute, _ in encoded),
        task=task,
        classes=classes,
        clusters=clusters,
        rows=np.asarray(table.index, dtype=np.int64),
        content_hash=hashlib.sha256(pd.util.hash_pandas_object(table).to_numpy().tobytes()).hexdigest(),
    )


def _answers(table: pd.DataFrame) -> tuple[NDArray[Any], tuple[str, ...], str, NDArray[np.float64]]:
    """Targets, class names, task and scores ``(n, columns)``."""
    names = [str(name)[len(SCORE) + 1 :] for name in table.columns if str(name).startswith(f"{SCORE}_")]
    if SCORE in table.columns or not names:
        scores = _numbers(table, SCORE)
        targets, classes, task = encode_labels(table, TARGET)
        if task != "binary":
            raise DataError(f"{TARGET!r} has the classes {', '.join(classes)}: give a column {SCORE}_NAME for each")
        return _complete(targets, TARGET), classes, task, scores[:, None]
    scores = np.stack([_numbers(table, f"{SCORE}_{name}") for name in names], axis=1)
    if TARGET in table.columns:
        return _complete(encode_labels(table, TARGET, names)[0], TARGET), tuple(names), "multiclass", scores
    labels = [_complete(encode_labels(table, f"{TARGET}_{name}", ("0", "1"))[0], f"{TARGET}_{name}") for name in names]
    return np.stack(labels, axis=1), tuple(names), "multilabel", scores


def _numbers(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    text = column(table, name, role="score")
    numbers = pd.to_numeric(pd.Series(text), errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~((numbers >= 0) & (numbers <= 1)))
    if len(bad):
        rows = table.index.to_list()
        shown = listed([f"row {rows[place]}: {short(text[place], 60)!r}" for place in bad])
        raise DataError(f"column {name!r} has values that are no probability between 0 and 1:\n{shown}")
    return numbers


def _complete(targets: NDArray[Any], name: str) -> NDArray[Any]:
    empty = int((targets < 0).sum())
    if empty:
        raise DataError(f"column {name!r} is empty in {empty} of {len(targets)} rows: fill or remove them")
    return targets


def _clusters(text: NDArray[Any]) -> NDArray[np.int64]:
    alone = np.array([value or f"\0{row}" for row, value in enumerate(text)], dtype=object)
    return np.asarray(np.unique(alone, return_inverse=True)[1], dtype=np.int64)
