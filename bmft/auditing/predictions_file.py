"""Predictions of any model, in any framework, from a table: so that it can be audited and gated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bmft._common import did_you_mean, listed, short
from bmft.auditing.predictions import Predictions
from bmft.errors import ConfigError, DataError, GroupError
from bmft.tables import (
    Labels,
    Unknown,
    about_classes,
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
    tells_positive,
)

TARGET, SCORE = "y_true", "y_score"
_ROUNDING = 1e-2  # how far from 1 two written probabilities may add up


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
    the probability of the positive one, or with `classes` of their second. Two or more classes: ``y_true`` beside
    ``y_score_NAME`` for every class. Several labels: ``y_true_NAME`` (0/1) beside ``y_score_NAME`` for each. A row
    with an attribute that is empty or a code for it is of an unknown group; one without a label is left out.

    Args:
        path: the table.
        sensitive: attributes as in a manifest: ``"sex"``, ``"age:40,60"``, ``"sex*age:60"``.
        cluster: column of the patient; a row without one is a patient of its own.
        split_column: column that says which split a row is in.
        split: the split to read, or several.
        classes: the classes of ``y_true`` in the order of their numbers.
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
    if len(names) == 1:
        raise DataError(f"there is one column {SCORE}_NAME: call it {SCORE}, or give one for every class")
    if TARGET in table.columns:
        return _of_columns(table, names, classes, positive, unknown)
    if positive is not None or classes is not None:
        raise ConfigError(f"--positive and --classes are for one {TARGET!r}: in each {TARGET}_NAME 1 is positive")
    scores = np.stack([_numbers(table, f"{SCORE}_{name}") for name in names], axis=1)
    columns = [encode_labels(table, f"{TARGET}_{name}", ("0", "1"), unknown=unknown) for name in names]
    targets = np.stack([one.targets for one in columns], axis=1)
    said = about_classes(names, "multilabel", f"the columns {TARGET}_NAME", f"{TARGET}_NAME")
    why = {name: codes for one in columns for name, codes in one.why.items()}
    return Labels(targets, tuple(names), "multilabel", False, (said,), why), scores


def _of_columns(
    table: pd.DataFrame, names: list[str], classes: Sequence[str] | None, positive: str | None, unknown: Unknown
) -> tuple[Labels, NDArray[np.float64]]:
    """One label beside a score for each of its classes; of two classes the positive one's is enough."""
    ordered = names if classes is None else [_one_of(name, names, "--classes") for name in classes]
    if sorted(ordered) != sorted(names):
        raise ConfigError(f"--classes is {', '.join(ordered)}, but the columns {SCORE}_NAME are of {', '.join(names)}")
    source = f"the columns {SCORE}_NAME" if classes is None else "--classes"
    scores = np.stack([_numbers(table, f"{SCORE}_{name}") for name in ordered], axis=1)
    found = {value for value in column(table, TARGET, role="label") if value and not is_code(value)}
    numbered = classes is None and not found & set(names) and all(value.isdigit() for value in found)
    yes = next((pair[1] for pair in (names, names[::-1]) if tells_positive(pair)), None)
    if len(names) > 2 or not (positive or yes or numbered or classes is not None):
        # Of two classes each is measured against the other, where nothing says which one is positive.
        labels = encode_labels(table, TARGET, ordered, positive, unknown)._replace(task="multiclass")
        source = f"the order of the columns {SCORE}_NAME" if numbered else source
        said = about_classes(ordered, "multiclass", source, "--classes", guess=numbered)
        return labels._replace(assumed=(said,)), scores
    _check_sums(names, scores.sum(1))
    if positive is not None:
        positive, source = _one_of(positive, names, "--positive"), "--positive"
    elif classes is None:
        positive = yes
    if numbered and positive is None:
        raise ConfigError(
            f"{TARGET!r} has {', '.join(short(value) for value in sorted(found)[:12])}, and nothing says which of "
            f"{short(names[0])} and {short(names[1])} is positive: say --positive NAME"
        )
    if numbered and ordered[1] != positive:
        # Of labels 0 and 1 the positive one is 1, whatever the order of the columns.
        ordered, scores = ordered[::-1], scores[:, ::-1]
    labels = encode_labels(table, TARGET, ordered, positive, unknown)
    said = about_classes(labels.classes, "binary", source, "--positive")
    return labels._replace(assumed=(said,)), scores[:, [ordered.index(labels.classes[1])]]


def _one_of(name: str, names: Sequence[str], option: str) -> str:
    """The name as the columns have it, whatever its case."""
    for known in names:
        if known.casefold() == name.strip().casefold():
            return known
    raise ConfigError(f"{option}: there is no column {SCORE}_{short(name)}. {did_you_mean(name, names)}")


def _check_sums(names: Sequence[str], sums: NDArray[np.float64]) -> None:
    row = int(np.abs(sums - 1).argmax())
    if abs(sums[row] - 1) > _ROUNDING:
        raise DataError(
            f"{SCORE}_{names[0]} and {SCORE}_{names[1]} add up to {sums[row]:.3g} in row {row}: the probabilities of "
            "two classes add up to 1"
        )


def _numbers(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    text = column(table, name, role="score")
    numbers = pd.to_numeric(pd.Series(text), errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~((numbers >= 0) & (numbers <= 1)))
    if len(bad):
        rows = table.index.to_list()
        shown = listed([f"row {rows[place]}: {short(text[place], 60)!r}" for place in bad])
        raise DataError(f"column {name!r} has values that are no probability between 0 and 1:\n{shown}")
    return numbers
