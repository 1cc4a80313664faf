"""What wrappers and old versions of libraries made of a network's names, and the way back."""

import re
from collections.abc import Iterable

WRAPPERS = (
    "module.",  # DataParallel
    "model.",
    "net.",
    "backbone.",
    "_orig_mod.",  # torch.compile
    "_module.",  # Opacus
    "_forward_module.",  # Lightning Fabric
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)
# These stand before any layer that was wrapped, not only before the whole network; no layer is called so.
_WITHIN = r"_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module"
_LEADING = re.compile(rf"(?:(?:{'|'.join(re.escape(wrapper) for wrapper in WRAPPERS)}))*")
_PRIVATE = re.compile(rf"(?:(?<=^)|(?<=\.))(?:{_WITHIN})\.")
_ANY = re.compile(rf"(?:(?<=^)|(?<=\.))(?:{_WITHIN}|module)\.")
# torchvision's DenseNet until 2017
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")


def prefixes(keys: Iterable[str], *, any_name: bool = False) -> list[str]:
    """What DataParallel, Lightning, torch.compile may have put before the names, from nothing to all of it.

    With `any_name` whatever stands before nine names in ten counts, too.

    >>> prefixes(["module.model.conv.weight", "module.model.fc.weight", "criterion.weight"])
    ['', 'module.', 'module.model.']
    """
    found, left = [""], list(keys)
    while left:
        groups: dict[str, list[str]] = {}
        for key in left:
            first, dot, rest = key.partition(".")
            groups.setdefault(first + dot, []).append(rest)
        largest = max(groups, key=lambda group: len(groups[group]))
        common = any_name and largest.endswith(".") and len(groups[largest]) > 0.9 * len(left)
        if largest not in WRAPPERS and not common:
            break
        found.append(found[-1] + largest)
        left = groups[largest]
    return found


def spellings(keys: Iterable[str]) -> list[dict[str, str]]:
    """Ways to read the keys, each today's name -> the file's key: without wrappers within, as they are, without any.

    >>> spellings(["module.features._fsdp_wrapped_module.denselayer1.norm.1.bias"])[::2]
    [{'module.features.denselayer1.norm1.bias': 'module.features._fsdp_wrapped_module.denselayer1.norm.1.bias'}, \
{'features.denselayer1.norm1.bias': 'module.features._fsdp_wrapped_module.denselayer1.norm.1.bias'}]
    """
    keys = list(keys)
    ways = ({_plain(key): key for key in keys}, {key: key for key in keys}, {_bare(key): key for key in keys})
    found: list[dict[str, str]] = []
    for way in ways:
        # Two keys that would get one name are two weights.
        if len(way) == len(keys) and way not in found:
            found.append(way)
    return found


def _plain(key: str) -> str:
    leading = _LEADING.match(key)
    end = leading.end() if leading else 0
    return key[:end] + _OLD_DENSENET.sub(r"\1\2", _PRIVATE.sub("", key[end:]))


def _bare(key: str) -> str:
    return _OLD_DENSENET.sub(r"\1\2", _ANY.sub("", key))
