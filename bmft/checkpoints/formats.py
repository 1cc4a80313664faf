"""Files of weights: told apart by content, read without running their code, written back as they were."""

import hashlib
import json
import os
import pickle
import pickletools
import re
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bmft._common import replacing
from bmft.checkpoints import harmless
from bmft.checkpoints.layout import held_model
from bmft.errors import CheckpointError, UntrustedPickleError

ZIP, LEGACY, PICKLE, SAFETENSORS = "torch", "torch (before 1.6)", "pickle", "safetensors"

_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LONGEST_HEADER = 100_000_000
# What the readers raise when bytes from anywhere make no sense to them.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.PickleError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# Records of an archive that torch.export writes, today's and older.
_EXPORTED = {"serialized_exported_program.json", "models/model.json", "archive_format"}
_FOREIGN: Mapping[str, Callable[[bytes, Path], bool]] = {
    "an ONNX model": lambda start, path: start[:1] == b"\x08" and (path.suffix == ".onnx" or b"pytorch" in start),
    "a Keras or HDF5 file": lambda start, _: start.startswith(b"\x89HDF"),
    "a TensorFlow Lite model": lambda start, _: start[4:8] == b"TFL3",
}
# What a pickle of plain tensors names.
_PLAIN = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.\w+Storage|torch\.storage\.\w+Storage|"
    r"torch\.nn\.parameter\.Parameter|torch\._tensor\._rebuild_\w+|torch\.(Size|device|Tensor|strided)|_codecs\.encode"
)


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder and the files of weights in it.

    Attributes:
        path: where it is.
        parts: path within the folder -> the file's content, shards in their order.
        names: the content's names -> those in the files, where a library gives its own.
        stale: files in it that hold the same weights another way, which would be wrong beside new ones.
        said: its ``config.json``.
    """

    path: Path
    parts: Mapping[str, "WeightFile"]
    names: Mapping[str, str] | None = None
    stale: tuple[str, ...] = ()
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class WeightFile:
    """What a file holds.

    Attributes:
        kind: `ZIP`, `LEGACY`, `PICKLE` or `SAFETENSORS`.
        content: what ``torch.load`` gives; of safetensors name -> tensor, in the file's order.
        content_hash: SHA-256 of the file.
        metadata: safetensors' own.
        header: safetensors' first bytes, up to the data.
        folder: the folder that was read, if it was one.
    """

    kind: str
    content: Any
    content_hash: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    header: bytes = b""
    folder: Folder | None = None


def read_file(path: Path, *, trust_pickle: bool = False) -> WeightFile:
    """Read a file of weights, on the CPU.

    No code of the file runs unless `trust_pickle` is set, and even then only if it holds more than plain
    tensors.

    Raises:
        UntrustedPickleError: it holds more than plain tensors and is not trusted.
        CheckpointError: it is no such file, or damaged.
    """
    try:
        with _opened(path) as file:
            kind = _kind(file, path)
            file.seek(0)
            content_hash = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if kind == SAFETENSORS:
                return _read_safetensors(file, content_hash)
            if kind == ZIP:
                _check_zip(file, path)
            with warnings.catch_warnings():
                # Torch remarks on how a file was made, which its user cannot help.
                warnings.simplefilter("ignore")
                content = _read_pickle(file, path, kind, trust_pickle)
            return WeightFile(kind, content, content_hash)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} is damaged or cut short and cannot be read: {_first_line(error)} Copy or save it again."
        ) from error


def write_file(file: WeightFile, content: Any, path: Path) -> None:
    """Write `content` as the kind of file that `file` was; files from before torch 1.6 as today's.

    The file appears whole or not at all, and its bytes depend on the content alone.

    Raises:
        CheckpointError: it cannot be written there.
    """
    try:
        with replacing(path) as target:
            if file.kind == SAFETENSORS:
                _write_safetensors(file.header, content, target)
            elif held_model(content) and callable(export := getattr(content, "export", None)):
                # fastai's Learner cannot be pickled as it is once it was read: it knows how.
                target.write(_exported_by(export))
            elif file.kind == PICKLE:
                pickle.dump(content, target)
            else:
                # Into an open file, since torch.save puts a path's name into the bytes.
                torch.save(content, target)
    except (OSError, RuntimeError) as error:
        # Torch wraps what the disk said in a remark about its own archive.
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else None
        raise CheckpointError(f"{path} cannot be written: {reason or _first_line(error)}") from error


def _exported_by(export: Callable[[Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "export.pkl"
        export(path)
        return path.read_bytes()


def _opened(path: Path) -> BufferedReader:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: expected a file of weights; check the path")
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error


def _kind(file: BufferedReader, path: Path) -> str:
    start = file.read(32)
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise CheckpointError(f"{path} is empty: expected a file of weights; save or copy it again")
    if start.startswith(b"PK\x03\x04"):
        return ZIP
    if start[:1] == b"\x80" and _LEGACY_MAGIC in start:
        return LEGACY
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= min(size - 8, _LONGEST_HEADER):
        return SAFETENSORS
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return PICKLE
    for kind, is_it in _FOREIGN.items():
        if is_it(start, path):
            raise CheckpointError(
                f"{path} is {kind}, which holds no weights of PyTorch. Give the checkpoint that it was made from; its "
                "predictions alone are measured by bmft audit --predictions."
            )
    raise CheckpointError(
        f"{path} is no file of weights (it begins with {start[:8]!r}), or it is cut short: "
        "expected what torch.save or safetensors writes"
    )


def _check_zip(file: BufferedReader, path: Path) -> None:
    """Refuse what torch.save does not write, before torch unpacks it."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = {record.filename.partition("/")[2] for record in records}
        if "constants.pkl" in names:
            raise CheckpointError(
                f"{path} is a TorchScript archive, whose layers cannot be taken apart. Save its weights: "
                "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
            )
        if names & _EXPORTED or any(name.startswith("data/aotinductor/") for name in names):
            raise CheckpointError(
                f"{path} is a program of torch.export (pt2), whose layers cannot be taken apart. Save its weights, and "
                "name the network with --arch: torch.save(torch.export.load(path).state_dict, 'weights.pt')"
            )
        if "data.pkl" not in names:
            raise CheckpointError(f"{path} is a zip file but not one that torch.save writes: it has no data.pkl")
        if sum(record.file_size for record in records) > file.seek(0, os.SEEK_END):
            raise CheckpointError(f"{path} unpacks to more than it holds, which torch.save never writes: refused")
        # Torch does not check them, and a weight with a flipped bit is worse than none.
        if (broken := archive.testzip()) is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {broken!r} is wrong. Copy or save it again.")


