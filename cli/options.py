"""The options that commands share; each command receives their values as one `Common`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import partial, wraps
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import click
from click.shell_completion import CompletionItem

from .config import config_file, config_option
from .console import Terminal, settings

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Common(SimpleNamespace):
    """The values of the options that every command about a model and its data has, each by its option's name."""

    def but(self, **values: Any) -> Common:
        """The same with these values."""
        return Common(**{**vars(self), **values})


def import_from_here() -> None:
    """Let modules of the current folder be imported, after all others.

    A console script has its own folder on the path instead, and a user's function lies beside their data.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def imported(option: str, name: str) -> Any:
    """What ``package.module:name``, the value of `option`, names; modules of the current folder too.

    Raises:
        click.UsageError: it cannot be imported, or is not there.
    """
    import_from_here()
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a user's module can fail in any way
        what = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise click.UsageError(f"{option} {name}: {what}{first_line(error)}. Expected package.module:name.") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or ["it says no more"])[0].rstrip(".")


class Command(click.Command):
    """A command whose help lists its options under the sections they were given."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, the command's own options first."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            # Arguments are in the usage line.
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class _Option(click.Option):
    """`section` is where in the help it stands; `model_only`: nobody reads it where predictions are measured."""

    def __init__(self, *args: Any, section: str = "Options", model_only: bool = False, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section, self.model_only = section, model_only


_ON_DISK = {"FILE": "file", "CSV": "file", "TOML": "file", "CHECKPOINT": "file", "PATCH": "file", "DIR": "dir"}


def _completed(_: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell offers for a file or a folder: its own list."""
    return [CompletionItem(incomplete, type=_ON_DISK.get(param.metavar or "FILE", "file"))]


def option(*declarations: str, **attributes: Any) -> Decorator:
    """`click.option` that shows its default and takes the ``section`` of the help it stands in."""
    if attributes.get("metavar") in _ON_DISK:
        attributes = {"shell_complete": _completed, **attributes}
    return click.option(*declarations, cls=_Option, **{"show_default": True, **attributes})


def jobs_option(help: str) -> Decorator:
    """``--jobs`` of a command that works in several processes."""
    return option("--jobs", type=click.IntRange(1), metavar="N", help=help)


def argument(name: str, **attributes: Any) -> Decorator:
    """`click.argument` of a file; a shell completes its name."""
    return click.argument(name, shell_complete=_completed, **attributes)


def apply_options(function: Callable[..., Any], options: Iterable[Decorator]) -> Callable[..., Any]:
    """Decorate `function` so that the options are listed in this order."""
    for decorator in reversed(list(options)):
        function = decorator(function)
    return function


class Pair(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """One number, or two with a comma (step 1, step 2); a list in TOML."""

    takes_list = True

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = "N[,M]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or both as a tuple."""
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            numbers = tuple(self.kind(part) for part in parts)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) not in (1, 2):
            self.fail(f"{value!r} is not one number, or two for step 1 and step 2, such as 10,5.", param, ctx)
        return numbers if len(numbers) == 2 else numbers[0]


class Names(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Names with commas between them; a list in TOML."""

    name = "NAME,NAME,..."
    takes_list = True

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The names as a tuple."""
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        names = tuple(str(part).strip() for part in parts)
        if len(names) < 2 or "" in names or len(set(names)) < len(names):
            self.fail(f"{value!r} is not two or more names, each once, such as nevus,melanoma.", param, ctx)
        return names


class Assigned(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A name and what it stands for, with ``=`` between them; the value as `parse` gives it."""

    takes_list = True

    def __init__(self, name: str, example: str, parse: Callable[[str], Any] = str) -> None:
        self.name, self.example, self.parse = name, example, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name and the value."""
        if isinstance(value, tuple):
            return value
        name, _, text = (part.strip() for part in str(value).partition("="))
        if not name or not text:
            self.fail(f"{value!r} is not {self.name}, such as {self.example}.", param, ctx)
        return name, self.parse(text)


def common_options(*, sensitive_required: bool = True, data_required: bool = True) -> Decorator:
    """Give a command the common options; it receives them as one argument, `common`."""
    shared = [*_data(sensitive_required, data_required), *_MODEL, *_RUN]
    names = {parameter.name for parameter in apply_options(click.command()(lambda: None), shared).params}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**values: Any) -> Any:
            if file := config_file():
                settings().say(f"options from {file}")
            return function(common=Common(**{name: values.pop(name) for name in names}), **values)

        return apply_options(command, [*shared, config_option, talking_options])

    return decorate


def talking_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--quiet`` and ``--debug``; they set `console.settings`."""
    quiet = _switch("-q", "--quiet", help="Print the result only: no progress, no remarks.")
    return apply_options(function, [quiet, _switch("--debug", help="Show the traceback of an error.")])


def _switch(*declarations: str, help: str) -> Decorator:
    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        setattr(ctx.ensure_object(Terminal), str(param.name), value)

    return click.option(*declarations, is_flag=True, expose_value=False, callback=remember, help=help)


input_option = option(
    "--input",
    multiple=True,
    section="Data",
    model_only=True,
    metavar="COL[=HOW]",
    help="Column that the network takes beside the image: age=62.5/14.2 (MEAN/STD of its training), site=head,trunk "
    "(names as integers) or sex=female:0,male:1 (as numbers). Repeatable, in order. [default: what the file records]",
)


def _data(sensitive_required: bool, data_required: bool) -> list[Decorator]:
    data = partial(option, section="Data")
    of_a_model = partial(data, model_only=True)
    return [
        of_a_model(
            "--data",
            required=data_required,
            metavar="FILE",
            help="Manifest: CSV, TSV, Parquet, xlsx, JSON lines, or an npz of images with such a table beside it.",
        ),
        of_a_model(
            "--label",
            required=data_required,
            multiple=True,
            metavar="COL",
            help="Label column; several are labels of 0/1 each, or classes if exactly one is 1 in every row.",
        ),
        data(
            "--classes",
            type=Names(),
            metavar="NAME,NAME,...",
            help="Classes in the order of the model's outputs. [default: what the checkpoint says]",
        ),
        data(
            "--positive",
            metavar="NAME",
            help="Which of two classes is positive. [default: 1, true, yes, positive, pos, else the last class]",
        ),
        data(
            "--sensitive",
            required=sensitive_required,
            multiple=True,
            metavar="COL",
            help="Attribute: sex, age:40,60 (cut into groups), sex*age:60 (intersection). Repeatable.",
        ),
        data(
            "--unknown",
            multiple=True,
            metavar="[COL=]CODE",
            help="Further code for not known; COL= alone: no code but an empty value is. Repeatable. "
            "[default: -1, unknown, NA, ?, ... as in docs/assumptions.md]",
        ),
        data(
            "--uncertain",
            multiple=True,
            metavar="[COL=]MEANING",
            help="What labels of -1 are: unknown, positive or negative. Repeatable. [default: unknown]",
        ),
        data(
            "--blank",
            multiple=True,
            metavar="[COL=]MEANING",
            help="What empty labels are: unknown or negative. Repeatable. [default: unknown]",
        ),
        of_a_model(
            "--images", metavar="DIR", help="Folder that image paths are relative to. [default: the manifest's]"
        ),
        data(
            "--path-column",
            default="path",
            metavar="COL",
            help="Column of image paths; file_name, image and their like are found.",
        ),
        input_option,
        of_a_model(
            "--suffix", default="", metavar=".EXT", help="What image paths lack, such as .jpg where they are ids."
        ),
        data("--split-column", metavar="COL", help="Column that says which split a row is in."),
        *(
            data(f"--{name}", multiple=True, metavar="NAME", help=f"Split that {what}. Repeatable. [default: {names}]")
            for name, what, names in (
                ("fit", "weights are moved on", "fit, train or training"),
                ("select", "the result is chosen on", "select, val, valid, validation or dev; else cut from fit"),
                ("test", "is only measured on", "test or testing"),
            )
        ),
        data(
            "--allow-shared-rows",
            is_flag=True,
            help="Take images or patients that are in several splits, and say so in the report.",
        ),
        data(
            "--cluster",
            metavar="COL",
            help="Column of patient (lesion, ...) ids; a patient stays on one side of every split.",
        ),
        data(
            "--on-bad-image",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            help="What to do when images cannot be read.",
        ),
        of_a_model(
            "--image-size",
            type=click.IntRange(1),
            metavar="N",
            help="Side of the square that images become. [default: what the checkpoint says, else as they are]",
        ),
        of_a_model(
            "--bits",
            type=click.IntRange(9, 16),
            metavar="N",
            help="Bits that images of 16 bits per pixel use, such as 12. [default: 16]",
        ),
        of_a_model(
            "--normalize",
            metavar="NAME",
            help="imagenet, half, none or MEAN/STD (0.76,0.55,0.57/0.14,0.15,0.17) after scaling to [0, 1]. "
            "[default: what the checkpoint or a file beside it says, else imagenet]",
        ),
        of_a_model(
            "--resize",
            type=click.Choice(["shorter", "squash", "pad"]),
            help="The shorter side, then the centre is cut out; both sides; or the longer side, then black around it.",
        ),
        of_a_model(
            "--crop-fraction",
            type=click.FloatRange(0, 1, min_open=True),
            metavar="F",
            help="Share of the resized side that is cut out, such as 0.875.",
        ),
        of_a_model(
            "--interpolation",
            type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]),
            help="How images are resized.",
        ),
        of_a_model(
            "--transform",
            metavar="NAME",
            help="package.module:callable, from a PIL image to a (c, h, w) tensor, which is used as it is.",
        ),
    ]


_model = partial(option, section="Model", model_only=True)
entry_option = _model(
    "--entry",
    model_only=False,
    metavar="NAME",
    help="Which set of weights in the file, as bmft inspect lists them. [default: what libraries open by default]",
)
trust_option = _model(
    "--trust-pickle", is_flag=True, help="Read a checkpoint that can run code; only for files you trust."
)
_arch = _model(
    "--arch",
    metavar="NAME",
    help="torchvision:resnet18, timm:vit_tiny_patch16_224, monai:DenseNet121, package.module:factory or "
    "file.py:Class(a=1). "
    "[default: what the checkpoint says, else inferred from its weights]",
)
_num_classes = _model("--num-classes", type=click.IntRange(1), metavar="N", help="Outputs of the head.")
head_option = _model("--head", metavar="NAME", help="Module that makes the logits. [default: found]")
_MODEL = [
    entry_option,
    _arch,
    _num_classes,
    head_option,
    _model(
        "--answer",
        metavar="KEY|INDEX",
        help="Part of what the model returns that is meant, such as label or 1. [default: the only one that fits]",
    ),
    _model(
        "--answer-is",
        type=click.Choice(["logits", "probabilities"]),
        help="What that part holds. [default: logits; refused if all of it is between 0 and 1]",
    ),
    _model(
        "--output",
        metavar="NAME|INDEX",
        help="Which of the model's many outputs the label is about: its name in the checkpoint, or its place from 0.",
    ),
    _model(
        "--output-is",
        type=click.Choice(["label", "class"]),
        help="A yes or no of its own, or one class of a softmax. [default: what the checkpoint says, else a label]",
    ),
    _model("--multi-label", is_flag=True, help="The outputs are labels of yes or no each, not classes."),
    _model(
        "--threshold",
        model_only=False,
        type=click.FloatRange(0, 1),
        metavar="P",
        help="Probability from which a case counts as positive. [default: 0.5]",
    ),
    _model(
        "--threshold-from",
        model_only=False,
        type=click.Choice(["select"]),
        metavar="select",
        help="Pick the threshold of best balanced accuracy on the select split.",
    ),
    trust_option,
]


def network_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command without rows the options that say how its checkpoint is opened; see `job.open_network`."""
    return apply_options(function, [entry_option, _arch, _num_classes, trust_option, talking_options])


class BatchSize(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A positive number, or ``auto``."""

    name = "batch size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or ``auto`` as it is."""
        return "auto" if value == "auto" else click.IntRange(1).convert(value, param, ctx)


_run = partial(option, section="Run")
_RUN = [
    _run("--seed", type=click.IntRange(0), default=0, metavar="N", help="Same seed, same machine: the same bytes."),
    _run("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute."),
    _run(
        "--batch-size",
        type=BatchSize(),
        metavar="N|auto",
        help="Images per step; auto: the method's, computed in smaller pieces where memory runs out.",
    ),
    _run(
        "--workers",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Threads that decode images; 0: one per processor, at most 8.",
    ),
]
