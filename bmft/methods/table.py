"""The named methods with their default and their published settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bmft._common import unknown_name
from bmft.errors import ConfigError
from bmft.masks import WeightMask
from bmft.methods.full_network import bias_gradient_descent, full, group_dro, selective
from bmft.methods.head_only import dfr, head_only
from bmft.methods.lora import installed as peft_installed, lora
from bmft.methods.pruning import fairprune
from bmft.methods.run import Run
from bmft.methods.threshold import threshold_shift
from bmft.methods.two_step import bmft, swift
from bmft.settings import FACTS, Settings


@dataclass(frozen=True)
class Method:
    """A named method: what it does, its settings without strengths and the published ones, and which settings it reads.

    `graded` are its default settings where they are others than those without strengths.
    """

    run: Callable[[Run], WeightMask]
    path: Settings
    paper: Settings
    uses: frozenset[str]
    graded: Settings | None = None

    @property
    def defaults(self) -> Settings:
        """What it is told unless a preset is named."""
        return self.graded or self.path

    def preset(self, name: str) -> Settings:
        """The settings of a preset in `PRESETS`."""
        return {"default": self.defaults, "path": self.path, "paper": self.paper}[name]

    def reading(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Those of these values that it reads, the preset among them."""
        return {name: value for name, value in config.items() if name in self.uses or name == "preset"}


# The choice among candidates, and how many images are worked on at once, are every method's.
_EVERY = frozenset({"objective", "combine", "choose", "batch_size", "on_out_of_memory", "checkpointing"})
_LOSS = frozenset({"bias_weight", "task_weight", "weigh", "whole_set"})
_STEP = frozenset({"epochs", "lr", "trust", "optimizer", "momentum", "weight_decay", "balance", "average"})
_TRAINED = _EVERY | _LOSS | _STEP
_EXTRACTOR = _TRAINED | {"others_weight", "augment", "norm_stats", "patience", "precision"}
_BLOCKS = frozenset({"depth", "tune", "freeze"})
_HEAD_STEP = frozenset({"reset", "operating_point"})
_TWO_STEPS = frozenset(FACTS)

_PAPER = Settings(
    objective="equalized_odds",
    epochs=(10, 10),
    patience=0,
    lr=(1e-4, 1e-3),
    optimizer="sgd",
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=64,
    bias_weight=(1.0, 0.1),
    path=(1.0,),
    task_weight=(0.0, 1.0),
    weigh="label",
    balance=("none", "group_in_label"),
    operating_point="free",
    whole_set=False,
    average=0.0,
    score="fisher",
    rank="ratio",
    scale="tensor",
    floor=1e-10,
    exact=False,
    depth=1.0,
    fraction=0.5,
)
_PAPER_SWIFT = replace(
    _PAPER, bias_weight=(0.9, 0.1), task_weight=(0.1, 0.9), balance=("group", "group"), reset="partial"
)
_DEFAULTS = Settings()


# Step 1 at rising strengths, the ranking inside groups held, and few candidates, whose choice can be corrected for.
_GRADED = replace(
    _DEFAULTS,
    strengths=(0.5, 1.0, 2.0, 3.0, 4.5, 7.0),
    order_weight=0.1,
    warmup=5,
    epochs=(13, 5),
    lr=(0.0, 1e-3),
    optimizer="adam",
    trust=1.25,
    average=0.93,
    bias_weight=(2.0, 0.5),
    path=(1.0,),
    reset="keep",
    views=("auto",),
    granularity="layer",
)


_FULL = replace(_DEFAULTS, depth=1.0)
_HEAD = replace(_DEFAULTS, bias_weight=(0.0, 0.0), epochs=(0, 20))
_RW = replace(_PAPER, task_weight=(1.0, 1.0), balance=("group_in_label", "group_in_label"), reset="keep")

METHODS: Mapping[str, Method] = {
    "bmft": Method(bmft, _DEFAULTS, _PAPER, _TWO_STEPS, _GRADED),
    "swift": Method(
        swift,
        replace(_FULL, rank="ratio", reset="partial"),
        _PAPER_SWIFT,
        _TWO_STEPS - {"rank", "fraction", "granularity"},
    ),
    "random_mask": Method(
        bmft,
        replace(_FULL, score="random"),
        replace(_PAPER, score="random"),
        _TWO_STEPS,
        replace(_GRADED, depth=1.0, score="random", granularity="weight"),
    ),
    "head": Method(
        head_only, _HEAD, replace(_RW, bias_weight=(0.0, 0.0), reset="zero", epochs=(0, 20)), _TRAINED | _HEAD_STEP
    ),
    "rw": Method(full, replace(_FULL, bias_weight=(0.0, 0.0)), replace(_RW, bias_weight=(0.0, 0.0)), _EXTRACTOR),
    "reg": Method(full, replace(_FULL, balance=("none", "none")), replace(_RW, balance=("none", "none")), _EXTRACTOR),
    "rwreg": Method(full, _FULL, _RW, _EXTRACTOR),
    "selective": Method(
        selective,
        replace(_FULL, bias_weight=(0.0, 0.0)),
        replace(_PAPER, task_weight=(1.0, 1.0), bias_weight=(0.0, 0.0), balance=("none", "none"), reset="keep"),
        _EXTRACTOR | _BLOCKS,
    ),
    "lora": Method(lora, _FULL, replace(_RW, bias_weight=(0.0, 0.0), balance=("none", "none")), _EXTRACTOR | _BLOCKS),
    "group_dro": Method(group_dro, _FULL, replace(_PAPER, balance=("cell", "cell")), _EXTRACTOR - _LOSS),
    "bias_gradient_descent": Method(
        bias_gradient_descent,
        replace(_FULL, task_weight=(0.0, 1.0)),
        replace(_PAPER, optimizer="adam"),
        _EXTRACTOR - (_LOSS - {"whole_set"}),
    ),
    "dfr": Method(dfr, _DEFAULTS, _PAPER, _EVERY),
    "fairprune": Method(fairprune, _FULL, _PAPER, _EVERY | _BLOCKS | {"precision"}),
    "threshold": Method(threshold_shift, _DEFAULTS, _PAPER, _EVERY),
}


PRESETS = ("default", "path", "paper")


def installed_methods() -> tuple[str, ...]:
    """Names in `METHODS` of those that can run here: ``lora`` needs peft."""
    return tuple(name for name in METHODS if name != "lora" or peft_installed())


def settings_for(method: str, config: Mapping[str, Any] | Settings | None = None) -> Settings:
    """The settings of a named method with these values; ``preset = "paper"`` starts from the published ones.

    ``preset = "path"``, the default of the methods that have no rising strengths, trains once and tries many heads and
    epochs along the way.

    Whole `Settings` are taken as they are.

    Raises:
        ConfigError: the method, the preset or a value is not known, or the method does not read a setting that is
            given another value than it has anyway.

    >>> settings_for("bmft", {"preset": "paper"}).fraction
    0.5
    """
    if method not in METHODS:
        raise ConfigError(unknown_name("method", method, METHODS))
    if isinstance(config, Settings):
        return config
    named, values = METHODS[method], dict(config or {})
    preset = values.pop("preset", "default")
    if preset not in PRESETS:
        raise ConfigError(f"preset is {preset!r}: expected one of {', '.join(PRESETS)}")
    base = named.preset(preset)
    settings = base.with_values(values)
    for name in values:
        if name not in named.uses and getattr(settings, name) != getattr(base, name):
            raise ConfigError(
                f"method {method!r} does not read the setting {name}: leave it out, or take another --method"
            )
    return settings