def _read_pickle(file: BufferedReader, path: Path, kind: str, trust: bool) -> Any:
    file.seek(0)
    if kind == PICKLE:
        if not trust:
            raise UntrustedPickleError(_refusal(path, _named(file, kind)))
        return _read_trusted(file, path, kind)
    try:
        with torch.serialization.safe_globals(harmless.harmless()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        named = _named(file, kind)
        # An archive's checksums have been compared: what torch cannot unpickle there is more than tensors.
        if not named and not (kind == ZIP and isinstance(error, pickle.UnpicklingError)):
            raise
        if not trust:
            raise UntrustedPickleError(_refusal(path, named)) from None
    return _read_trusted(file, path, kind)


def _read_trusted(file: BufferedReader, path: Path, kind: str) -> Any:
    file.seek(0)
    try:
        if kind == PICKLE:
            return harmless.load(file)
        return torch.load(file, map_location="cpu", weights_only=False, pickle_module=harmless)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} needs code that cannot be imported here: {_first_line(error)} Install it or run "
            "where it is, or save only the weights there: torch.save(model.state_dict(), ...)."
        ) from error


def _refusal(path: Path, named: list[str]) -> str:
    shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
    return (
        f"{path} holds more than plain tensors{f' ({shown})' if named else ''}, and reading that can run "
        "code: refused. Save only the weights, torch.save(model.state_dict(), ...), or, if you trust the "
        "source, give --trust-pickle (trust_pickle=True)."
    )


def _named(file: BufferedReader, kind: str) -> list[str]:
    """The classes and functions that reading the pickle would import, plain tensors' own left out."""
    file.seek(0)
    if kind == ZIP:
        try:
            with torch.serialization.safe_globals(harmless.harmless()):
                return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
        # Torch looks into no pickle with instructions that its own never have, such as fastai's export.
        except pickle.UnpicklingError:
            return _plain_left_out(_globals_in_archive(file))
    # Before torch 1.6 a magic number, a version and the machine's integers stand before the content.
    names = {name for _ in range(4 if kind == LEGACY else 1) for name in _globals(file)}
    return _plain_left_out(names)


def _plain_left_out(names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if not _PLAIN.fullmatch(name)})


def _globals_in_archive(file: BufferedReader) -> Iterator[str]:
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(name) as content:
            yield from _globals(content)


def _globals(file: IO[bytes]) -> Iterator[str]:
    strings = ["", ""]
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def _read_safetensors(file: BufferedReader, content_hash: str) -> WeightFile:
    data = file.read()
    tensors = safetensors.torch.load(data)
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    metadata = header.pop("__metadata__", None) or {}
    return WeightFile(SAFETENSORS, {name: tensors[name] for name in header}, content_hash, metadata, data[:length])


def _write_safetensors(header: bytes, tensors: Mapping[str, Tensor], target: BufferedWriter) -> None:
    # The header says where every tensor lies, and none has changed its size: only the data are new.
    places = {name: place for name, place in json.loads(header[8:]).items() if name != "__metadata__"}
    target.write(header)
    for name in sorted(places, key=lambda name: places[name]["data_offsets"]):
        target.write(tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
