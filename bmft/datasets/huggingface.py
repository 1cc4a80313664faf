"""A Hugging Face dataset on disk: the folder of ``save_to_disk``, or of Parquet files.

Read by pyarrow; nothing is downloaded. Parquet files are named as on the hub, ``data/train-00000-of-00002.parquet``.
Images (the ``Image`` feature: bytes, or a path to a file under the folder) go into a folder beside the manifest, byte
for byte.

- Columns of single values keep their names; class numbers become the names that the features give them, and a list of
  classes becomes a column of 0 and 1 for each class. Other columns are left out, and that is said.
- ``split``: the dataset's own, else the word that a Parquet file's name begins with.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bmft._common import short
from bmft.datasets.extracting import extract
from bmft.errors import DataError

log = logging.getLogger(__name__)
Features = dict[str, Any]


def prepare(root: Path, pictures: Path) -> pd.DataFrame:
    """Read the folder into a manifest, its images into `pictures`."""
    parts: list[pd.DataFrame] = []
    try:
        for split, source in _sources(root):
            with pa.memory_map(str(source)) if source.suffix == ".arrow" else source.open("rb") as file:
                schema, batches = _open(source, file)
                features = _features(schema)
                image = _image_column(source, schema)
                for batch in batches:
                    done = sum(map(len, parts))
                    parts.append(_table(batch, features, image, root, pictures, split, done))
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(f"{root}: not a readable dataset: {short(error)}.") from error
    if not sum(map(len, parts)):
        raise DataError(f"{root}: no rows: expected the folder of save_to_disk, or Parquet files with images in them.")
    table = pd.concat(parts, ignore_index=True).fillna("")
    return table[[*(name for name in table.columns if name != "split"), "split"]]


def _sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Each file of rows, with its split."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give the folder of save_to_disk, or of Parquet files.")
    folders = {root: ""}
    if (root / "dataset_dict.json").is_file():
        folders = {root / name: name for name in json.loads((root / "dataset_dict.json").read_text())["splits"]}
    for folder, split in folders.items():
        if (folder / "state.json").is_file():
            for file in json.loads((folder / "state.json").read_text())["_data_files"]:
                yield split, folder / file["filename"]
        else:
            for path in sorted(folder.rglob("*.parquet")):
                word = re.match(r"[A-Za-z]+", path.name)
                yield split or (word[0] if word and re.search(r"-\d+-of-\d+", path.name) else path.parent.name), path


def _open(source: Path, file: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if source.suffix == ".parquet":
        parquet = pq.ParquetFile(file)
        return parquet.schema_arrow, parquet.iter_batches(batch_size=256)
    reader = pa.ipc.open_stream(file)
    return reader.schema, iter(reader)


def _features(schema: pa.Schema) -> Features:
    """What the dataset says of its columns, in the schema's own metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    found: Features = json.loads(text).get("info", {}).get("features", {}) if text else {}
    return found


def _image_column(source: Path, schema: pa.Schema) -> str:
    def holds_images(field: pa.Field) -> bool:
        kind = field.type
        return pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}

    found = [field.name for field in schema if holds_images(field)]
    if len(found) != 1:
        there = ", ".join(schema.names)
        what = f"{len(found)} columns of images ({', '.join(found)})" if found else "no column of images"
        raise DataError(f"{source}: {what}; expected one, with bytes and path. Its columns are {short(there)}.")
    return str(found[0])


def _table(
    batch: pa.RecordBatch, features: Features, image: str, root: Path, pictures: Path, split: str, done: int
) -> pd.DataFrame:
    images = batch.column(image).to_pylist()
    folder = split or "all"
    columns: dict[str, list[str]] = {
        "path": [_picture(one, root, pictures, f"{folder}/{done + i:06d}") for i, one in enumerate(images)]
    }
    for name in batch.schema.names:
        if name != image:
            columns |= _columns(name, batch.column(name), features.get(name))
    return pd.DataFrame({**columns, "split": [split] * len(images)}, dtype=object)


def _picture(image: Any, root: Path, pictures: Path, name: str) -> str:
    if image is None:
        raise DataError(f"{root}: image {name} is missing.")
    data = image["bytes"]
    if data is None:
        file = (root / str(image["path"])).resolve()
        if not file.is_relative_to(root.resolve()) or not file.is_file():
            raise DataError(
                f"{root}: image {name} is not in the dataset, nor is {short(image['path'])!r} a file under it."
            )
        data = file.read_bytes()
    return extract(data, pictures, name)


def _columns(name: str, values: pa.Array, feature: Any) -> dict[str, list[str]]:
    """The text columns that one column becomes."""
    own = f"dataset_{name}" if name in ("path", "split") else name
    kind, found = values.type, values.to_pylist()
    inner = (feature.get("feature") or feature) if isinstance(feature, dict) else feature
    inner = inner[0] if isinstance(inner, list) and inner else inner
    names = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if names is None:
            log.warning("column %r holds lists and is left out", name)
            return {}
        return {label: ["" if row is None else str(int(k in row)) for row in found] for k, label in enumerate(names)}
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        log.warning("column %r holds no single values and is left out", name)
        return {}
    if names is not None:
        # -1 is "no label" in a ClassLabel.
        return {own: ["" if value is None or value < 0 else str(names[value]) for value in found]}
    return {own: ["" if value is None or value != value else str(value) for value in found]}
