"""One of a model's many outputs: which one a name or a place means, and its logit apart from the others'."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bmft._common import did_you_mean, folded, short
from bmft.errors import ConfigError

Kind = Literal["label", "class"]
_MOST = 40  # outputs that one message lists


class OutputNames(NamedTuple):
    """What a model's outputs are called, in their order.

    Attributes:
        names: one for each output; "" where an output has none.
        source: who says so, such as ``the checkpoint's pathologies``.
        kind: ``"label"`` where that says that each is a yes or no of its own, ``"class"`` where they are the classes of
            one softmax; None where it says neither.
    """

    names: tuple[str, ...] = ()
    source: str = "nothing names the outputs"
    kind: Kind | None = None


def output_names_of(model: nn.Module) -> OutputNames:
    """What a live model says of its outputs: ``pathologies`` (torchxrayvision), or ``config.id2label`` (Hugging Face).

    >>> net = nn.Linear(4, 2)
    >>> net.pathologies = ["Edema", ""]
    >>> output_names_of(net).names
    ('Edema', '')
    """
    found: Any = getattr(model, "pathologies", None)
    if isinstance(found, list | tuple) and found:
        return OutputNames(tuple(str(name).strip() for name in found), "the model's pathologies", "label")
    config = getattr(model, "config", None)
    found = getattr(config, "id2label", None)
    if isinstance(found, Mapping) and {str(key) for key in found} == {str(place) for place in range(len(found))}:
        numbered = {str(key): str(name).strip() for key, name in found.items()}
        names = tuple(numbered[str(place)] for place in range(len(numbered)))
        return OutputNames(names, "the model's config.id2label", kind_of_problem(getattr(config, "problem_type", None)))
    return OutputNames()


def kind_of_problem(problem_type: object) -> Kind | None:
    """Whether the outputs are labels or classes by Hugging Face's ``problem_type``; None where it does not say."""
    kinds: dict[object, Kind] = {"multi_label_classification": "label", "single_label_classification": "class"}
    return kinds.get(problem_type) if isinstance(problem_type, str) else None


def output_place(output: int | str, known: OutputNames | None = None) -> int:
    """The place of an output that is named, or numbered from 0.

    A name counts whatever its case and blanks, where that tells the names apart; one that is a number goes before the
    place of that number.

    Raises:
        ConfigError: there is no such name, several outputs have it, or the place is none.

    >>> output_place("pleural effusion", OutputNames(("Edema", "Pleural_Effusion"))), output_place("0")
    (1, 0)
    """
    names, source, _ = known or OutputNames()
    if isinstance(output, str) and (found := _called(output, names)):
        if len(found) > 1:
            places = ", ".join(map(str, found))
            raise ConfigError(f"--output: {len(found)} outputs are called {output!r}: give the place, one of {places}")
        return found[0]
    text = str(output).strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    if text.removeprefix("-").isdigit():
        raise ConfigError(f"--output is {text}: the outputs are counted from 0")
    if not any(names):
        raise ConfigError(f"--output: no output is known as {short(text)!r}, since {source}: give its place, from 0 on")
    near = did_you_mean(text, [name for name in names if name], otherwise=f"There are {listed_outputs(names)}.")
    raise ConfigError(f"--output: no output is called {short(text)!r}. {near}")


def _called(output: str, names: Sequence[str]) -> list[int]:
    """The places of the outputs of that name: as written, else whatever the case and the blanks."""
    for written in (str.strip, folded):
        wanted = written(output)
        if found := [place for place, name in enumerate(names) if name and written(name) == wanted]:
            return found
    return []


def listed_outputs(names: Sequence[str], count: int | None = None) -> str:
    """The outputs as a person names them.

    >>> listed_outputs(("Edema", "", "Mass")), listed_outputs((), 18)
    ('0 Edema, 1, 2 Mass', '0 to 17')
    """
    if not any(names):
        return f"0 to {count - 1}" if count else "none with a name"
    shown = [f"{place} {short(name, 40)}".strip() for place, name in enumerate(names[:_MOST])]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def apart(outputs: Tensor, place: int, *, classes: bool) -> tuple[Tensor, Tensor]:
    r"""The logit ``(n, 1)`` of one output, and those ``(n, others)`` of the others, each a yes or no of its own.

    Of labels they are as they are. Of the `classes` of one softmax, a logit is the class's against all others,
    :math:`z_k - \log \sum_{j \ne k} e^{z_j}`; the others' are those of the softmax over them alone, which what becomes
    of this class does not change: of two classes the other has none.

    >>> own, others = apart(torch.tensor([[0.0, 1.0, 2.0]]), 2, classes=True)
    >>> torch.sigmoid(own) - torch.tensor([[0.0, 1.0, 2.0]]).softmax(1)[:, 2:]
    tensor([[0.]])
    >>> torch.sigmoid(others).sum()
    tensor(1.)
    """
    rest = [k for k in range(outputs.shape[1]) if k != place]
    own, others = outputs[:, place, None], outputs[:, rest]
    if not classes:
        return own, others
    if not rest:
        raise ConfigError("--output-is class: the model has one output, which is no class of several")
    own = own - others.logsumexp(1, keepdim=True)
    return own, _against_each_other(others)


def _against_each_other(logits: Tensor) -> Tensor:
    """Each class of a softmax against the rest."""
    if logits.shape[1] == 1:
        return logits[:, :0]
    columns = range(logits.shape[1])
    rest = [logits[:, [j for j in columns if j != k]].logsumexp(1) for k in columns]
    return logits - torch.stack(rest, 1)
