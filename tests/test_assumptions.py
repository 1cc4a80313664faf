"""docs/assumptions.md names options that there are."""

import re
from pathlib import Path

import click
import pytest

from bmft_cli.main import bmft

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "option", sorted(set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs/assumptions.md").read_text())))
)
def test_every_option_that_the_table_of_assumptions_names_exists(option):
    command = bmft.get_command(click.Context(bmft), "debias")
    assert option in {name for parameter in command.params for name in parameter.opts}
