"""`python -m bmft_cli` is the command `bmft`."""

from .main import run

run()
