"""WebDataset shards: ``shard-000000.tar`` and its like, a folder of them, or ``shard-{000000..000007}.tar``.

The files of a tar that share a name up to the first dot are one sample. Images (jpg, jpeg, png, webp, ...) go into a
folder beside the manifest, byte for byte.

- ``label``: the content of ``.cls``. The keys of ``.json``, and other short texts (``.txt``, ``.sex``), are columns.
- ``key``: the sample's name. ``split``: the word that the shard's name begins with, where it is one (train, val, test).
- ``--demographics CSV`` is joined by the key.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from bmft._common import short
from bmft.datasets import official
from bmft.datasets.extracting import extract
from bmft.datasets.folder import SPLITS
from bmft.errors import DataError

IMAGES = {ending.lstrip(".") for ending in (*official.IMAGES, ".webp", ".ppm")}
LONGEST = 1 << 20  # bytes of a text that may be columns


def prepare(root: Path, pictures: Path) -> pd.DataFrame:
    """Read the shards into a manifest, their images into `pictures`."""
    shards = _shards(root)
    rows = [row for shard in shards for row in _rows(shard, pictures)]
    if not rows:
        raise DataError(f"{root}: no sample with an image in {len(shards)} shards.")
    table = pd.DataFrame(rows).fillna("")
    table = table[[*(name for name in table.columns if name != "split"), "split"]]
    table.attrs["keys"] = ("key",)
    return table


def _shards(root: Path) -> list[Path]:
    if root.is_dir():
        found = sorted([*root.glob("*.tar"), *root.glob("*/*.tar")])
    elif braces := re.search(r"\{(\d+)\.\.(\d+)\}", root.name):
        first, last = braces[1], braces[2]
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        found = [root.with_name(root.name.replace(braces[0], number)) for number in numbers]
    else:
        found = [root]
    if missing := [shard for shard in found if not shard.is_file()]:
        raise DataError(f"{missing[0]}: no such shard.")
    if not found:
        raise DataError(f"{root}: no shards: expected files that end in .tar.")
    return found


def _rows(shard: Path, pictures: Path) -> Iterator[dict[str, str]]:
    word = (re.match(r"[A-Za-z]+", shard.name) or [""])[0]
    split = word if word.lower() in SPLITS else ""
    number = 0
    for key, parts in _samples(shard):
        images = [ending for ending in parts if ending.split(".")[-1] in IMAGES]
        if len(images) > 1:
            raise DataError(
                f"{shard}: sample {short(key)!r} has {len(images)} images: {', '.join(images)}; expected one."
            )
        if not images:
            continue
        try:
            path = extract(parts.pop(images[0]), pictures, f"{shard.stem}/{number:06d}")
        except DataError as error:
            raise DataError(f"{shard}: sample {short(key)!r}: {error}") from error
        number += 1
        yield {"path": path, "key": key, **_columns(shard, key, parts), "split": split}


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample's name and its parts by their endings, in the order of the tar."""
    key, parts = "", dict[str, bytes]()
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                name = re.match(r"((?:.*/)?[^/.]+)\.([^/]+)$", member.name)
                if not member.isfile() or name is None:
                    continue
                if name[1] != key and parts:
                    yield key, parts
                    parts = {}
                key, file = name[1], archive.extractfile(member)
                parts[name[2].lower()] = b"" if file is None else file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{shard}: not a readable tar: {short(error)}.") from error
    if parts:
        yield key, parts


def _columns(shard: Path, key: str, parts: dict[str, bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for ending, content in parts.items():
        if len(content) > LONGEST:
            continue
        try:
            text = content.decode("utf-8")
            values: Any = (
                json.loads(text) if ending == "json" else {"label" if ending == "cls" else ending: text.strip()}
            )
        except ValueError as error:
            if ending in ("json", "cls"):
                raise DataError(f"{shard}: {ending} of sample {short(key)!r}: {short(error)}") from error
            continue
        single = values.items() if isinstance(values, dict) else ()
        found |= {str(n): "" if v is None else str(v) for n, v in single if not isinstance(v, list | dict)}
    return {name: value for name, value in found.items() if name not in ("path", "key", "split")}
