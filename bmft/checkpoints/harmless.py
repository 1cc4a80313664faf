"""Types that training scripts keep beside weights, and that reading cannot make run code."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import os
import pathlib
import pickle
import types
import uuid
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import numpy as np


class _ForeignPath(pathlib.PureWindowsPath if os.name == "posix" else pathlib.PurePosixPath):  # type: ignore[misc]
    """A path of the other kind of system, which cannot be made here; it is written back as what it was."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_FOREIGN, self.parts)


_FOREIGN = pathlib.WindowsPath if os.name == "posix" else pathlib.PosixPath
_TYPES = (
    argparse.Namespace,
    types.SimpleNamespace,
    collections.Counter,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    decimal.Decimal,
    fractions.Fraction,
    uuid.UUID,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    pathlib.Path().__class__,
    complex,
    frozenset,
    set,
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
)
_RECONSTRUCT = cast(Any, np.zeros(1).__reduce__()[0])
_SCALAR = cast(Any, np.float64(0).__reduce__()[0])


def harmless() -> list[Any]:
    """For `torch.serialization.safe_globals`: types, and those that other versions and systems call otherwise."""
    named: list[Any] = list(_TYPES)
    for module in ("pathlib", "pathlib._local"):
        named += [(kind, f"{module}.{kind.__name__}") for kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath)]
        named += [(pathlib.Path().__class__, f"{module}.{pathlib.Path().__class__.__name__}")]
        named += [(_ForeignPath, f"{module}.{_FOREIGN.__name__}")]
    for package in ("numpy.core", "numpy._core"):
        named += [(_RECONSTRUCT, f"{package}.multiarray._reconstruct"), (_SCALAR, f"{package}.multiarray.scalar")]
    if find_spec("fastcore"):
        # The list in which fastai keeps an optimizer's settings.
        named.append(import_module("fastcore.foundation").L)
    return named


class Unpickler(pickle.Unpickler):
    """Python's own, for files that are trusted, with paths of the other kind of system."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name here."""
        if name == _FOREIGN.__name__ and module.split(".")[0] == "pathlib":
            return _ForeignPath
        return super().find_class(module, name)


def load(file: Any, **options: Any) -> Any:
    """As `pickle.load`, by `Unpickler`."""
    return Unpickler(file, **options).load()
