"""Most commands run with few steps and plain charts: how well they work is tested where methods and reports are."""

import pytest


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """An epoch is one of its rows, however few, and a chart is its caption; not where a test asks for the `whole`."""
    if "whole" in request.fixturenames:
        return
    from bmft.report.svg import inline

    def plain(draw, caption, **_):
        return inline("<svg></svg>", caption, "0 0 1 1")

    monkeypatch.setattr("bmft.methods.losses.ENOUGH", 1)
    monkeypatch.setattr("bmft.report.figures.render", plain)


@pytest.fixture
def whole():
    """As many steps and all that is drawn, as in a user's run."""
