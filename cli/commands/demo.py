"""`bmft demo`: the main job, from nothing."""

from __future__ import annotations

import io
from pathlib import Path

import click

from ..console import put, settings
from ..options import Command, option, talking_options
from .debias import debias


@click.command(cls=Command)
@option("--out", default="demo", metavar="DIR", help="Where the images, the checkpoints and the report go.")
@option("--number", type=click.IntRange(100), default=5000, metavar="N", help="Images to draw.")
@option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Same seed, same machine: the same bytes.")
@talking_options
@click.pass_context
def demo(ctx: click.Context, out: str, number: int, seed: int) -> None:
    """Debias a small biased classifier of synthetic skin images, with the command that is used for real ones.

    Images are drawn by formula (no photograph, no patient). The classifier is trained on an archive where
    malignant lesions on dark skin are rare; what is reported is measured on images that took no part.

    \b
    Example:
      bmft demo --out demo
    """
    folder = Path(out)
    settings().say(f"drawing {number:,} synthetic images into {folder}")
    manifest = _draw(folder, number, seed)
    settings().say("training a small classifier on the biased archive")
    checkpoint = _train(folder, manifest, seed)
    config = folder / "bmft.toml"
    put(_CONFIG.format(manifest=manifest.as_posix(), seed=seed), config)
    arguments = [str(checkpoint), "--config", str(config), "--out", str(folder / "debiased.pt"), "--report", out]
    settings().say(f"now the main job: bmft debias {' '.join(arguments)}")
    with debias.make_context("debias", arguments, parent=ctx) as context:
        debias.invoke(context)


_CONFIG = """\
data = "{manifest}"
label = "label"
sensitive = "skin"
cluster = "patient_id"
split-column = "split"
arch = "bmft.datasets.demo:build_model"
normalize = "imagenet"
seed = {seed}
"""


def _draw(folder: Path, number: int, seed: int) -> Path:
    from bmft.datasets import write_demo

    return write_demo(folder, number, seed)


def _train(folder: Path, manifest: Path, seed: int) -> Path:
    import torch

    from bmft.data import load_manifest
    from bmft.datasets import train_demo_model

    archive = load_manifest(manifest, target="label", sensitive="skin", split_column="split", split="train")
    buffer = io.BytesIO()
    torch.save({"state_dict": train_demo_model(archive, seed).state_dict()}, buffer)
    put(buffer.getvalue(), folder / "biased.pt")
    return folder / "biased.pt"
