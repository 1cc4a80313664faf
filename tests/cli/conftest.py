"""Most commands run with few steps and plain charts: how well they work is tested where methods and reports are."""

from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """An epoch is one of its rows, however few, a chart its caption; two steps lead to a pixel's share, none to LoRA.

    Not where a test asks for the `whole`.
    """
    if "whole" in request.fixturenames:
        return
    from bmft.inference import pixels

    gradients = pixels._integrated_gradients

    request.getfixturevalue("few_steps")
    request.getfixturevalue("plain_charts")
    monkeypatch.setattr(pixels, "_integrated_gradients", lambda *args: gradients(*args[:-1], 2))
    if find_spec("optuna") is not None:
        monkeypatch.setattr("bmft.fairtune.searching.installed_methods", list)


@pytest.fixture
def whole():
    """As many steps and all that is drawn, as in a user's run."""
