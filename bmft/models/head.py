"""The model's answer and where it comes from: logits out of any model, and the layer that makes them."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bmft._common import did_you_mean
from bmft.errors import ArchitectureError, ConfigError, MismatchError
from bmft.models.answers import forward_outputs, reading_of
from bmft.models.modes import evaluating
from bmft.models.settling import taking

# Where the libraries in use keep the classifier, as seen on the module tree.
_USUAL_PLACES = ("fc", "classifier", "head", "heads")


@dataclass(frozen=True)
class Head:
    """The layer whose output is the logits.

    Attributes:
        name: its module path; ``""`` if the model is that layer.
        parameters: the names of its parameters in ``model.named_parameters()``.
        num_outputs: 1 for a binary logit, else one per class or label.
        output: the place of the one that is meant of many, whose weights alone may move; None: all.
    """

    name: str
    parameters: tuple[str, ...]
    num_outputs: int
    output: int | None = field(default=None, repr=False)

    def rows(self, model: nn.Module) -> dict[str, Tensor]:
        """Which weights of each of the head's parameters may move: those of the output that is meant, else all.

        Raises:
            ArchitectureError: a parameter has no row for each output.
        """
        found = {}
        for name in self.parameters:
            parameter = model.get_parameter(name)
            found[name] = torch.full(parameter.shape, self.output is None)
            if self.output is not None:
                if parameter.shape[:1] != (self.num_outputs,):
                    raise ArchitectureError(
                        f"the head's {name!r} is {tuple(parameter.shape)}, without a row for each of the "
                        f"{self.num_outputs} outputs: one of them cannot be moved alone"
                    )
                found[name][self.output] = True
        return found


def find_head(model: nn.Module, example: Any = None, *, name: str | None = None) -> Head:
    """The layer that makes the model's logits.

    It is the one that `name` names, else the one that the model declares (timm's ``get_classifier``), else,
    with an `example`, the last layer that runs whose output is the logits (or is only pooled into them, as in
    SqueezeNet), else the last layer of ``fc``, ``classifier``, ``head`` or ``heads``, else the last layer.
    Auxiliary classifiers (Inception, GoogLeNet) do not run in eval mode and are never taken.

    Args:
        model: run once on `example` in eval mode, without gradients; left as it was.
        example: inputs as for `forward_logits`; one sample is enough.
        name: module path of the head; of a module with several layers its last one is taken.

    Raises:
        ArchitectureError: there is no such layer, or it does not make the logits.
        DataError: the model cannot take the example.

    >>> find_head(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 8))
    Head(name='2', parameters=('2.weight', '2.bias'), num_outputs=2)
    """
    layers = _layers(model)
    run = None if example is None else _run(model, layers, example)
    if name is not None:
        chosen = [_named(model, layers, name)]
    elif not (chosen := _declared(model, layers)):
        chosen = [_usual(layers) if run is None else _last_that_runs(*run, layers)]
    head = replace(_head(model, layers, chosen), output=reading_of(model).output)
    if run is not None:
        _check_makes_logits(head, *run, layers if name is not None else None)
    return head


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if is_layer(module)}


def is_layer(module: nn.Module) -> bool:
    """Whether the module maps features to features by a matrix or kernel of its own."""
    if isinstance(module, nn.Linear | nn.Bilinear | nn.modules.conv._ConvNd):
        return True
    weight = getattr(module, "weight", None)
    return next(module.children(), None) is None and isinstance(weight, Tensor) and weight.dim() >= 2


def _run(model: nn.Module, layers: Mapping[str, nn.Module], example: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and each layer's last output in the order the layers ran."""
    outputs: dict[str, Tensor] = {}

    def keep(path: str, output: Any) -> None:
        outputs.pop(path, None)
        if isinstance(output, Tensor):
            outputs[path] = output

    with ExitStack() as hooks, taking(model, example), evaluating(model), torch.no_grad():
        for path, layer in layers.items():
            hook = layer.register_forward_hook(lambda _module, _inputs, output, path=path: keep(path, output))
            hooks.enter_context(hook)
        return forward_outputs(model, example), outputs


def _named(model: nn.Module, layers: Mapping[str, nn.Module], name: str) -> str:
    inside = [path for path in layers if path == name or path.startswith(f"{name}.")]
    if inside:
        return inside[-1]
    problem = "has no layer of weights" if name in dict(model.named_modules()) else "is no module of the model"
    last = f"Name one such as {', '.join(map(repr, list(layers)[-3:]))} (--head)."
    raise ArchitectureError(f"head {name!r} {problem}. {did_you_mean(name, layers, last)}")


