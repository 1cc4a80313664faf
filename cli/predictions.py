"""Predictions of any model, in any framework, in place of a checkpoint and its data; torch is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .console import settings
from .options import Common

if TYPE_CHECKING:
    from bmft.auditing import AuditReport


def check_one_source(checkpoint: str | None, predictions: str | None, common: Common) -> None:
    """Refuse both and neither of the two, and options that go with the other one.

    Raises:
        click.UsageError: which option it is.
    """
    if (checkpoint is None) == (predictions is None):
        raise click.UsageError("Give one of CHECKPOINT and --predictions FILE.")
    if checkpoint is None:
        context = click.get_current_context()
        # A default, or a line of bmft.toml that other commands need, asks for nothing.
        model_only = [str(one.name) for one in context.command.params if getattr(one, "model_only", False)]
        typed = [name for name in model_only if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if typed:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in typed)
            raise click.UsageError(f"{names}: goes with a CHECKPOINT; --predictions has scores and labels already.")
        return
    for name in ("data", "label"):
        if not getattr(common, name):
            raise click.UsageError(f"Missing option '--{name}'.")


def test_rows(common: Common, path: str) -> dict[str, Any]:
    """Where the rows to measure are said: the split column and its test splits; nothing where every row is measured.

    Raises:
        DataError: no split is for measuring.
    """
    if not common.split_column:
        return {}
    from bmft.tables import no_split, split_names, splits_by_role

    names = split_names(path, common.split_column)
    if not names and not common.test:
        return {}
    test = splits_by_role(names, {"test": common.test})["test"]
    if not test:
        raise no_split("test", common.split_column, names)
    return {"split_column": common.split_column, "split": test}


def audits_of_tables(common: Common, *paths: str, intervals: bool) -> list[AuditReport]:
    """Audit the predictions in tables as the options say: of the test split where there is a split column."""
    from bmft.auditing import audit_predictions, read_predictions

    if common.threshold_from is not None:
        raise click.UsageError("--threshold-from needs a CHECKPOINT; with --predictions give --threshold.")
    names = ("cluster", "classes", "positive", "unknown", "uncertain", "blank")
    columns: dict[str, Any] = {name: getattr(common, name) for name in names}
    found = [read_predictions(path, sensitive=common.sensitive, **columns, **test_rows(common, path)) for path in paths]
    settings().announce(one for predictions in found for one in predictions.assumed)
    measuring = {"threshold": 0.5 if common.threshold is None else common.threshold, "seed": common.seed}
    return [audit_predictions(predictions, intervals=intervals, **measuring) for predictions in found]
