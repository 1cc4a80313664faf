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
    from bmft.report.svg import inline

    gradients = pixels._integrated_gradients

    def plain(draw, caption, **_):
        return inline("<svg></svg>", caption, "0 0 1 1")

    request.getfixturevalue("few_steps")
    monkeypatch.setattr("bmft.report.figures.render", plain)
    monkeypatch.setattr(pixels, "_integrated_gradients", lambda *args: gradients(*args[:-1], 2))
    if find_spec("optuna") is not None:
        monkeypatch.setattr("bmft.fairtune.searching.installed_methods", list)


@pytest.fixture
def whole():
    """As many steps and all that is drawn, as in a user's run."""
