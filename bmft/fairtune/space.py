"""What a search may choose: a switch per block and component, the learning rate, and more where asked."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from bmft._common import unknown_name
from bmft.errors import ConfigError
from bmft.models import Head, components, find_head, upper
from bmft.settings import Settings

Detail = Literal["component", "layer"]
# Sampled between these; a rate by its logarithm. The learning rate is always searched.
RANGES: Mapping[str, tuple[float, float]] = {
    "trust": (0.02, 1.0),
    "fraction": (0.005, 0.5),
    "bias_weight": (0.1, 10.0),
    "epochs": (2, 10),
}
CHOICES: Mapping[str, tuple[str, ...]] = {"score": ("fisher", "input_x_gradient", "random")}
_FIXED = {"norms only": {"norm"}, "attention only": {"attention"}, "MLP only": {"mlp"}, "convolutions only": {"conv"}}
Params = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """Switches by name, each with the parameters it stands for, and what else is searched.

    Attributes:
        switches: ``"block/component"`` -> parameter names.
        rate: the setting that stands for the learning rate, and its range.
        also: other settings that are searched.
        kinds: the component that each switch belongs to.
        head: the parameters of the head, which is always trained.
        own: the switches that together are what the method moves by itself; None where it moves something else.
    """

    switches: Mapping[str, tuple[str, ...]]
    rate: tuple[str, float, float]
    also: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    head: tuple[str, ...] = ()
    own: frozenset[str] | None = None

    def settings(self, params: Params, base: Settings) -> dict[str, Any]:
        """Values for `Settings.with_values`: what a trial's parameters say."""
        name, *_ = self.rate
        rate = params[name]
        values: dict[str, Any] = {name: [rate, base.lr[1]] if name == "lr" else rate}
        tuned = [p for switch, names in self.switches.items() if params[switch] for p in names]
        # The head is no part of the extractor: with its names alone nothing moves but the head.
        values["tune"] = tuned or list(self.head)
        for key in self.also:
            values[key] = _as_setting(key, params[key], base)
        return values

    def fixed_points(self, base: Settings) -> list[tuple[str, dict[str, Any]]]:
        """The fixed methods that are points of this space, by name.

        The blocks that the method moves by itself first, then everything, the head alone, one component only.
        """
        own = self.own_point(base)
        mine = [] if own is None or self.own == frozenset(self.switches) else [("the method's own blocks", own)]
        points = [("everything", set(self.kinds.values())), ("head only", set()), *_FIXED.items()]
        present = set(self.kinds.values())
        return mine + [
            (name, self.point(lambda switch, wanted=wanted: self.kinds[switch] in wanted, base))  # type: ignore[misc]
            for name, wanted in points
            if not wanted or name == "everything" or (wanted & present and wanted != present)
        ]

    def own_point(self, base: Settings) -> dict[str, Any] | None:
        """The point at which a trial moves what the method moves by itself; None where there is no such point."""
        own = self.own
        return None if own is None else self.point(lambda switch: switch in own, base)

    def point(self, chosen: Callable[[str], bool], base: Settings) -> dict[str, Any]:
        """The point with these switches on, everything else as the settings have it."""
        return {**{switch: chosen(switch) for switch in self.switches}, **self._middle(base)}

    def _middle(self, base: Settings) -> dict[str, Any]:
        start = base.lr[0] if self.rate[0] == "lr" else base.trust
        return {self.rate[0]: start, **{key: _now(key, base) for key in self.also}}

    def switched(self, params: Params) -> dict[str, dict[str, bool]]:
        """Block -> component -> whether it is tuned."""
        found: dict[str, dict[str, bool]] = {}
        for switch in self.switches:
            block, _, part = switch.rpartition("/")
            found.setdefault(block, {})[part] = bool(params[switch])
        return found


def search_space(
    model: nn.Module,
    sample: Any,
    base: Settings,
    *,
    detail: Detail = "component",
    also: Iterable[str] = (),
    head: str | None = None,
) -> Space:
    """The space of a model, read off its modules; what comes before the first block stays frozen, as published.

    Args:
        sample: a few inputs, to find the head by.
        detail: ``"component"``: one switch for each block's norms, attention, MLP, convolutions and shortcut
            (the published ``auto_peft1``); ``"layer"``: one for each norm of a block by itself (``auto_peft2``).
        also: any of ``fraction``, ``bias_weight``, ``epochs`` and ``score``.

    Raises:
        ConfigError: a name is not known, or there is nothing to switch.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
    ...                     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))
    >>> list(search_space(net, torch.zeros(2, 3, 8, 8), Settings()).switches)
    ['0/conv', '2/norm', '2/conv']
    """
    for name in also:
        if name not in {*RANGES, *CHOICES} - {"trust"}:
            raise ConfigError(unknown_name("searched setting", name, {**RANGES, **CHOICES}))
    found: Head = find_head(model, sample, name=head)
    switches: dict[str, tuple[str, ...]] = {}
    kinds: dict[str, str] = {}
    for block, parts in components(model, found).items():
        if block in ("stem", "head"):
            continue
        for kind, names in parts.items():
            for label, group in _labelled(kind, names, detail):
                switches[f"{block}/{label}"], kinds[f"{block}/{label}"] = group, kind
    if not switches:
        raise ConfigError("the model has no block below its head: there is nothing to search")
    rate = ("trust", *RANGES["trust"]) if not base.lr[0] else ("lr", base.lr[0] / 10, base.lr[0] * 10)
    return Space(switches, rate, tuple(also), kinds, tuple(found.parameters), _own(model, found, base, switches))


def _own(
    model: nn.Module, head: Head, base: Settings, switches: Mapping[str, tuple[str, ...]]
) -> frozenset[str] | None:
    moved = set(upper(model, head, base.depth))
    own = frozenset(switch for switch, names in switches.items() if moved.issuperset(names))
    covered = {name for switch in own for name in switches[switch]}
    return own if covered == moved and not base.tune and not base.freeze else None


def _labelled(kind: str, names: tuple[str, ...], detail: Detail) -> list[tuple[str, tuple[str, ...]]]:
    if detail == "component" or kind != "norm":
        return [(kind, names)]
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return [
        (f"norm{place}", tuple(n for n in names if n.rpartition(".")[0] == owner))
        for place, owner in enumerate(owners, 1)
    ]


def _now(key: str, base: Settings) -> Any:
    value = getattr(base, key)
    return value[0] if isinstance(value, tuple) else value


def _as_setting(key: str, value: Any, base: Settings) -> Any:
    if key == "epochs":
        return [value, base.epochs[1]]
    return [value, *base.bias_weight[1:]] if key == "bias_weight" else value
