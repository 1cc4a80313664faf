"""How a network is named: a library and its network, or a function of one's own, with options."""

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from bmft._common import did_you_mean, short
from bmft.errors import ArchitectureError

_FROM_CHECKPOINT = ("pretrained", "weights", "checkpoint_path", "num_classes")


class Named(NamedTuple):
    """A network's name without its options, and these."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def library(self) -> str:
        """What stands before the colon; empty for a bare name."""
        return self.name.rpartition(":")[0]


def parsed(arch: str) -> Named:
    """``name,a=1,b=(2, 3)`` or ``name(1, a=2)`` taken apart; a value that is no literal of Python is a text.

    Raises:
        ArchitectureError: the options cannot be read, or set what the weights decide.

    >>> parsed("vit.py:Net(2, depths=(1, 1), pool=avg)")
    Named(name='vit.py:Net', arguments=(2,), options={'depths': (1, 1), 'pool': 'avg'})
    """
    called = arch.endswith(")") and "(" in arch
    name, _, inside = arch.removesuffix(")").partition("(") if called else arch.partition(",")
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        call = None
    if not isinstance(call, ast.Call) or any(word.arg is None for word in call.keywords):
        raise _unreadable(arch)
    if (call.args or arch.endswith(",")) and not called:
        raise _unreadable(arch)
    options = {str(word.arg): _value(f"f({inside})", word.value) for word in call.keywords}
    if ":" not in name or name.split(":")[0] in ("torchvision", "timm"):
        for key in set(_FROM_CHECKPOINT) & set(options):
            raise ArchitectureError(f"arch {arch!r}: {key!r} cannot be set, since the weights come from the checkpoint")
    return Named(name, tuple(_value(f"f({inside})", value) for value in call.args), options)


def spelled(named: Named, more: Mapping[str, Any]) -> str:
    """The name with further options, to be parsed again.

    >>> spelled(parsed("timm:vit_tiny_patch16_224"), {"img_size": 64})
    'timm:vit_tiny_patch16_224,img_size=64'
    """
    options = [f"{key}={value!r}" for key, value in {**named.options, **more}.items()]
    if named.arguments:
        return f"{named.name}({', '.join([*map(repr, named.arguments), *options])})"
    return ",".join([named.name, *options])


def found_function(name: str) -> Callable[..., Any]:
    """The object that ``package.module:function`` or ``path/to/file.py:Class`` names; importing it runs its code.

    Raises:
        ArchitectureError: there is none.
    """
    place, _, attribute = name.rpartition(":")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place, name)
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ArchitectureError(no_network(attribute, place, dir(module)))
    return found  # type: ignore[no-any-return]


def no_network(name: str, where: str, known: Iterable[str]) -> str:
    """The sentence for a network that there is not."""
    own = "A network of your own is named package.module:factory or path/to/file.py:Class."
    return f"{where} has no network {short(name)!r}. {did_you_mean(name, known, own)}"


def _unreadable(arch: str) -> ArchitectureError:
    return ArchitectureError(
        f"arch {short(arch)!r}: expected options as in 'timm:vit_tiny_patch16_224,img_size=64' or "
        "'path/to/file.py:Net(depth=2, sizes=(8, 16))'"
    )


def _value(text: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    # What `literal_eval` says of text that is no Python value, or one too deep or odd to hold.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ast.get_source_segment(text, node)


def _from_package(path: str, name: str) -> Any:
    try:
        return import_module(path)
    except ImportError as error:
        raise ArchitectureError(
            f"{name}: module {path!r} cannot be imported ({error}). Run from the folder that holds it, or install it."
        ) from error


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise ArchitectureError(f"{path} does not exist: expected the file that defines the network, path/to/file.py")
    name = f"_bmft_{path.stem}_{abs(hash(path.resolve()))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ArchitectureError(f"{path} is no file of Python")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    # What the file imports from beside it is found, after all else.
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        del sys.modules[name]
        raise ArchitectureError(f"{path} cannot be imported: {short(error)}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
