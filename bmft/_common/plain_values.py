"""Values as JSON has them."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from math import isfinite
from typing import Any


def plain(value: Any) -> Any:
    """A value, or what its ``to_dict`` gives, of numbers, texts, lists and dicts only; NaN and infinity are None.

    Pictures (bytes) in a dict are left out: the HTML holds them.

    >>> plain({"gap": float("nan"), "ends": (0.1, 1)})
    {'gap': None, 'ends': [0.1, 1]}
    """
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if not isinstance(item, bytes)}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
