"""People's data beside images: a table of demographics joined to a manifest by the column that names its images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from bmft._common import did_you_mean, short
from bmft.errors import ConfigError, DataError
from bmft.tables.reading import column, read_table

log = logging.getLogger(__name__)


def join(table: pd.DataFrame, path: Path, by: str | None, keys: Sequence[str] = ()) -> pd.DataFrame:
    """A manifest with the columns of the table at `path`; an image without a row there has empty values.

    The rows are matched by the image's path, its file name with or without the ending, or one of the manifest's
    columns `keys` (a patient, a study): by the column `by`, else by the one that matches most images. A column that
    both have is the manifest's, and the other's is called ``demographics_NAME``.

    Raises:
        ConfigError: there is no column `by`.
        DataError: no column matches an image, two rows are of the same image, or there is no such file.
    """
    people = read_table(path)
    if by is not None and by not in people.columns:
        raise ConfigError(f"{path}: no column {by!r} to join by. {did_you_mean(by, map(str, people.columns))}")
    found = [
        (sum(name in known for name in names), name_of_column, what, names, known)
        for name_of_column in ([by] if by is not None else map(str, people.columns))
        for known in [set(column(people, name_of_column, role="join")) - {""}]
        for what, names in _names(table, keys).items()
    ]
    most = max(found, key=lambda one: one[0], default=None)
    if most is None or not most[0]:
        first = table["path"].iloc[0] if "path" in table else ""
        raise DataError(
            f"{path}: no column names the images, such as {short(first, 60)!r}. Give one of paths or file names"
            f"{f', or of {short(keys[0])}' if keys else ''}, and name it with --by COLUMN."
        )
    matched, name, what, names, known = most
    values = column(people, name, role="join")
    twice = pd.Series(values)[pd.Series(values).duplicated() & pd.Series(values).isin(set(names))]
    if len(twice):
        raise DataError(f"{path}: column {name!r} has {short(twice.iloc[0], 60)!r} in two rows; expected one each.")
    people = people.set_axis(values, axis=0)[values != ""].drop(columns=[] if what in keys and name == what else [name])
    taken = set(table.columns)
    people.columns = pd.Index([f"demographics_{one}" if one in taken else str(one) for one in people.columns])
    joined = people.reindex(names).fillna("").set_axis(table.index, axis=0)
    log.warning(
        "%s: joined by its column %r to the images' %s: %d of %d images, %d of %d rows",
        *(path.name, name, what, matched, len(table), len(known & set(names)), len(values)),
    )
    result: pd.DataFrame = pd.concat([table, joined], axis=1)
    result.attrs = table.attrs
    return result


def _names(table: pd.DataFrame, keys: Sequence[str]) -> Mapping[str, list[str]]:
    """What an image may be called in another table; a name that several images have is none of them."""
    found: dict[str, list[str]] = {}
    if "path" in table:
        paths = [PurePosixPath(path) for path in table["path"]]
        files = {"path": [str(path) for path in paths]}
        files |= {
            "file name": [path.name for path in paths],
            "file name without its ending": [path.stem for path in paths],
        }
        found |= dict(_unique(files))
    return found | {key: list(column(table, key, role="join")) for key in keys}


def _unique(files: Mapping[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    for what, names in files.items():
        repeated = pd.Series(names).duplicated(keep=False)
        yield what, ["" if twice else name for name, twice in zip(names, repeated, strict=True)]
