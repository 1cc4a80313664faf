"""`bmft patch`: what a debiasing changed, as a file to look at, apply and take back."""

from __future__ import annotations

from typing import Any

import click

from ..console import settings, table, visible
from ..options import Decorator, apply_options, argument, entry_option, talking_options, trust_option


def _changing(metavar: str, result: str) -> Decorator:
    """The options of a command that takes a checkpoint and PATCH, and writes another checkpoint."""
    options = [
        argument("checkpoint", metavar=metavar),
        argument("patch_file", metavar="PATCH"),
        click.option("--out", required=True, metavar="FILE", help=f"Where to write the {result} checkpoint."),
        entry_option,
        trust_option,
        talking_options,
    ]
    return lambda function: apply_options(function, options)


@click.group()
def patch() -> None:
    """Show, apply or revert what a debiasing changed.

    \b
    Example:
      bmft patch show fair.patch.safetensors
      bmft patch apply model.pt fair.patch.safetensors --out fair.pt
    """


@patch.command()
@argument("patch_file", metavar="PATCH")
@talking_options
def show(patch_file: str) -> None:
    """List what PATCH changes: per tensor how many values, and how far.

    \b
    Example:
      bmft patch show fair.patch.safetensors
    """
    from bmft.checkpoints import patch_summary

    summary = patch_summary(patch_file)
    rows = [["tensor", "moved", "of", "share", "L2 norm", "largest"]]
    for name, entry in summary["layers"].items():
        rows.append(_row(name, entry, entry["total"]))
    total = sum(entry["total"] for entry in summary["layers"].values())
    click.echo(table([*rows, _row("all of these", summary, total)]))
    for key in ("before_hash", "after_hash"):
        click.echo(visible(f"{key.replace('_', ' ')}  {summary[key]!s:.64}"))
    for key, value in summary["recipe"].items():
        click.echo(visible(f"{key}: {value}".replace("\n", " ")))


def _row(name: str, entry: dict[str, float], total: float) -> list[str]:
    moved = entry["moved"]
    share = moved / total if total else 0.0
    norms = [f"{entry[key]:.3g}" for key in ("l2_norm", "max_abs")]
    return [name, f"{moved:,}", f"{total:,}", f"{share:.1%}", *norms]


@patch.command()
@_changing("ORIGINAL", "debiased")
def apply(**options: Any) -> None:
    """Apply PATCH to the ORIGINAL checkpoint it was made for; the result is the debiased one, bit for bit.

    \b
    Example:
      bmft patch apply model.pt fair.patch.safetensors --out fair.pt
    """
    _move(forward=True, **options)


@patch.command()
@_changing("DEBIASED", "original")
def revert(**options: Any) -> None:
    """Take PATCH back from the DEBIASED checkpoint; the result is the original, bit for bit.

    \b
    Example:
      bmft patch revert fair.pt fair.patch.safetensors --out model.pt
    """
    _move(forward=False, **options)


def _move(checkpoint: str, patch_file: str, out: str, entry: str | None, trust_pickle: bool, *, forward: bool) -> None:
    from bmft.checkpoints import WeightPatch, read_checkpoint, read_inputs, write_checkpoint

    change = WeightPatch.load(patch_file)
    opened = read_checkpoint(checkpoint, trust_pickle=trust_pickle, entry=entry).under(change.changes)
    settings().announce(opened.assumed)
    state = change.apply(opened.state) if forward else change.revert(opened.state)
    columns = read_inputs(change.recipe.get("inputs", ()), patch_file)
    # The original had no record of its network's inputs, so that going back takes it away.
    write_checkpoint(opened, state, out, inputs=columns if forward or not columns else None)
    click.echo(out)
