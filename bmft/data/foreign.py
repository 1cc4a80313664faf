"""Data sets of other libraries: a Hugging Face dataset, torch Datasets, an ImageFolder, a Lightning DataModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from bmft._common import short
from bmft.data.dataset import GroupedData
from bmft.data.loading import grouped_from
from bmft.data.preprocessing import Preprocessing
from bmft.data.sources import ArraySource, prepared_images
from bmft.errors import ConfigError, DataError
from bmft.tables import ClassNames, join, read_manifest

Item = Mapping[str, Any]
PARTS = {"fit": "train_dataloader", "select": "val_dataloader", "test": "test_dataloader"}


def from_dataset(
    data: Any,
    *,
    target: str | int | Sequence[str],
    sensitive: str | int | Sequence[str],
    inputs: str | int | None = None,
    cluster: str | int | None = None,
    people: str | Path | None = None,
    by: str | None = None,
    image_size: int | None = None,
    normalize: str | None = None,
    transform: Callable[[Image.Image], Any] | None = None,
    channels: int = 3,
    classes: Sequence[str] | ClassNames | None = None,
    positive: str | None = None,
) -> GroupedData:
    """Read a data set of another library into memory: its items are dicts, or tuples whose parts are called by place.

    Taken are a Hugging Face ``Dataset``, a torch ``Dataset``, torchvision's ``ImageFolder`` (its items have a ``path``,
    too), a ``Subset`` of these, and a ``DataLoader``, whose data set is read once, in order.

    Args:
        data: the data set.
        target: the part that is the label (a name, or a place in a tuple), or several of 0/1 each.
        sensitive: the parts that are attributes, written as for `load_manifest`: ``"sex"``, ``"age:40,60"``.
        inputs: the part that the model is shown; by default the only one that is an image or an array.
        cluster: the part with patient ids.
        people: a table with attributes of an ImageFolder's images, joined as ``bmft prepare folder`` does; `by` names
            its column.
        image_size, normalize, transform, channels: for parts that are PIL images, see `load_manifest`.
        classes, positive: which class is which, see `load_manifest`; by default as the data set names them.

    Raises:
        ConfigError: there is no such part, or several could be the inputs.
        DataError: no items, or inputs of several shapes.

    >>> items = [{"x": torch.ones(2) * i, "ill": i % 2, "sex": "fm"[i // 2]} for i in range(4)]
    >>> from_dataset(items, target="ill", sensitive="sex")
    GroupedData(n=4, task='binary', classes=('0', '1'), attributes=(sex))
    """
    source = data.dataset if isinstance(data, DataLoader) else data
    items = list(_items(source))
    if not items:
        raise DataError("the data set has no items.")
    shown = _inputs(items[0]) if inputs is None else str(inputs)
    named = [str(name) for name in ([target] if isinstance(target, str | int) else target)]
    names = _class_names(source, named[0]) if len(named) == 1 else None
    if shown not in items[0]:
        raise ConfigError(f"inputs {shown!r}: an item has {short(', '.join(items[0]))}.")
    table = pd.DataFrame([_texts(item) for item in items], dtype=object).fillna("")
    if names and named[0] in table:
        table[named[0]] = [names[int(code)] if code.isdigit() else "" for code in table[named[0]]]
        classes = names if classes is None else classes
    if people is not None:
        table = join(table, Path(people), by)
    manifest = read_manifest(
        Path(type(source).__name__),
        named[0] if len(named) == 1 else named,
        str(sensitive) if isinstance(sensitive, int) else sensitive,
        table=table,
        classes=classes,
        positive=positive,
        cluster=None if cluster is None else str(cluster),
    )
    how = Preprocessing(image_size, normalize, transform=transform)
    values = [item[shown] for item in items]
    if not isinstance(values[0], Image.Image):
        return grouped_from(manifest, _arrays(values), manifest.rows, manifest.rows, ())
    how.check()
    images = prepared_images(values, how, channels)
    assumed = how.assumed(None, "", resized=images.resized)
    return grouped_from(manifest, images, manifest.rows, manifest.rows, assumed)


def from_datamodule(module: Any, **options: Any) -> dict[str, GroupedData]:
    """The sets of a Lightning ``DataModule``: ``fit`` is its train set, ``select`` val, ``test`` if there is one.

    ``bmft.debias(model, **bmft.from_datamodule(module, target="label", sensitive="sex"))``

    Args:
        module: it is prepared and set up first, as a Trainer would. Of each loader the data set is read, in order.
        options: for `from_dataset`.

    Raises:
        ConfigError: it has no train or no val loader.
    """
    written = {role: name for role, name in PARTS.items() if _is_written(module, name)}
    if missing := [name for role, name in PARTS.items() if role != "test" and role not in written]:
        raise ConfigError(f"{type(module).__name__} has no {missing[0]}: fit is read from train, select from val.")
    module.prepare_data()
    module.setup("fit")
    found = {role: from_dataset(getattr(module, written[role])(), **options) for role in ("fit", "select")}
    if "test" in written:
        module.setup("test")
        found["test"] = from_dataset(module.test_dataloader(), **options)
    return found


def _is_written(module: Any, name: str) -> bool:
    """Whether a module has a loader of its own: Lightning's base classes have one that only raises."""
    method = getattr(type(module), name, None)
    return method is not None and method.__module__.split(".")[0] not in ("lightning", "pytorch_lightning")


def _items(data: Any) -> Iterator[Item]:
    paths = _paths(data)
    length = len(data) if hasattr(data, "__len__") else None
    each = (data[i] for i in range(length)) if length is not None and hasattr(data, "__getitem__") else iter(data)
    for place, item in enumerate(each):
        if isinstance(item, Mapping):
            yield {str(name): value for name, value in item.items()}
        elif isinstance(item, tuple | list):
            more = {} if paths is None else {"path": paths[place]}
            yield {**{str(i): value for i, value in enumerate(item)}, **more}
        else:
            raise DataError(f"item {place} is a {type(item).__name__}: expected a dict or a tuple.")


def _paths(data: Any) -> list[str] | None:
    """The images' paths under the root of an ImageFolder; None for other data sets."""
    if isinstance(data, Subset):
        whole = _paths(data.dataset)
        return None if whole is None else [whole[i] for i in data.indices]
    samples, root = getattr(data, "samples", None), getattr(data, "root", None)
    if samples is None or root is None:
        return None
    return [Path(sample[0]).relative_to(root).as_posix() for sample in samples]


def _class_names(data: Any, target: str) -> list[str] | None:
    """How a data set names its class numbers: a ClassLabel of Hugging Face, or an ImageFolder's folders."""
    if isinstance(data, Subset):
        return _class_names(data.dataset, target)
    features = getattr(data, "features", None)
    feature = features.get(target) if isinstance(features, Mapping) else None
    names = getattr(feature, "names", None) or (getattr(data, "classes", None) if target == "1" else None)
    return None if names is None else [str(name) for name in names]


def _inputs(item: Item) -> str:
    """The only part that is an image or an array of several numbers."""
    found = [name for name, value in item.items() if isinstance(value, Image.Image) or np.size(_number(value)) > 1]
    if len(found) != 1:
        what = "several parts" if found else "no part"
        raise ConfigError(f"{what} could be the inputs: an item has {short(', '.join(item))}. Name it: inputs=...")
    return found[0]


def _number(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value if isinstance(value, np.ndarray) else 0


def _texts(item: Item) -> dict[str, str]:
    """The parts that are single values, as a table has them."""
    found = {}
    for name, value in item.items():
        numeric = isinstance(value, Tensor | np.ndarray | np.generic)
        single = value.item() if numeric and np.size(_number(value)) == 1 else value
        if single is None or isinstance(single, str | int | float | bool):
            plain = int(single) if isinstance(single, bool) else single
            found[name] = "" if plain is None or plain != plain else str(plain)
    return found


def _arrays(values: Sequence[Any]) -> ArraySource:
    tensors = [torch.as_tensor(value).detach().cpu() for value in values]
    if odd := [tensor.shape for tensor in tensors if tensor.shape != tensors[0].shape]:
        raise DataError(f"inputs of the shapes {tuple(tensors[0].shape)} and {tuple(odd[0])}: expected one shape.")
    stacked = torch.stack(tensors)
    return ArraySource(stacked.float() if stacked.is_floating_point() else stacked)
