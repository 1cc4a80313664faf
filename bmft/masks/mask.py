"""Which weights may move, and how far: one value per weight, chosen by score or by name."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bmft._common import MOST, html_table, in_order, put, short
from bmft.errors import ConfigError, MismatchError, NothingFitsError

Granularity = Literal["weight", "channel", "layer", "block"]
GRANULARITIES: tuple[str, ...] = ("weight", "channel", "layer", "block")
_FORMAT = "1"


@dataclass(frozen=True, eq=False, repr=False)
class WeightMask:
    """One value per weight: False or 0 stays as it is, True or 1 may move, a fraction scales its update.

    Every parameter of the model has an entry, so that what is left out is left out on purpose.

    Args:
        tensors: parameter name -> bool tensor (a hard mask) or float tensor in [0, 1] (a soft one), of the
            parameter's shape.

    Raises:
        ConfigError: no tensors, or values outside [0, 1].

    >>> mask = WeightMask({"conv.weight": torch.tensor([True, False]), "fc.weight": torch.tensor([True])})
    >>> mask.excluding("fc.*").density
    0.333...
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if not any(tensor.numel() for tensor in self.tensors.values()):
            raise ConfigError("a mask needs at least one weight: pass a tensor per parameter of the model")
        for name, tensor in self.tensors.items():
            soft = tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
            if not soft and tensor.dtype != torch.bool:
                raise ConfigError(f"mask of {name!r} is {tensor.dtype}: expected bool, or float in [0, 1]")
            # The comparison is written so that NaN fails it.
            if soft and not bool(((tensor >= 0) & (tensor <= 1)).all()):
                raise ConfigError(f"mask of {name!r} has values outside [0, 1]")

    def __repr__(self) -> str:
        kind = "" if self.hard else ", soft"
        share = f"{self.selected:,} of {self.total:,} weights ({self.density:.2%}) in {len(self.tensors)} parameters"
        return f"WeightMask({share}{kind})"

    def _repr_html_(self) -> str:
        layers = sorted(self.by_layer().items(), key=lambda item: -item[1]["selected"])
        lines = [(name, f"{of['selected']:,}", f"{of['total']:,}", f"{of['fraction']:.2%}") for name, of in layers]
        more = f"; {len(lines) - MOST} layers with fewer are not shown" if len(lines) > MOST else ""
        return html_table(f"{self!r}{more}", ("layer", "selected", "weights", "share"), lines[:MOST])

    @classmethod
    def by_name(cls, model: nn.Module, *patterns: str) -> "WeightMask":
        """Every weight whose parameter name matches one of the shell patterns; with none, every weight.

        Raises:
            ConfigError: a pattern matches no parameter.

        >>> WeightMask.by_name(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "1.*").selected
        3
        """
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        chosen = _matching(shapes, patterns) if patterns else set(shapes)
        return cls({k: torch.full(shape, k in chosen, dtype=torch.bool) for k, shape in shapes.items()})

    @classmethod
    def top_fraction(
        cls,
        scores: Mapping[str, Tensor],
        fraction: float,
        *,
        granularity: Granularity = "weight",
        within: Iterable[str] | None = None,
        unit_of: Callable[[str], str] | None = None,
    ) -> "WeightMask":
        """The highest-scored `fraction` of all weights together, counted exactly.

        ``"weight"`` takes single weights (ties by position). ``"channel"`` takes whole output channels (slices of
        the first axis), ``"layer"`` whole modules and ``"block"`` whole blocks, in the order of their mean score, as
        many as fit into ``fraction`` of the weights; a unit that no longer fits is passed over.

        Args:
            scores: parameter name -> score per weight; larger is more important.
            fraction: in (0, 1], of the weights of `within`.
            within: the parameter names that compete; all of `scores` by default. The others get an empty mask.
            unit_of: parameter name -> name of its block; needed for ``"block"``.

        Raises:
            ConfigError: the fraction or the granularity is not possible, a score is not finite, or no score is
                positive.
            NothingFitsError: no unit with a positive score is small enough: an empty mask is never returned.

        >>> top = WeightMask.top_fraction({"a": torch.tensor([0.1, 3.0]), "b": torch.tensor([2.0, 0.2])}, 0.5)
        >>> {name: tensor.tolist() for name, tensor in top.tensors.items()}
        {'a': [False, True], 'b': [True, False]}
        """
        if not 0 < fraction <= 1:
            raise ConfigError(f"fraction is {fraction}: expected more than 0 and at most 1 (0.05 for 5 %)")
        names = list(scores if within is None else within)
        if unknown := [name for name in names if name not in scores]:
            raise ConfigError(f"no scores for {unknown[0]!r}: score every parameter that competes for the mask")
        flat = {name: scores[name].detach().float() for name in names}
        _check_scores(flat)
        budget = max(1, round(fraction * sum(t.numel() for t in flat.values())))
        if granularity == "weight":
            chosen = _top_weights(flat, budget)
        elif granularity in GRANULARITIES:
            chosen = _top_units(flat, budget, granularity, unit_of)
        else:
            raise ConfigError(f"granularity is {granularity!r}: expected one of {', '.join(GRANULARITIES)}")
        return cls({k: chosen[k] if k in chosen else torch.zeros(t.shape, dtype=torch.bool) for k, t in scores.items()})

    def excluding(self, *patterns: str) -> "WeightMask":
        """The same mask with every parameter that matches a shell pattern left out.

        Raises:
            ConfigError: a pattern matches no parameter, or nothing is left.
        """
        out = _matching(self.tensors, patterns)
        return WeightMask({k: torch.zeros_like(t) if k in out else t for k, t in self.tensors.items()}).not_empty()

    def only(self, *patterns: str) -> "WeightMask":
        """The same mask with every parameter left out that matches none of the shell patterns.

        Raises:
            ConfigError: a pattern matches no parameter, or nothing is left.
        """
        kept = _matching(self.tensors, patterns)
        return WeightMask({k: t if k in kept else torch.zeros_like(t) for k, t in self.tensors.items()}).not_empty()

    def not_empty(self) -> "WeightMask":
        """Itself, so that calls can be chained.

        Raises:
            ConfigError: no weight may move under it.
        """
        if self.selected == 0:
            raise ConfigError("the mask is empty: no weight would move; widen the fraction or the name patterns")
        return self

    @property
    def hard(self) -> bool:
        """Whether every value is False or True."""
        return all(tensor.dtype == torch.bool for tensor in self.tensors.values())

    @property
    def selected(self) -> int:
        """The number of weights that may move at all."""
        return sum(int(torch.count_nonzero(tensor)) for tensor in self.tensors.values())

    @property
    def total(self) -> int:
        """The number of weights the mask speaks about."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def density(self) -> float:
        """The fraction of all weights that may move, in [0, 1]."""
        return self.selected / self.total

    def by_layer(self) -> dict[str, dict[str, float]]:
        """Module path -> how many of its weights may move: ``selected``, ``total`` and ``fraction``."""
        layers: dict[str, dict[str, float]] = {}
        for name, tensor in self.tensors.items():
            entry = layers.setdefault(_layer_of(name), {"selected": 0, "total": 0})
            entry["selected"] += int(torch.count_nonzero(tensor))
            entry["total"] += tensor.numel()
        return {name: {**entry, "fraction": entry["selected"] / entry["total"]} for name, entry in layers.items()}

    def __and__(self, other: "WeightMask") -> "WeightMask":
        return self._combine(other, torch.logical_and, torch.minimum)

    def __or__(self, other: "WeightMask") -> "WeightMask":
        return self._combine(other, torch.logical_or, torch.maximum)

    def __invert__(self) -> "WeightMask":
        return WeightMask({k: ~t if t.dtype == torch.bool else 1 - t for k, t in self.tensors.items()})

    def _combine(
        self, other: "WeightMask", hard: Callable[[Tensor, Tensor], Tensor], soft: Callable[[Tensor, Tensor], Tensor]
    ) -> "WeightMask":
        other.check_fits({name: tensor.shape for name, tensor in self.tensors.items()}, "the other mask")
        if self.hard and other.hard:
            return WeightMask({k: hard(t, other.tensors[k]) for k, t in self.tensors.items()})
        return WeightMask({k: soft(t.float(), other.tensors[k].float()) for k, t in self.tensors.items()})

    def check_fits(self, shapes: Mapping[str, torch.Size], what: str = "the mask") -> None:
        """Raise MismatchError unless the mask has exactly these names and shapes."""
        missing = [name for name in self.tensors if name not in shapes]
        extra = [name for name in shapes if name not in self.tensors]
        odd = [n for n, t in self.tensors.items() if n in shapes and t.shape != shapes[n]]
        if missing or extra or odd:
            first = (missing + extra + odd)[0]
            raise MismatchError(
                f"{what} was made for another model: {len(missing)} of its weights are missing here, {len(extra)} here "
                f"are not in it, {len(odd)} have another shape (first: {first!r}). Make it again from this checkpoint."
            )

    def save(self, path: str | os.PathLike[str], recipe: Mapping[str, object] | None = None) -> None:
        """Write one safetensors file, atomically: a tensor per parameter, the format number and the recipe."""
        metadata = {"format": _FORMAT, "kind": "bmft.mask", "recipe": json.dumps(dict(recipe or {}), sort_keys=True)}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.tensors.items()}
        put(in_order(save(tensors, metadata)), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "WeightMask":
        """Read a file that `save` wrote.

        Raises:
            MismatchError: the file is damaged, is no mask, or has a newer format number.
        """
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("kind") != "bmft.mask" or metadata.get("format") != _FORMAT:
                    raise MismatchError(
                        f"{path} is {metadata.get('kind', 'no bmft file')}, format {metadata.get('format')}: "
                        f"expected a bmft.mask of format {_FORMAT}. A newer one needs a newer bmft."
                    )
                return cls({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        # A path with a NUL in it is a ValueError, a type of number that torch lacks one of the other two.
        except (SafetensorError, OSError, ValueError, LookupError, AttributeError) as error:
            raise MismatchError(f"{path} cannot be read as a mask: {short(error)}") from error


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0] or name


def _matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    known, found = list(names), set[str]()
    for pattern in patterns:
        matched = [name for name in known if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(f"pattern {pattern!r} matches no parameter; there are {known[0]!r} .. {known[-1]!r}")
        found.update(matched)
    return found


def _check_scores(scores: Mapping[str, Tensor]) -> None:
    for name, tensor in scores.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"scores of {name!r} are not finite: check the objective and the data")
    if not any(bool((tensor > 0).any()) for tensor in scores.values()):
        raise ConfigError("no weight has a positive score: the objective does not depend on any of them here")


def _top_weights(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """The `budget` weights with the highest scores, of equal ones the first."""
    # One more copy of the scores, ordered in place: torch.topk takes four times as much.
    ranked = torch.cat([tensor.flatten() for tensor in scores.values()]).cpu().numpy()
    ranked.partition(len(ranked) - budget)
    least = float(ranked[len(ranked) - budget])
    del ranked
    equal = budget - sum(int((tensor > least).sum()) for tensor in scores.values())
    chosen = {}
    for name, tensor in scores.items():
        flat = tensor.flatten()
        own, ties = (flat > least).cpu(), (flat == least).nonzero()[:equal, 0].cpu()
        own[ties] = True
        equal -= len(ties)
        chosen[name] = own.view(tensor.shape)
    return chosen


def _top_units(
    scores: Mapping[str, Tensor], budget: int, granularity: str, unit_of: Callable[[str], str] | None
) -> dict[str, Tensor]:
    if granularity == "block" and unit_of is None:
        raise ConfigError("granularity 'block' needs unit_of, a function from parameter name to block name")
    chosen = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in scores.items()}
    # unit -> [(parameter, channel or None, score sum, weights)]
    units: dict[tuple[str, int | None], list[tuple[str, float, int]]] = {}
    for name, tensor in scores.items():
        if granularity == "channel" and tensor.dim() > 0:
            rows = tensor.reshape(tensor.shape[0], -1)
            for channel, total in enumerate(rows.sum(1).tolist()):
                units[(name, channel)] = [(name, total, rows.shape[1])]
        else:
            place = unit_of(name) if granularity == "block" and unit_of else _layer_of(name)
            units.setdefault((place, None), []).append((name, float(tensor.sum()), tensor.numel()))
    size = {unit: sum(n for _, _, n in parts) for unit, parts in units.items()}
    mean = {unit: sum(s for _, s, _ in parts) / size[unit] for unit, parts in units.items()}
    left = budget
    for unit in sorted(units, key=lambda unit: -mean[unit]):
        if mean[unit] > 0 and size[unit] <= left:
            left -= size[unit]
            for name, _, _ in units[unit]:
                chosen[name][slice(None) if unit[1] is None else unit[1]] = True
    if left == budget:
        raise NothingFitsError(
            f"no {granularity} with a positive score fits into {budget} weights (the smallest has "
            f"{min(size.values())}): raise the fraction or take a finer granularity"
        )
    return chosen
