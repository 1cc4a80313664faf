"""`bmft export`: a checkpoint as ONNX, or as a folder for the Hugging Face hub."""

from __future__ import annotations

from typing import Any

import click

from ..console import settings
from ..options import Command, argument, input_option, network_options, option


@click.command(cls=Command)
@argument("checkpoint")
@option("--onnx", metavar="FILE", help="Write the model as ONNX, checked against onnxruntime to 1e-4.")
@option("--hub", metavar="DIR", help="Write a folder for the hub: weights, config, model card, report. Needs --report.")
@option("--report", metavar="DIR", help="Folder that debias --report or audit --report wrote; its report is the card.")
@option("--image-size", type=click.IntRange(1), metavar="N", help="Side of the images. [default: the file's, else 224]")
@option("--answer", metavar="KEY|INDEX", help="Part of its answer that is meant. [default: the only one that fits]")
@input_option
@network_options
def export(
    checkpoint: str,
    onnx: str | None,
    hub: str | None,
    report: str | None,
    image_size: int | None,
    answer: str | None,
    input: tuple[str, ...],
    **network: Any,
) -> None:
    """Write CHECKPOINT as ONNX, or as a folder that huggingface_hub uploads as it is.

    \b
    Example:
      bmft export fair.pt --onnx fair.onnx
      bmft export fair.pt --hub fair-hub --report report
    """
    if onnx is None and hub is None:
        raise click.UsageError("Say what to write: --onnx FILE, --hub DIR or both.")
    if hub is not None and report is None:
        raise click.UsageError("--hub needs --report DIR: the model card's evaluation is in it.")
    from bmft.checkpoints import describe, plain_inputs, write_hub_folder, write_onnx
    from bmft.data import input_names
    from bmft.models import read_as
    from bmft.tables import inputs_in_words, said_columns

    from ..job import channels_of, open_network

    opened, model = open_network(checkpoint, **network)
    read_as(model, answer=answer)
    columns = said_columns(input, opened.inputs)
    settings().announce(opened.assumed)
    if onnx is not None:
        side = image_size or getattr(opened.pixels[0], "image_size", None)
        if side is None:
            settings().say("warning: image size: 224 (a guess: nothing says it; say otherwise: --image-size)")
        shape = (channels_of(model), side or 224, side or 224)
        apart = write_onnx(model, shape, onnx, columns)
        sizes = " x ".join(map(str, shape))
        beside = f"; beside it {', '.join(input_names(columns)[1:])}: {inputs_in_words(columns)}" if columns else ""
        settings().say(f"image: n x {sizes}, normalized{beside}; logits agree with torch's to {apart:.1e}")
        click.echo(onnx)
    if hub is not None and report is not None:
        found = describe(opened, model, arch=network["arch"]) | {"inputs": plain_inputs(columns)}
        for path in write_hub_folder(opened.under(model.state_dict()), found, hub, report=report):
            click.echo(path)
        settings().say(f"next: hf upload NAME/REPOSITORY {hub}")
