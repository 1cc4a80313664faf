"""Checkpoints: a file in, a model out; changed weights in, the same kind of file out."""

import copy
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmft._common import Assumption
from bmft.checkpoints.checkpoint import Checkpoint, read_checkpoint
from bmft.checkpoints.classes import output_names
from bmft.checkpoints.inputs import KEY, plain_inputs
from bmft.checkpoints.patch import own_threshold
from bmft.errors import ArchitectureError, CheckpointError, ConfigError, MissingExtraError, NonFiniteError
from bmft.models import (
    Fit,
    Fitted,
    Kind,
    check_takes_images,
    check_values,
    compare,
    components,
    find_head,
    fitted,
    mark,
    purpose_of,
    read_as,
    reading_of,
    readings,
    recognised,
    shapes_of,
)

log = logging.getLogger(__name__)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    into: nn.Module | None = None,
    num_classes: int | None = None,
    trust_pickle: bool = False,
    entry: str | None = None,
    output: int | str | None = None,
    output_is: Kind | None = None,
) -> nn.Module:
    """Load the model of a checkpoint: a plain module on the CPU, in evaluation mode.

    The network is the one that `arch` or the file names, else the one that has the file's names and shapes of weights;
    what had to be guessed is logged. It is built to compute in float32, whatever the precision of the file.

    Args:
        path: The file or folder; see `read_checkpoint` for the kinds.
        arch: The network, such as ``"resnet18"``, ``"timm:resnet18"`` or ``"package.module:factory"``; see
            `bmft.models.build_model`. By default it is inferred.
        into: A model of yours to load the weights into, in place of `arch`; it is changed and returned.
        num_classes: The number of outputs of the head; by default, and at most as a check, as many as the weights have.
        trust_pickle: True to read a file that may run code; see `read_checkpoint`.
        entry: The name of the set of weights where the file has several; see `read_checkpoint`.
        output: Which one of the network's many outputs is meant, by its place from 0 or by its name in the file.
        output_is: ``"label"`` or ``"class"``: how that output is read; see `bmft.read_as`.

    Raises:
        CheckpointError: The file cannot be read, or holds no weights.
        UntrustedPickleError: The file may run code, and `trust_pickle` is False.
        ArchitectureError: The network is unknown or ambiguous, or the weights are those of another.
        ConfigError: `num_classes` is not what the weights have, `into` is given together with `arch` or `num_classes`,
            or there is no such entry or output.
        NonFiniteError: A weight is NaN or infinite.

    >>> import tempfile
    >>> network = nn.Sequential(nn.Linear(4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(network.state_dict(), Path(folder, "weights.pt"))
    ...     model = load_checkpoint(Path(folder, "weights.pt"), into=nn.Sequential(nn.Linear(4, 2)))
    >>> model.training, torch.equal(model[0].weight, network[0].weight)
    (False, True)
    """
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle, entry=entry)
    if into is not None and (arch is not None or num_classes is not None):
        raise ConfigError("into= is the model to load into: leave out arch= and num_classes=, which build another")
    if into is None:
        model = build_from(checkpoint, arch=arch, num_classes=num_classes)
    else:
        model = _load(into, checkpoint, type(into).__name__)
    if output is not None or output_is is not None:
        read_as(model, output=output, output_is=output_is, names=output_names(checkpoint))
    threshold, told = own_threshold(model, checkpoint)
    if told:
        reading = reading_of(model)
        mark(model, replace(reading, threshold=threshold, assumed=(*reading.assumed, *told)))
    return model


def build_from(checkpoint: Checkpoint, *, arch: str | None = None, num_classes: int | None = None) -> nn.Module:
    """The model of a checkpoint that has been read; see `load_checkpoint`."""
    model, assumed = assembled(checkpoint, arch=arch, num_classes=num_classes)
    for one in assumed:
        if one.guess:
            log.warning("%s: %s: %s (%s)", checkpoint.path, one.subject, one.value, one.option)
    return model


