"""Predictions of any model, in any framework, from a table: so that it can be audited and gated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bmft._common import listed, short
from bmft.auditing.predictions import Predictions
from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables import (
    Labels,
    Unknown,
    cluster_names,
    column,
    encode_attributes,
    encode_labels,
    in_splits,
    is_code,
    labelled,
    read_table,
    rows_of_splits,
    said_of_clusters,
)

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
    unknown: str | Sequence[str] = (),
    uncertain: str | Sequence[str] | None = None,
    blank: str | Sequence[str] | None = None,
) -> Predictions:
    """Read scores, labels and attributes from a CSV, TSV or Parquet table.

    A binary label is ``y_true`` (0/1, or two names of which `positive` says the positive one) beside ``y_score``,
    the probability of the positive one, or with `classes` of their second. Several classes: ``y_true`` beside
    ``y_score_NAME`` for every class. Several labels: ``y_true_NAME`` (0/1) beside ``y_score_NAME`` for each. A row
    with an attribute that is empty or a code for it is of an unknown group; one without a label is left out.

    Args:
        path: the table.
        sensitive: attributes as in a manifest: ``"sex"``, ``"age:40,60"``, ``"sex*age:60"``.
        cluster: column of the patient; a row without one is a patient of its own.
        split_column: column that says which split a row is in.
        split: the split to read, or several.
        classes: the two classes of ``y_true`` in order.
        positive: the positive one of two classes; see `bmft.tables.encode_labels`.
        unknown, uncertain, blank: what is read as not known; see `bmft.tables.Unknown`.

    Raises:
        DataError: a column is missing, no row has a label, or a score is no probability (all are listed).
        ConfigError: nothing says which of two names is positive.
        GroupError: an attribute has too many values, or is not there.
    """
    table = read_table(path)
    codes = Unknown(unknown, uncertain, blank)
    if not sensitive:
        raise GroupError(f"{path}: name at least one sensitive attribute")
    try:
        if split_column is not None:
            table = pd.DataFrame(table.iloc[rows_of_splits(table, split_column, split)])
        labels, scores = _answers(table, classes, positive, codes)
        rows, said = labelled(labels, np.arange(len(table)), where := in_splits(split), codes)
        groups = encode_attributes(table, sensitive, codes, rows, where)
        clusters = None
        if cluster is not None:
            clusters = np.unique(cluster_names(table, cluster, codes), return_inverse=True)[1][rows]
            said += said_of_clusters(table, cluster, codes, rows, where)
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error
    table = pd.DataFrame(table.iloc[rows])
    return Predictions(
        scores=scores[rows],
        targets=labels.targets[rows],
        groups=groups.ids[rows],
        attributes=groups.attributes,
        task=labels.task,
        classes=labels.classes,
        clusters=clusters,
        rows=np.asarray(table.index, dtype=np.int64),
        content_hash=hashlib.sha256(pd.util.hash_pandas_object(table).to_numpy().tobytes()).hexdigest(),
        assumed=(*labels.assumed, *said, *groups.assumed),
    )


def _answers(
    table: pd.DataFrame, classes: Sequence[str] | None, positive: str | None, unknown: Unknown
) -> tuple[Labels, NDArray[np.float64]]:
    """The labels and the scores ``(n, columns)``."""
    names = [str(name)[len(SCORE) + 1 :] for name in table.columns if str(name).startswith(f"{SCORE}_")]
    if SCORE in table.columns or not names:
        scores = _numbers(table, SCORE)
        names = sorted(name for name in set(column(table, TARGET, role="label")) if name and not is_code(name))
        if len(names) > 2:
            raise DataError(f"{TARGET!r} has the classes {', '.join(names[:12])}: give a column {SCORE}_NAME for each")
        labels = encode_labels(table, TARGET, classes, positive, unknown)
        return labels, (1 - scores if labels.outputs_reversed else scores)[:, None]
    if positive is not None:
        raise ConfigError(f"--positive is for a column {SCORE!r}; each {SCORE}_NAME names its own class")
    scores = np.stack([_numbers(table, f"{SCORE}_{name}") for name in names], axis=1)
    if TARGET in table.columns:
        labels = encode_labels(table, TARGET, names, names[-1] if len(names) == 2 else None, unknown)
        said = tuple(replace(one, source=f"the columns {SCORE}_NAME") for one in labels.assumed)
        return labels._replace(task="multiclass", assumed=said), scores
    columns = [encode_labels(table, f"{TARGET}_{name}", ("0", "1"), unknown=unknown) for name in names]
    targets = np.stack([one.targets for one in columns], axis=1)
    why = {name: codes for one in columns for name, codes in one.why.items()}
    return Labels(targets, tuple(names), "multilabel", False, (), why), scores


def _numbers(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    text = column(table, name, role="score")
    numbers = pd.to_numeric(pd.Series(text), errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~((numbers >= 0) & (numbers <= 1)))
    if len(bad):
        rows = table.index.to_list()
        shown = listed([f"row {rows[place]}: {short(text[place], 60)!r}" for place in bad])
        raise DataError(f"column {name!r} has values that are no probability between 0 and 1:\n{shown}")
    return numbers
