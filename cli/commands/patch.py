"""`bmft patch`: what a debiasing changed, as a file to look at, apply and take back."""

from __future__ import annotations

import click

from ..console import settings, table, visible
from ..options import argument, entry_option, talking_options

_TRUST = click.option(
    "--trust-pickle", is_flag=True, help="Read a checkpoint that can run code; only for files you trust."
)


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
@argument("original")
@argument("patch_file", metavar="PATCH")
@click.option("--out", required=True, metavar="FILE", help="Where to write the debiased checkpoint.")
@entry_option
@_TRUST
@talking_options
def apply(original: str, patch_file: str, out: str, entry: str | None, trust_pickle: bool) -> None:
    """Apply PATCH to the ORIGINAL checkpoint it was made for; the result is the debiased one, bit for bit.

    \b
    Example:
      bmft patch apply model.pt fair.patch.safetensors --out fair.pt
    """
    _move(original, patch_file, out, entry, trust_pickle, forward=True)


@patch.command()
@argument("debiased")
@argument("patch_file", metavar="PATCH")
@click.option("--out", required=True, metavar="FILE", help="Where to write the original checkpoint.")
@entry_option
@_TRUST
@talking_options
def revert(debiased: str, patch_file: str, out: str, entry: str | None, trust_pickle: bool) -> None:
    """Take PATCH back from the DEBIASED checkpoint; the result is the original, bit for bit.

    \b
    Example:
      bmft patch revert fair.pt fair.patch.safetensors --out model.pt
    """
    _move(debiased, patch_file, out, entry, trust_pickle, forward=False)


def _move(path: str, patch_file: str, out: str, entry: str | None, trust_pickle: bool, *, forward: bool) -> None:
    from bmft.checkpoints import WeightPatch, read_checkpoint, write_checkpoint

    change = WeightPatch.load(patch_file)
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle, entry=entry).under(change.changes)
    settings().announce(checkpoint.assumed)
    state = change.apply(checkpoint.state) if forward else change.revert(checkpoint.state)
    write_checkpoint(checkpoint, state, out)
    click.echo(out)
