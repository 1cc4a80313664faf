"""Files written whole or not at all: a reader, a full disk or a kill never leaves half of one under its name."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIZES = {"U": (8, 16, 32, 64), "I": (8, 16, 32, 64), "F": (16, 32, 64)}  # in bits
_NUMBERS = {f"{kind}{size}": f"<{kind.lower()}{size // 8}" for kind, sizes in _SIZES.items() for size in sizes}
_NUMBERS["BOOL"] = "?"


def put(content: str | bytes, path: str | os.PathLike[str]) -> None:
    r"""Write a file whole or not at all; text as UTF-8, its line ends as they are.

    Raises:
        OSError: it cannot be written; what was there before still is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     put("a,b\n", f"{folder}/table.csv")
    ...     Path(folder, "table.csv").read_bytes()
    b'a,b\n'
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and tensors of a safetensors file as arrays, without torch; bfloat16, which numpy lacks, as float32.

    Raises:
        SafetensorError: it is none, or damaged.
        OSError, ValueError: it cannot be read, or numpy has no such numbers.
    """
    from safetensors import deserialize

    content = Path(path).read_bytes()
    tensors = {name: _array(name, tensor) for name, tensor in deserialize(content)}  # type: ignore[no-untyped-call]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header.get("__metadata__", {})), tensors


def _array(name: str, tensor: dict[str, Any]) -> NDArray[Any]:
    import numpy as np

    kind, data = tensor["dtype"], tensor["data"]
    if kind == "BF16":
        # The upper half of a float32.
        flat = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif kind == "F8_E5M2":
        # The upper half of a float16.
        flat = (np.frombuffer(data, "u1").astype("<u2") << 8).view("<f2")
    elif kind in _NUMBERS:
        flat = np.frombuffer(data, _NUMBERS[kind])
    else:
        raise ValueError(f"{name!r} is of type {kind}, which is read with torch only")
    return flat.reshape(tensor["shape"])


def in_order(content: bytes) -> bytes:
    r"""A safetensors file whose metadata are sorted by name, so that the same values are the same bytes.

    The library writes them in an order that differs from process to process.

    >>> header = b'{"__metadata__":{"b":"2","a":"1"}} '
    >>> in_order(len(header).to_bytes(8, "little") + header + b"data")[8:]
    b'{"__metadata__":{"a":"1","b":"2"}}      data'
    """
    return with_metadata(content, lambda metadata: dict(sorted(metadata.items())))


def with_metadata(content: bytes, change: Callable[[dict[str, str]], dict[str, str]]) -> bytes:
    """A safetensors file, or its first bytes up to the data, with its metadata changed."""
    end = 8 + int.from_bytes(content[:8], "little")
    places = json.loads(content[8:end])
    metadata = change(places.pop("__metadata__", None) or {})
    header = ({"__metadata__": metadata} if metadata else {}) | places
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BufferedWriter]:
    """A binary file to write into, which takes the place of `path` when the block ends without an error.

    It lies beside `path` under a hidden name and is on the disk before it is renamed. What is no ordinary file
    (``/dev/stdout``, a named pipe) cannot be replaced and is written to as it is.

    Raises:
        OSError: it cannot be written; the error names `path`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/weights.bin") as file:
    ...         _ = file.write(bytes(3))
    ...     os.listdir(folder)
    ['weights.bin']
    """
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        with target.open("wb") as file:
            yield file
        return
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            # Else a crash of the machine could leave the new name with nothing behind it.
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.filename in (None, os.fspath(temporary)):
            raise OSError(error.errno, error.strerror or str(error), os.fspath(target)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
