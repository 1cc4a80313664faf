"""`bmft inspect`: what a checkpoint holds."""

from __future__ import annotations

from typing import Any

import click

from ..console import put, settings, table
from ..options import Command, argument, head_option, input_option, network_options, option


@click.command(cls=Command)
@argument("checkpoint")
@head_option
@option("--json", "json_file", metavar="FILE", help="Write all of it here; - is standard output.")
@input_option
@network_options
def inspect(checkpoint: str, head: str | None, json_file: str | None, input: tuple[str, ...], **network: Any) -> None:
    """Say what CHECKPOINT holds: container, architecture, head, blocks, and what a debiasing would tune.

    \b
    Example:
      bmft inspect model.pt
    """
    from bmft.checkpoints import describe
    from bmft.methods import settings_for
    from bmft.models import answer_to_an_image, find_head, upper
    from bmft.report import to_json
    from bmft.tables import inputs_in_words, said_columns

    from ..job import open_network

    opened, model = open_network(checkpoint, **network)
    settings().announce(opened.assumed)
    columns = said_columns(input, opened.inputs)
    answers = answer_to_an_image(model, columns)
    found = describe(opened, model, arch=network["arch"], head=head)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    movable = upper(model, find_head(model, name=head), settings_for("bmft").depth)
    found["answers"] = answers
    found["takes"] = inputs_in_words(columns)
    found["upper"] = sum(sizes[name] for name in movable)
    click.echo(_text(found), err=json_file == "-")
    if json_file:
        put(to_json(found), json_file)


def _text(found: dict[str, Any]) -> str:
    head, pixels = found["head"], found["pixels"]
    facts = {
        "container": f"{found['container']}{_where(found)}",
        "architecture": found["arch"],
        "weights": f"{found['parameters']:,} in {found['tensors']} tensors, {', '.join(found['dtypes'])}",
        "head": f"{head['name']}: {head['num_outputs']} outputs, {head['parameters']:,} weights",
        **({"inputs": found["takes"]} if "," in found["takes"] else {}),
        "answer": found["answers"],
        **_outputs(found["outputs"]),
        "pixels": f"{pixels['said']} (from {pixels['from']})" if pixels else "nothing says how they were prepared",
        "beside it": ", ".join(f"{key} = {value}" for key, value in found["beside"].items()) or "nothing",
        "SHA-256": found["content_hash"],
    }
    return f"{table([[f'{key}:', value] for key, value in facts.items()], left=2)}\n\n{_sets(found)}{_blocks(found)}"


def _outputs(found: dict[str, Any]) -> dict[str, str]:
    """The outputs by their names (--output), where the file has them."""
    from bmft.models import listed_outputs

    return {"outputs": f"{listed_outputs(found['names'])}, from {found['source']}"} if any(found["names"]) else {}


def _sets(found: dict[str, Any]) -> str:
    """The sets of weights in the file, where there are several."""
    if len(found["sets"]) < 2:
        return ""
    rows = [["set of weights (--entry)", "tensors", "names and shapes"]]
    for one in found["sets"]:
        shapes = "taken" if one["chosen"] else "the same" if one["same"] else "others"
        rows.append([one["name"], str(one["tensors"]), shapes])
    return table(rows) + "\n\n"


def _where(found: dict[str, Any]) -> str:
    entry = f", weights under {found['entry']!r}" if found["entry"] else ""
    prefix = f", names prefixed {found['prefix']!r}" if found["prefix"] else ""
    return entry + prefix


def _blocks(found: dict[str, Any]) -> str:
    rows = [["block", "weights", "of which"]]
    for name, block in found["blocks"].items():
        parts = ", ".join(f"{kind} {count:,}" for kind, count in block["components"].items())
        rows.append([name, f"{block['parameters']:,}", parts])
    names = max(len(row[0]) for row in rows)
    counts = max(len(row[1]) for row in rows)
    lines = [f"{name.ljust(names)}  {count.rjust(counts)}  {parts}" for name, count, parts in rows]
    return "\n".join([*lines, "", _tuned(found)])


def _tuned(found: dict[str, Any]) -> str:
    from bmft.methods import settings_for

    inner = found["parameters"] - found["head"]["parameters"]
    where = "" if found["upper"] == inner else " in the upper blocks"
    return (
        f"bmft debias would move at most {settings_for('bmft').fraction:.0%} of the {found['upper']:,} weights{where} "
        "outside the head, and the head; with data, --dry-run shows which."
    )
