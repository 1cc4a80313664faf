"""Methods on a model whose outputs have the positive class first: run on a copy that has it last, and turned back."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, cast

from torch import nn

from bmft.checkpoints import WeightPatch
from bmft.data import GroupedData, as_grouped
from bmft.errors import DataError
from bmft.masks import WeightMask
from bmft.models import copied, find_head, reading_of, settle, tensors_of, turn_head, turned_model, working_copy
from bmft.training import Conditions

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")
_SETS = ("fit", "select", "data", "test")


def positive_last(function: Callable[Arguments, Found]) -> Callable[Arguments, Found]:
    """Let ``function(model, sets, ..., *, head, ...)`` always meet a model whose positive output is the last.

    Its sets are called ``fit``, ``select``, ``data`` and ``test``.

    What it gives back (an `Outcome`, or what holds one as ``outcome``) is of the model that came in.
    """
    names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def run(*args: Arguments.args, **options: Arguments.kwargs) -> Found:
        given = dict(zip(names, args, strict=False)) | options
        one_output = reading_of(cast(nn.Module, given["model"])).output is not None
        if one_output or not any(_reversed(given.get(name)) for name in _SETS):
            return function(*args, **options)
        sets = {
            name: as_grouped(given[name], batch_fn=cast(Any, given.get("batch_fn")))
            for name in _SETS
            if given.get(name) is not None
        }
        model, conditions = cast(nn.Module, given["model"]), cast(Any, given.get("conditions")) or Conditions()
        head, multi_label = (given.get(name) or getattr(conditions, name) for name in ("head", "multi_label"))
        turned, straight = facing(model, sets, head=cast(Any, head), multi_label=bool(multi_label))
        found = cast(Any, function)(**(given | straight | {"model": turned}))
        if hasattr(found, "outcome"):
            return cast(Found, replace(found, outcome=_turned_back(found.outcome, model)))
        return cast(Found, _turned_back(found, model))

    return run


def facing(
    model: nn.Module, sets: dict[str, GroupedData], *, head: str | None, multi_label: bool = False
) -> tuple[nn.Module, dict[str, GroupedData]]:
    """A copy of the model that has the positive output last, and the sets that say so.

    Raises:
        DataError: some of the sets have it first and some last.
    """
    if not all(data.outputs_reversed for data in sets.values()):
        raise DataError(f"the sets {', '.join(sets)} name the model's outputs in different orders: use one order")
    first, where = next(iter(sets.values())), next(model.parameters()).device
    settled = working_copy(model, where)
    settle(settled, first, multi_label=multi_label, place=lambda tensor: tensor.to(where))
    example = first.take(slice(0, 2)).to(where).inputs
    turned = turned_model(model, example, head=head, reading=reading_of(settled))
    return turned, {name: replace(data, outputs_reversed=False) for name, data in sets.items()}


def _reversed(data: Any) -> bool:
    return bool(getattr(getattr(data, "dataset", data), "outputs_reversed", False))


def _turned_back(outcome: Any, model: nn.Module) -> Any:
    """The outcome of a turned copy of `model` as one of `model`."""
    result = copied(outcome.model)
    head = find_head(result, name=outcome.report.config["head"])
    turn_head(dict(result.named_parameters()), head.parameters, head.num_outputs)
    tensors = {name: tensor.clone() for name, tensor in outcome.mask.tensors.items()}
    turn_head(tensors, tuple(name for name in head.parameters if name in tensors), head.num_outputs, sign=False)
    patch = WeightPatch.between(tensors_of(model), tensors_of(result), outcome.patch.recipe)
    return replace(outcome, model=result, mask=WeightMask(tensors), patch=patch)
