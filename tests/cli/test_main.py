import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest

from bmft import errors
from bmft_cli import main as module
from bmft_cli.console import settings
from bmft_cli.main import COMMANDS, main
from bmft_cli.options import talking_options

BMFT = [sys.executable, "-m", "bmft_cli"]


def bmft(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*BMFT, *args], capture_output=True, text=True, check=False, **options)


def commands() -> list[tuple[str, click.Command]]:
    context = click.Context(module.bmft)
    found = [(name, module.bmft.get_command(context, name)) for name in module.bmft.list_commands(context)]
    inner = [
        (f"{name} {sub}", command)
        for name, group in found
        if isinstance(group, click.Group)
        for sub, command in group.commands.items()
    ]
    return found + inner


def leaves() -> list[tuple[str, click.Command]]:
    return [(name, command) for name, command in commands() if not isinstance(command, click.Group)]


def test_help_lists_the_commands_and_the_exit_codes():
    result = bmft("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name, _ in commands() if " " not in name)
    assert "130 interrupted" in result.stdout


def test_help_takes_half_a_second_of_processor_time():
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def seconds() -> float:
        before = spent()
        bmft("--help")
        return spent() - before

    assert any(seconds() < 0.5 for _ in range(3))


def test_no_command_imports_torch_before_it_runs():
    code = "import sys; from bmft_cli.main import *; c = click.Context(bmft); " + (
        "[bmft.get_command(c, n) for n in bmft.list_commands(c)]; "
        "print(sorted({'torch', 'numpy', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_version_is_the_packages():
    assert bmft("--version").stdout.strip() == "bmft 0.1.0"


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_help_shows_an_example(name, command):
    text = command.get_help(click.Context(command))
    assert "Example:" in text
    assert f"\n    bmft {name}" in text


@pytest.mark.parametrize(("name", "command"), leaves())
def test_every_command_can_show_a_traceback(name, command):
    assert "debug" in {parameter.name for parameter in command.params}


def test_without_a_command_the_help_is_shown_and_it_is_a_usage_error():
    result = bmft()
    assert result.returncode == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["debais"], "No such command 'debais'. Did you mean 'debias'?"),
        (["qqq"], "`bmft --help` lists the commands"),
        (["audit", "m.pt", "--sensitve", "sex"], "'--sensitive'"),
        (["audit"], "Missing"),
    ],
)
def test_a_usage_error_is_one_line_with_the_way_out(args, message, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("bmft: error: ")
    assert message in error
    assert "--help`" in error
    assert error.count("\n") == 1


def failing(error: BaseException) -> click.Command:
    @click.command("fail")
    @talking_options
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def fail_with(monkeypatch):
    def install(error: BaseException) -> None:
        monkeypatch.setitem(sys.modules, "bmft_cli.commands.fail", SimpleNamespace(fail=failing(error)))
        monkeypatch.setitem(COMMANDS, "fail", "Fail.")
        monkeypatch.setattr(module, "find_spec", lambda *_: True)

    return install


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.ConfigError("fraction is 2: expected at most 1"), 2, "fraction is 2: expected at most 1"),
        (errors.PolicyError("no such metric"), 2, "no such metric"),
        (errors.MissingExtraError("install bmft[search]"), 2, "install bmft[search]"),
        (errors.DataError("row 3: no label"), 4, "row 3: no label"),
        (errors.CheckpointError("cut short"), 4, "cut short"),
        (errors.NonFiniteError("loss is nan"), 4, "loss is nan"),
        (FileNotFoundError(2, "No such file", "m.pt"), 4, "m.pt: No such file"),
        (OSError("broken disk"), 4, "broken disk"),
        (MemoryError(), 4, "out of memory: try --batch-size auto"),
        (ZeroDivisionError("division by zero"), 4, "ZeroDivisionError: division by zero (a bug in bmft"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (click.exceptions.Exit(3), 3, ""),
        (BrokenPipeError(32, "Broken pipe"), 4, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_ending_has_its_code_and_one_line(error, code, line, fail_with, capfd):
    fail_with(error)
    assert main(["fail"]) == code
    shown = capfd.readouterr().err
    assert line in shown
    assert bool(shown) == bool(line)
    assert "Traceback" not in shown


def test_debug_shows_the_traceback_and_keeps_the_code(fail_with, capsys):
    fail_with(errors.DataError("row 3"))
    assert main(["fail", "--debug"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_warnings_and_the_library_s_log_are_lines_that_quiet_silences(monkeypatch, capsys):
    import logging
    import warnings

    @click.command("warn")
    @talking_options
    def warn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("two\nlines", UserWarning, stacklevel=2)
        logging.getLogger("bmft.data").warning("left out: %s", "a.png")
        logging.getLogger("bmft.data").info("nobody asked")
        settings().say("a remark")

    monkeypatch.setitem(sys.modules, "bmft_cli.commands.warn", SimpleNamespace(warn=warn))
    monkeypatch.setitem(COMMANDS, "warn", "Warn.")
    monkeypatch.setattr(module, "find_spec", lambda *_: True)
    assert main(["warn"]) == 0
    assert capsys.readouterr().err == ("bmft: warning: two lines\nbmft: warning: left out: a.png\nbmft: a remark\n")
    assert main(["warn", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_reader_that_goes_away_is_no_failed_gate():
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run([*BMFT, "--help"], stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)
    assert result.returncode == 4
    assert result.stderr == b""