def _declared(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """The layers that a timm model says are its classifier: one, or two in distilled transformers."""
    get_classifier = getattr(model, "get_classifier", None)
    if not callable(get_classifier):
        return []
    answer: Any = get_classifier()
    declared = answer if isinstance(answer, tuple | list) else [answer]
    inside = [set(module.modules()) for module in declared if isinstance(module, nn.Module)]
    found = [[path for path, layer in layers.items() if layer in modules] for modules in inside]
    return [paths[-1] for paths in found if paths]


def _usual(layers: Mapping[str, nn.Module]) -> str:
    if not layers:
        raise ArchitectureError("the model has no layer of weights that could make logits: name it (--head)")
    for place in _USUAL_PLACES:
        if inside := [path for path in layers if path.split(".")[0] == place]:
            return inside[-1]
    return list(layers)[-1]


def _last_that_runs(logits: Tensor, outputs: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> str:
    last_first = list(outputs)[::-1]
    for path in last_first:
        if same_numbers(outputs[path], logits):
            return path
    for path in last_first:
        if _num_outputs(layers[path]) == logits.shape[1]:
            return path
    raise ArchitectureError(
        f"no layer makes the model's {logits.shape[1]} outputs: name the one to train as the head (--head); "
        f"the last that run are {', '.join(repr(path) for path in last_first[:3]) or 'unknown'}"
    )


def _num_outputs(layer: nn.Module) -> int:
    sizes = (getattr(layer, name, None) for name in ("out_features", "out_channels"))
    return next((size for size in sizes if isinstance(size, int)), 0) or len(layer.get_parameter("weight"))


def same_numbers(output: Any, logits: Tensor) -> bool:
    """Whether what a layer gave is the logits, in whatever shape."""
    alike = isinstance(output, Tensor) and output.numel() == logits.numel()
    return alike and torch.equal(output.reshape(logits.shape), logits)


def _head(model: nn.Module, layers: Mapping[str, nn.Module], chosen: list[str]) -> Head:
    owned = {id(parameter) for path in chosen for parameter in layers[path].parameters()}
    names = tuple(name for name, parameter in model.named_parameters() if id(parameter) in owned)
    return Head(chosen[-1], names, _num_outputs(layers[chosen[-1]]))


def _check_makes_logits(
    head: Head, logits: Tensor, outputs: Mapping[str, Tensor], named: Mapping[str, nn.Module] | None
) -> None:
    if head.num_outputs != logits.shape[1]:
        raise ArchitectureError(
            f"head {head.name!r} has {head.num_outputs} outputs, but the model answers with "
            f"{logits.shape[1]}: name the layer that makes the logits (--head)"
        )
    if named is None:
        return
    output = outputs.get(head.name)
    if output is None:
        raise ArchitectureError(f"head {head.name!r} does not run on these inputs: name another layer (--head)")
    # What makes the logits otherwise (scaled, pooled, or of two layers) is what would have been found.
    if _close(output, logits) or (found := _last_that_runs(logits, outputs, named)) == head.name:
        return
    raise ArchitectureError(
        f"the output of head {head.name!r} is not the model's logits, which {found!r} makes: name that, or, where "
        "another part of what forward returns is meant, that part (--answer)"
    )


def _close(output: Tensor, logits: Tensor) -> bool:
    return output.numel() == logits.numel() and torch.allclose(
        output.reshape(logits.shape).to(logits.dtype), logits, rtol=1e-3, atol=1e-3
    )


def reset_head(model: nn.Module, head: Head, where: Mapping[str, Tensor] | None = None) -> None:
    """Change `model`: set the weights and bias of what the head may move to zero, or only those that `where` marks."""
    parameters = dict(model.named_parameters())
    missing = [name for name in head.parameters if name not in parameters]
    if missing:
        raise MismatchError(f"the model has no parameter {missing[0]!r}: this head is another model's")
    if parametrize.is_parametrized(model.get_submodule(head.name)):
        # A weight-normed weight is v * g / |v|: all zeros would be 0 / 0.
        raise ConfigError(f"the head {head.name!r} is parametrized and cannot be set to zero: use reset = 'keep'")
    with torch.no_grad():
        for name, marked in (head.rows(model) if where is None else where).items():
            parameter = parameters[name]
            parameter.masked_fill_(marked.to(parameter.device), 0)
