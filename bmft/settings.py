"""What a method can be told: one frozen set of values, each written once, with its help, its choices and its bounds.

The checks, the documentation and the options of the command line are made from the fields. Nothing here needs torch, so
that help is printed without it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from bmft._common import shown, unknown_name
from bmft.errors import ConfigError


@dataclass(frozen=True)
class Fact:
    """The facts about a setting: its help, its choices and its bounds.

    Attributes:
        help: what it is, in a phrase.
        choices: the names it can have; empty where anything goes.
        custom: whether a callable will do in place of a name; at the command line ``package.module:name``.
        low, high: the bounds of a number.
        open: whether the lower (``"low"``) or the upper bound (``"high"``) is itself out of the question.
        option: whether the command line has an option for it; every setting can be given by ``--set``.
    """

    help: str
    choices: tuple[str, ...] = ()
    custom: bool = False
    low: float = -math.inf
    high: float = math.inf
    open: Literal["", "low", "high"] = ""
    option: bool = False

    def check(self, name: str, value: Any) -> None:
        """Every part of the value is possible.

        Raises:
            ConfigError: one is not.
        """
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if self.choices and part not in self.choices and not (self.custom and callable(part)):
                if self.custom:
                    raise ConfigError(unknown_name(name, str(part), dict.fromkeys(self.choices)))
                raise ConfigError(f"{name} is {shown(part)}: expected one of {', '.join(self.choices)}")
            if not self.choices and isinstance(part, (int, float)) and not self._inside(part):
                raise ConfigError(f"{name} is {shown(value)}: expected {self._range()}")

    def _inside(self, value: float) -> bool:
        above = value > self.low if self.open == "low" else value >= self.low
        return above and (value < self.high if self.open == "high" else value <= self.high)

    def _range(self) -> str:
        low = f"{'more than' if self.open == 'low' else 'at least'} {self.low:g}"
        high = f" and {'less than' if self.open == 'high' else 'at most'} {self.high:g}"
        return low + (high if self.high < math.inf else "")


def _setting(default: Any, help: str, **facts: Any) -> Any:
    return field(default=default, metadata={"fact": Fact(help, **facts)})


_Named = str | Callable[..., Any]
_Balance = Literal["none", "group", "group_in_label", "cell"]
_LISTS = ("tune", "freeze", "augment", "path", "strengths", "views")  # a single value is a list of one, no pair
_ZERO_TO_ONE: Any = {"low": 0, "high": 1, "open": "low"}


@dataclass(frozen=True)
class Settings:
    """What a method can be told; every method has its own defaults, and reads only some of them.

    A pair is (step 1, step 2): the extractor, then the head; a single number stands for both.
    """

    objective: _Named = _setting(
        "equalized_odds",
        "the gap to close",
        choices=(
            "equalized_odds",
            "equal_opportunity",
            "demographic_parity",
            "false_positive_rate",
            "false_negative_rate",
            "accuracy",
            "worst_group_loss",
        ),
        custom=True,
        option=True,
    )
    combine: Literal["mean", "worst"] = _setting("mean", "what several attributes' gaps count as", option=True)
    epochs: tuple[int, int] = _setting((10, 5), "passes over the fit rows in step 1, step 2", low=0, option=True)
    lr: tuple[float, float] = _setting(
        (0.0, 1e-2), "learning rate of step 1, step 2; 0: found by a line search", low=0, option=True
    )
    trust: float = _setting(
        0.1, "where the rate is found, the share of the best step along the first gradient", low=0, open="low"
    )
    optimizer: _Named = _setting(
        "sgd", "who takes the steps", choices=("sgd", "adam", "adamw", "rmsprop", "adagrad"), custom=True, option=True
    )
    momentum: float = _setting(0.9, "of SGD and RMSprop")
    weight_decay: float = _setting(0.0, "of both steps; weights outside the mask do not decay", low=0)
    batch_size: int = _setting(64, "samples per step", low=1)
    on_out_of_memory: Literal["fail", "halve"] = _setting(
        "fail", "halve: half as many samples at once for as long as memory runs out; a step stays of batch_size samples"
    )
    checkpointing: Literal["auto", "on", "off"] = _setting(
        "auto",
        "whether training passes keep only what enters each block and compute the rest again: the same gradients in "
        "less memory, for a third more time; auto: once memory has run out",
        option=True,
    )
    strengths: tuple[float, ...] = _setting(
        (),
        "weights of the gap in step 1's loss, from the weakest; the end of each is a candidate. None: one training at "
        "the first bias_weight, and candidates along the path",
        low=0,
    )
    order_weight: float = _setting(0.0, "weight of the term that holds the ranking inside each group", low=0)
    views: tuple[str, ...] = _setting(
        (),
        "flips of the fit images that step 1 sees, too: those the network was trained with, or none; auto: hflip and "
        "vflip as far as it answers flipped images alike",
        choices=("auto", "none", "hflip", "vflip", "transpose"),
        option=True,
    )
    warmup: int = _setting(0, "steps over which step 1's learning rate rises", low=0)
    bias_weight: tuple[float, ...] = _setting(
        (2.0, 1.0, 0.4, 0.1),
        "weight of the gap in the loss: the first is step 1's, every other is tried in step 2, in this order",
        low=0,
        option=True,
    )
    task_weight: tuple[float, float] = _setting((1.0, 1.0), "weight of the cross-entropy in the loss")
    others_weight: float = _setting(
        30.0,
        "where one of many outputs is debiased, the weight in the loss of how far the others' probabilities move",
        low=0,
    )
    weigh: Literal["none", "label", "cell"] = _setting("none", "whose samples weigh the same in the cross-entropy")
    balance: tuple[_Balance, _Balance] = _setting(("cell", "cell"), "of the batches of step 1, step 2")
    whole_set: bool = _setting(True, "the gap is the whole set's; otherwise each batch's own, as published")
    average: float = _setting(
        0.95, "decay of the moving average of the weights over steps; 0 for none", low=0, high=1, open="high"
    )
    augment: tuple[str, ...] = _setting(
        (), "flips, each done to half of a batch's images", choices=("hflip", "vflip", "transpose")
    )
    norm_stats: Literal["frozen", "update"] = _setting(
        "frozen", "what becomes of normalization statistics", option=True
    )
    choose: str = _setting(
        "gap",
        "what is best among the epochs that do no harm",
        choices=(
            "gap",
            "worst_group_auc",
            "worst_group_accuracy",
            "auc_gap",
            "accuracy_gap",
            "equalized_odds",
            "average_odds",
            "largest_group_loss",
            "auc",
            "accuracy",
        ),
    )
    patience: int = _setting(
        3, "epochs of step 1 without harm that are no better on select after which it stops; 0 for never", low=0
    )
    precision: Literal["auto", "float32", "bf16"] = _setting(
        "auto", "of the training passes; what is measured is float32", option=True
    )
    score: _Named = _setting(
        "fisher",
        "importance of a weight",
        choices=("fisher", "saliency", "input_x_gradient", "integrated_gradients", "random", "ones"),
        custom=True,
        option=True,
    )
    rank: Literal["bias", "ratio"] = _setting("bias", "by importance for the gap, or by its ratio to that for the task")
    scale: Literal["tensor", "global"] = _setting(
        "tensor", "compare importances within each tensor, or over all", option=True
    )
    floor: float = _setting(1e-10, "added to the task's share in the ratio")
    exact: bool = _setting(True, "importance by the whole set's gradient; else the mean over batches, as published")
    depth: float = _setting(
        0.75,
        "share of the blocks, counted from the head down, in which weights may move unless tune names them; 1 for all, "
        "as in networks of fewer than six blocks",
        **_ZERO_TO_ONE,
        option=True,
    )
    fraction: float = _setting(
        0.05, "share of those blocks' weights that may move, such as 0.05 for 5 %", **_ZERO_TO_ONE, option=True
    )
    granularity: Literal["weight", "channel", "layer", "block"] = _setting(
        "weight", "what is chosen as a whole", option=True
    )
    path: tuple[float, ...] = _setting(
        (0.25, 0.5, 0.75, 1.0),
        "how far along step 1 the extractor goes for step 2, as fractions of the way; every one is tried",
        low=0,
        high=1,
    )
    reset: Literal["zero", "partial", "keep"] = _setting("zero", "the head before step 2")
    operating_point: Literal["kept", "free"] = _setting(
        "kept",
        "kept: candidates have the head's bias put where as many fit rows are called positive as by the original (in "
        "preset path they are tried as trained, too); free: as trained",
        option=True,
    )
    tune: tuple[str, ...] = _setting(
        (), "only parameters whose names match a pattern may move in step 1, in whatever block", option=True
    )
    freeze: tuple[str, ...] = _setting((), "parameters whose names match a pattern stay in step 1", option=True)

    def __post_init__(self) -> None:
        for name, fact in FACTS.items():
            fact.check(name, getattr(self, name))
        if self.on_out_of_memory == "halve" and self.norm_stats == "update":
            raise ConfigError("norm_stats = 'update' needs whole batches, which on_out_of_memory = 'halve' may cut")
        if self.checkpointing == "on" and self.norm_stats == "update":
            raise ConfigError("norm_stats = 'update' would count a batch twice: take checkpointing off")
        if len(self.bias_weight) < 2:
            raise ConfigError(
                f"bias_weight is {list(self.bias_weight)}: expected one for step 1 and at least one for step 2"
            )
        if len(self.views) > 1 and {"auto", "none"} & {*self.views}:
            raise ConfigError(f"views is {list(self.views)}: auto and none stand alone")
        if not self.path:
            raise ConfigError("path is []: expected fractions in [0, 1]")

    def with_values(self, values: Mapping[str, Any]) -> "Settings":
        """The same settings with these values; a single number stands for both steps.

        Raises:
            ConfigError: a name is unknown, or a value is not possible.
        """
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in values:
            if name not in known:
                raise ConfigError(unknown_name("setting", name, known))
        return replace(self, **{name: _fitting(name, value, known[name]) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the reports and `with_values` have them; a callable by its qualified name."""
        return {k: _plain(v) for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Limits:
    """What a result may cost, compared with the original on the same rows.

    Harm is what happens inside a group. The ROC AUC over everybody also counts pairs *between* groups, which equal
    error rates have to take away where the groups' shares of positives differ (`bmft.auditing.split_auc`).
    """

    max_auc_drop: float = _setting(
        0.01, "how far the mean of the groups' ROC AUCs, and of their balanced accuracies, may fall", low=0, high=1
    )
    max_group_auc_drop: float = _setting(0.02, "how far any group's ROC AUC may fall", low=0, high=1)
    max_calibration_rise: float = _setting(0.05, "how far any group's calibration error may rise", low=0, high=1)
    max_overall_auc_drop: float | None = _setting(
        None, "how far the ROC AUC over everybody may fall; by default as far as equal rates need", low=0, high=1
    )
    max_other_drift: float = _setting(
        0.05,
        "how far any other output's probability may drift, in the mean, where one of many is debiased; on fit, too",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        for name, fact in LIMITS.items():
            if getattr(self, name) is not None:
                fact.check(name, getattr(self, name))

    def __str__(self) -> str:
        """In words, such as for a table of methods."""
        overall = self.max_overall_auc_drop
        said = (
            f"on the mean of the groups, ROC AUC and balanced accuracy at most {self.max_auc_drop:g} lower; in any "
            f"group, ROC AUC at most {self.max_group_auc_drop:g} lower and the calibration error at most "
            f"{self.max_calibration_rise:g} higher"
        )
        return said if overall is None else f"{said}; over everybody, ROC AUC at most {overall:g} lower"


def _with_choices(entry: "Field[Any]", kind: Any) -> Fact:
    """The field's fact, with the choices that its type names."""
    fact: Fact = entry.metadata["fact"]
    literal = next((k for k in (kind, *get_args(kind)[:1]) if getattr(k, "__origin__", None) is Literal), None)
    return fact if literal is None else replace(fact, choices=get_args(literal))


_KINDS = get_type_hints(Settings)
FACTS: Mapping[str, Fact] = {entry.name: _with_choices(entry, _KINDS[entry.name]) for entry in fields(Settings)}
LIMITS: Mapping[str, Fact] = {entry.name: entry.metadata["fact"] for entry in fields(Limits)}
for _class, _facts in ((Settings, FACTS), (Limits, LIMITS)):
    _class.__doc__ = f"{_class.__doc__}\n    Attributes:\n" + "".join(
        f"        {name}: {fact.help}{' (' + ', '.join(fact.choices) + ')' if fact.choices else ''}.\n"
        for name, fact in _facts.items()
    )


def _plain(value: Any) -> Any:
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    return list(value) if isinstance(value, tuple) else value


def _fitting(name: str, value: Any, default: Any) -> Any:
    """`value` in the shape of `default`: lists as tuples, one value for a pair of steps as both."""
    if isinstance(default, tuple):
        several = isinstance(value, (list, tuple))
        value = tuple(value) if several else (value,) * (1 if name in _LISTS else 2)
        if name not in (*_LISTS, "bias_weight") and len(value) != 2:
            raise ConfigError(f"{name} is {shown(list(value))}: expected one value, or two (step 1, step 2)")
    empty = "" if name in ("tune", "freeze", "augment", "views") else 0.0
    sample = (default[0] if default else empty) if isinstance(default, tuple) else default
    for part in value if isinstance(value, tuple) else (value,):
        _check_kind(name, part, sample)
    return value


def _check_kind(name: str, value: Any, sample: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    wants_number = isinstance(sample, (int, float)) and not isinstance(sample, bool)
    if isinstance(sample, bool) != isinstance(value, bool) or wants_number != is_number:
        raise ConfigError(f"{name} is {shown(value)}: expected a value like {sample!r}")
    if not is_number and not isinstance(value, (bool, str)) and not callable(value):
        raise ConfigError(f"{name} is or holds {shown(value)}: expected text")
    # No setting counts as far as this, and an integer of thousands of digits is no float.
    if is_number and not abs(value) < 2**63:
        raise ConfigError(f"{name} is {shown(value)}: expected a finite number, of at most 18 digits")
    if isinstance(sample, int) and is_number and value != int(value):
        raise ConfigError(f"{name} is {value}: expected a whole number")
