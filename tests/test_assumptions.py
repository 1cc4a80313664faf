"""docs/assumptions.md names options that there are."""

import re
from pathlib import Path

import click
import pytest

from bmft.tables import DOUBTFUL, UNKNOWN
from bmft_cli.main import bmft

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "option", sorted(set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs/assumptions.md").read_text())))
)
def test_every_option_that_the_table_of_assumptions_names_exists(option):
    command = bmft.get_command(click.Context(bmft), "debias")
    assert option in {name for parameter in command.params for name in parameter.opts}


def test_the_page_lists_every_code_that_is_read_as_not_known():
    page = (ROOT / "docs/assumptions.md").read_text()
    listed, rest = page.split("an empty value and:")[1].split("Several of them joined")
    rest = rest.split("Of numbers in an attribute")[1]
    assert set(re.findall(r"`([^`]+)`", listed)) == UNKNOWN
    assert set(re.findall(r"`([^`]+)`", rest.split(", an age above")[0])) - {"other"} == DOUBTFUL
