"""Options from a TOML file: ``--config``, else ``bmft.toml`` or ``[tool.bmft]`` of the current folder."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

SETTINGS = "settings"
_FILE, _SETTINGS = "bmft.config.file", "bmft.config.settings"
# Code that a file can run is trusted by a person, never by a file that happens to lie in the folder.
_FLAGS_ONLY = {"config", "debug", "help", "trust_pickle"}


def config_option(command: Any) -> Any:
    """Give a command ``--config``: the file's values become the defaults of the command's other options.

    Keys are option names, with ``-`` or ``_``; repeatable options are lists. A table named after a command
    holds for that command only; the table ``[settings]`` goes to the method as it is (`method_settings`).
    """
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_layer,
        help="Options from a TOML file; flags win. [default: bmft.toml, or [tool.bmft] in pyproject.toml, "
        "of the current folder]",
    )(command)


def config_file() -> Path | None:
    """The file that the running command's options were read from."""
    path: Path | None = click.get_current_context().meta.get(_FILE)
    return path


def method_settings() -> dict[str, Any]:
    """The file's table ``[settings]``."""
    return dict(click.get_current_context().meta.get(_SETTINGS, {}))


def _layer(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    found = _find(value)
    if found is None or ctx.resilient_parsing:
        return
    path, content = found
    commands = _commands(ctx)
    own_tables = [name for name in [*commands, SETTINGS] if isinstance(content.get(name), dict)]
    tables = {name: content.pop(name) for name in own_tables}
    anywhere = {name: option for command in commands.values() for name, option in _options(command).items()}
    own = _options(ctx.command)
    values = {key: entry for key, entry in _named(path, content, anywhere).items() if key in own}
    values |= _named(path, tables.get(ctx.command.name or "", {}), own)
    ctx.default_map = {key: _as_typed(f"{path}: {key}", entry, own[key]) for key, entry in values.items()}
    ctx.meta[_FILE], ctx.meta[_SETTINGS] = path, tables.get(SETTINGS, {})


def _find(value: str | None) -> tuple[Path, dict[str, Any]] | None:
    if value is not None:
        return Path(value), _load(Path(value))
    own, project = Path("bmft.toml"), Path("pyproject.toml")
    if own.is_file():
        return own, _load(own)
    if project.is_file():
        tools = _load(project).get("tool")
        table = tools.get("bmft") if isinstance(tools, dict) else None
        if not isinstance(table, dict | None):
            raise click.UsageError(f"{project}: tool.bmft is {_shown(table)}; expected a table [tool.bmft].")
        return None if table is None else (project, table)
    return None


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    # A ValueError that is no TOMLDecodeError: not UTF-8, or a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{path} is no TOML file: {error}") from error


def _commands(ctx: click.Context) -> dict[str, click.Command]:
    group = ctx.find_root().command
    if not isinstance(group, click.Group):
        return {ctx.command.name or "": ctx.command}
    found = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    return {name: command for name, command in found.items() if command is not None}


def _options(command: click.Command) -> dict[str, click.Parameter]:
    return {p.name: p for p in command.params if p.name and p.name not in _FLAGS_ONLY}


def _named(path: Path, entries: Mapping[str, Any], known: Mapping[str, object]) -> dict[str, Any]:
    values = {key.replace("-", "_"): value for key, value in entries.items()}
    for key in values:
        if key in _FLAGS_ONLY:
            raise click.UsageError(f"{path}: --{key.replace('_', '-')} is for the command line only.")
        if key not in known:
            from bmft._common import did_you_mean

            hint = did_you_mean(key, known, "Keys are the names of options (see --help).")
            raise click.UsageError(f"{path}: unknown key {_shown(key)}. {hint}")
    return values


def _as_typed(where: str, value: Any, option: click.Parameter) -> Any:
    """The value as the command line would have it, so that it meets the same checks."""
    many = getattr(option, "multiple", False)
    if isinstance(value, list) and (many or getattr(option.type, "takes_list", False)):
        return [_text(where, entry) for entry in value]
    if getattr(option, "is_flag", False) and not isinstance(value, bool):
        raise click.UsageError(f"{where} is {_shown(value)}; expected true or false.")
    text = value if getattr(option, "is_flag", False) else _text(where, value)
    return [text] if many else text


def _text(where: str, value: Any) -> str:
    large = isinstance(value, int) and abs(value) >= 2**64
    if isinstance(value, bool) or large or not isinstance(value, str | int | float):
        raise click.UsageError(f"{where} is {_shown(value)}; expected a text or a number, as on the command line.")
    return str(value)


def _shown(value: Any) -> str:
    # Imported when there is something to say, as pandas comes with it.
    from bmft._common import shown

    return shown(value)