def assembled(
    checkpoint: Checkpoint, *, arch: str | None = None, num_classes: int | None = None
) -> tuple[nn.Module, tuple[Assumption, ...]]:
    """The same as `build_from`, and what was inferred about the network."""
    if checkpoint.module is not None and arch is None:
        model = copy.deepcopy(checkpoint.module).float().eval()
        _check_values(model, checkpoint.module.state_dict(), checkpoint.path)
        return model, ()
    network = _resolve(checkpoint, arch)
    # One output is the logit of two classes.
    if num_classes not in (None, network.outputs) and (num_classes, network.outputs) != (2, 1):
        raise ConfigError(
            f"--num-classes is {num_classes}, but the head in {checkpoint.path} has {network.outputs} outputs: "
            "leave it out"
        )
    with torch.random.fork_rng(devices=[]):
        model = network.build()
    check_takes_images(model)
    return _load(model, checkpoint, network.arch), network.assumed


def describe(
    checkpoint: Checkpoint, model: nn.Module, *, arch: str | None = None, head: str | None = None
) -> dict[str, Any]:
    """What `bmft inspect` shows: plain values for JSON.

    Args:
        checkpoint: from `read_checkpoint`.
        model: what it was built into.
        arch: what it was built as, if it was said; else found out again.
        head: module path of the head, if it is not the one found.

    Returns:
        ``path``, ``container``, ``entry``, ``sets`` (each set's ``name``, ``tensors``, whether it is ``chosen`` and
        its names and shapes are the ``same``), ``prefix``, ``arch``, ``says`` (the architecture the file names),
        ``tensors``, ``dtypes``, ``parameters``, ``head`` (``name``, ``num_outputs``, ``parameters``),
        ``outputs`` (their ``names``, and whose they are, the ``source``; no names where nothing says them),
        ``blocks`` (block -> ``parameters`` and ``components``, counts both), ``pixels`` (what is known of them:
        ``said``, in words, and ``from``; None where nothing says it), ``inputs`` (what it takes beside the image, where
        that is recorded; see `bmft.checkpoints.plain_inputs`), ``beside`` (the file's other plain values),
        ``content_hash``, ``fingerprint``.
    """
    checkpoint = checkpoint.under(model.state_dict())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    top = find_head(model, name=head)

    def count(names: Iterable[str]) -> int:
        return sum(sizes[name] for name in names)

    return {
        "path": str(checkpoint.path),
        "container": checkpoint.container,
        "entry": checkpoint.entry,
        "sets": [
            {
                "name": one.name,
                "tensors": len(one.tensors),
                "chosen": one is checkpoint.chosen,
                "same": not compare(
                    model, shapes_of(replace(checkpoint, chosen=one, prefix="").under(model.state_dict()).state)
                ).distance,
            }
            for one in checkpoint.sets
        ],
        "prefix": checkpoint.prefix,
        "arch": arch or _arch_in_words(checkpoint, model),
        "says": checkpoint.arch,
        "tensors": len(checkpoint.state),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()}),
        "parameters": sum(sizes.values()),
        "head": {"name": top.name, "num_outputs": top.num_outputs, "parameters": count(top.parameters)},
        "outputs": _outputs(checkpoint, top.num_outputs),
        "blocks": {
            block: {
                "parameters": sum(map(count, kinds.values())),
                "components": {kind: count(names) for kind, names in kinds.items()},
            }
            for block, kinds in components(model, top).items()
        },
        "pixels": _pixels(checkpoint),
        "inputs": plain_inputs(checkpoint.inputs),
        "beside": {key: value for key, value in checkpoint.metadata.items() if key != KEY},
        "content_hash": checkpoint.content_hash,
        "fingerprint": checkpoint.fingerprint,
    }


def _outputs(checkpoint: Checkpoint, count: int) -> dict[str, Any]:
    found = output_names(checkpoint)
    return {"names": list(found.names) if len(found.names) == count else [], "source": found.source}


