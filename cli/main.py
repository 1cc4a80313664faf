"""The command `bmft`: which commands there are, and what each way of ending means to the caller."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click
from click.shell_completion import shell_complete

from .console import INTERRUPTED, RUNTIME, USAGE, Terminal, visible
from .distributed import first, working_together

# The one-line helps stand here so that `bmft --help` imports no command.
COMMANDS = {
    "debias": "Reduce a checkpoint's gap between groups; write the new checkpoint and a report.",
    "audit": "Measure a checkpoint group by group.",
    "gate": "Decide by a policy whether a checkpoint passes.",
    "compare": "Run every method and baseline under one budget.",
    "search": "Search for what to fine-tune (FairTune).",
    "plan": "Say how many samples a gate needs.",
    "patch": "Show, apply or revert what a debiasing changed.",
    "export": "Write a checkpoint as ONNX or as a folder for the hub.",
    "inspect": "Say what a checkpoint holds and what would be tuned.",
    "prepare": "Turn a public dataset's folder, or a form such as DICOM or Parquet, into a manifest.",
    "demo": "Run the main job on generated data.",
}

_COMPLETE = "_BMFT_COMPLETE"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands whose modules are there, in the order of the table."""
        return [name for name in COMMANDS if find_spec(f".commands.{name}", __package__)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of that name and return its function of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(import_module(f".commands.{cmd_name}", __package__), cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or name the nearest one."""
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            from bmft._common import did_you_mean

            hint = did_you_mean(name, self.list_commands(ctx), "`bmft --help` lists the commands.")
            raise click.UsageError(f"No such command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    epilog="Exit codes: 0 done or pass, 1 gate failed or nothing written, 2 usage, 3 inconclusive, "
    "4 runtime or data error, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="bmft", message="%(prog)s %(version)s")
@click.pass_context
def bmft(ctx: click.Context) -> None:
    """Measure the gaps between groups that a trained PyTorch classifier shows, and reduce them by moving
    only the weights that carry them.

    \b
    Example:
      bmft debias model.pt --data isic.csv --label malignant --sensitive sex --report report
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one line."""
    settings = Terminal()
    # Until the processes have met, all see the same.
    settings.told = not first()
    try:
        with settings.speaking():
            code = _invoke(list(sys.argv[1:] if args is None else args), settings)
        # Written now, so that a reader that went away is met here and not at interpreter exit.
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUNTIME
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nbmft: interrupted", err=True)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 whatever goes wrong, a script gets a code of the contract
        if settings.debug:
            traceback.print_exc()
        code, message = _explain(error)
        if not settings.told:
            click.echo(f"bmft: error: {visible(message)}", err=True)
    return code


def _invoke(args: list[str], settings: Terminal) -> int:
    # Not `bmft.main()`: it turns a broken pipe into exit code 1, which here means a failed gate.
    try:
        command = next((arg for arg in args if arg in COMMANDS), "")
        with bmft.make_context("bmft", args, obj=settings) as context, working_together(command, settings):
            bmft.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _explain(error: Exception) -> tuple[int, str]:
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "bmft"
        return USAGE, f"{error.format_message()} (see `{where} --help`)"
    if isinstance(error, click.ClickException):
        return RUNTIME, error.format_message()
    if isinstance(error, _known()):
        errors = sys.modules["bmft.errors"]
        usage = isinstance(error, errors.ConfigError | errors.MissingExtraError)
        return (USAGE if usage else RUNTIME), str(error)
    if isinstance(error, OSError):
        return RUNTIME, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return RUNTIME, "out of memory: try --batch-size auto"
    first = (str(error).splitlines() or [""])[0]
    return RUNTIME, f"{type(error).__name__}: {first} (a bug in bmft; --debug shows where)"


def _known() -> tuple[type[Exception], ...]:
    # Our own errors were imported by whoever raised one; importing bmft here could fail as it did there.
    errors = sys.modules.get("bmft.errors")
    return (errors.BmftError,) if errors else ()


def run() -> None:
    """The console script; with ``_BMFT_COMPLETE`` set, what a shell asks to complete a line."""
    if instruction := os.environ.get(_COMPLETE):
        sys.exit(shell_complete(bmft, {}, "bmft", _COMPLETE, instruction))
    sys.exit(main())