def _pixels(checkpoint: Checkpoint) -> dict[str, str] | None:
    known, source = checkpoint.pixels
    return None if known is None else {"said": ", ".join(known.words().values()), "from": source}


def _resolve(checkpoint: Checkpoint, arch: str | None) -> Fitted:
    """The network: what is said, else what the file says, else what has these weights."""
    if arch is not None:
        fits = [_fit(checkpoint, option) for option in readings(arch) or (arch,)]
        best = min(fits, key=lambda one: one.fit.distance)
        if best.fit.distance:
            raise _misfit(checkpoint.path, best.arch, best.fit)
        return best
    for option in readings(checkpoint.arch, trusted=False) if checkpoint.arch else ():
        found = _fit(checkpoint, option)
        if not found.fit.distance:
            return found
    if checkpoint.arch:
        said = logging.WARNING if "," in checkpoint.arch else logging.INFO
        log.log(said, "%s calls itself %r; taken from its weights instead", checkpoint.path, checkpoint.arch)
    return _recognised(checkpoint)


def _recognised(checkpoint: Checkpoint) -> Fitted:
    says = f" It calls itself {checkpoint.arch!r}." if checkpoint.arch else ""
    errors = []
    for candidate in checkpoint.unwrapped():
        try:
            return recognised(shapes_of(candidate.state))
        except ArchitectureError as error:
            errors.append(error)
    if (does := purpose_of(shapes_of(checkpoint.chosen.tensors))) is not None:
        raise ArchitectureError(
            f"{checkpoint.path} holds a network that {does}, by its weights' names: expected a classifier of images. "
            "If it is one after all, name it with --arch."
        )
    raise ArchitectureError(f"{checkpoint.path}: {errors[0]}{says}") from errors[0]


def _fit(checkpoint: Checkpoint, arch: str) -> Fitted:
    return fitted(arch, lambda names: shapes_of(checkpoint.under(names).state), checkpoint.settings)


def _misfit(path: Path, what: str, fit: Fit) -> ArchitectureError:
    return ArchitectureError(
        f"the weights in {path} are not those of {what}: {fit.notes}. Name the network they were trained in "
        "(--arch; your own as package.module:factory)."
    )


def _load(model: nn.Module, checkpoint: Checkpoint, what: str) -> nn.Module:
    """Load the weights into `model` and put it into eval mode; `model` is not changed if they are not for it."""
    check_values(model)
    current = model.state_dict()
    state = OrderedDict(checkpoint.under(current).state)
    fit = compare(model, shapes_of(state))
    if fit.distance:
        raise _misfit(checkpoint.path, what, fit)
    _check_values(model, state, checkpoint.path)
    # The names are today's, so they are in today's format, whatever the file says or leaves out.
    state._metadata = current._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=False)
    return model.eval()


def _check_values(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    parameters = dict(model.named_parameters())
    bad = []
    for name, own in model.state_dict().items():
        if not isinstance(new := state.get(name), Tensor):
            continue
        if new.is_floating_point() != own.is_floating_point():
            raise CheckpointError(
                f"{path}: {name!r} is {new.dtype}, but the model computes with {own.dtype}: save it as that"
            )
        # A buffer may hold infinities on purpose (attention masks); a weight may not.
        values = new.to(own.dtype)
        if bool(torch.isnan(values).any() if name not in parameters else ~torch.isfinite(values).all()):
            bad.append(name)
    if bad:
        raise NonFiniteError(
            f"{len(bad)} weights in {path} hold NaN or infinite values (first: {bad[0]!r}): the training has "
            "diverged, or the file is damaged. Take an earlier checkpoint."
        )


def _arch_in_words(checkpoint: Checkpoint, model: nn.Module) -> str:
    try:
        if checkpoint.module is None:
            return _resolve(checkpoint, None).arch
    except (ArchitectureError, MissingExtraError):
        pass
    return f"{type(model).__module__}:{type(model).__qualname__}"
