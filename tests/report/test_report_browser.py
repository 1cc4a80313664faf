"""The report in a real browser: nothing overflows, no figure is missing, all can be read, day and night."""

import base64
import fcntl
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bmft.auditing import Predictions
from bmft.inference import audit
from bmft.report import DebiasReport, write_report
from bmft.tables import Attribute

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.ci, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")]

WIDTHS = [1280, 390]
# 4.5 : 1 is what WCAG 2.1 AA asks of text.
CONTRASTS = """(() => {
  const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = color => {
    const ink = light(color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const texts = "h1, h2, h3, h4, p, li, th, td, small, caption, figcaption, summary, a, text";
  const found = [...document.querySelectorAll(texts)].map(element => {
    const style = getComputedStyle(element);
    return [ratio(element.tagName === "text" ? style.fill : style.color), element.textContent.trim()];
  });
  return found.sort((a, b) => a[0] - b[0])[0];
})()"""
LINES = """[...document.querySelectorAll("svg.chart path, svg.chart use")]
  .map(element => getComputedStyle(element).stroke).filter(stroke => stroke !== "none")"""
# What scrolls in its own frame, and what is inside a drawing, may be wider than the window.
TOO_WIDE = """[...document.querySelectorAll("main *")]
  .filter(element => !element.closest(".scroll") && !element.closest("svg"))
  .filter(element => element.getBoundingClientRect().right > window.innerWidth + 1)
  .map(element => element.outerHTML.slice(0, 80))"""
CHARTS = """[...document.querySelectorAll("svg.chart")].map(chart => chart.getBoundingClientRect())
  .map(box => [box.left, box.right, box.height])"""
IMAGES = """[...document.images]
  .map(image => [image.complete, image.naturalWidth, image.getBoundingClientRect().width])"""
CUT_LABELS = """[...document.querySelectorAll("svg.chart text")].filter(label => {
  const box = label.getBoundingClientRect(), all = label.closest("svg").getBoundingClientRect();
  return box.left < all.left - 1 || box.right > all.right + 1 || box.top < all.top - 1
    || box.bottom > all.bottom + 1;
}).map(label => label.textContent)"""
WIDE_TABLES = """[...document.querySelectorAll("table")].filter(table =>
  table.getBoundingClientRect().right > table.parentElement.getBoundingClientRect().right + 1
).map(table => table.caption.textContent)"""
CLOSED_TABLES = """[...document.querySelectorAll("details table")]
  .filter(table => !table.checkVisibility({contentVisibilityAuto: true})).length"""


class Tab:
    """A tab of headless Chromium, steered over two pipes; each message ends with a NUL."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers, self.rest = commands, answers, b""
        self.number = 0
        self.session: str | None = None
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        os.write(
            self.commands, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while (answer := self.receive()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.answers, 1 << 20)
            assert part, "Chromium closed the pipe"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        if answer.get("method") == "Network.requestWillBeSent":
            self.requests.append(answer["params"]["request"]["url"])
        return answer

    def show(self, page: Path, width: int, *, scheme: str = "light", media: str = "") -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)
        self.send("Page.navigate", url=page.resolve().as_uri())
        while self.receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def print(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"])


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    """A browser with an empty profile, ended afterwards."""
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()
    # Above 4, since they become the child's descriptors 3 and 4 and must not overwrite each other on the way.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_commands, write_answers)]
    # The browser's children may write into the profile for a moment after it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        program = [str(CHROMIUM), *options, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        shell = ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", *program]
        process = subprocess.Popen(shell, pass_fds=ends, stderr=subprocess.DEVNULL)
        for end in (read_commands, write_answers, *ends):
            os.close(end)
        try:
            yield Tab(commands, answers)
        finally:
            os.close(commands)
            os.close(answers)
            process.terminate()
            process.wait(20)


class Case:
    """What `bmft.inference` gives, without a model."""

    text = "sex: male. Row 3, melanoma: score 0.20 before, 0.80 after."

    @property
    def png(self) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (486, 160), (120, 90, 60)).save(buffer, "PNG")
        return buffer.getvalue()


def build(folder: Path) -> Path:
    """A report with everything in it, many groups, long names, and figures that cannot be measured."""
    rng = np.random.default_rng(5)
    names = (
        "female*under 40",
        "male*under 40",
        "female*40-60",
        "male*40-60",
        "female*60+",
        "male*60+",
        "another group with a remarkably long name",
        "nobody",
    )
    attributes = (Attribute("sex*age", names), Attribute("skin_type_by_fitzpatrick", ("I-II", "III-IV", "V-VI")))
    n = 1500
    groups = np.stack([rng.integers(0, 7, n), rng.integers(0, 3, n)], axis=1)
    targets = (rng.random(n) < 0.3).astype(int)
    logits = 2 * targets - 1 + rng.normal(size=n)
    sides = []
    for tilt in (0.3, 0.1):
        scores = 1 / (1 + np.exp(-(logits + tilt * (groups[:, 0] - 3))))
        sides.append(audit(Predictions(scores, targets, groups, attributes), resamples=50))
    history = [
        {"step": 1 + i // 10, "epoch": 1 + i % 10, "gap": 0.3 - 0.01 * i, "roc_auc": 0.9 - 0.001 * i, "chosen": i == 14}
        for i in range(20)
    ]
    layers = {
        f"layer{i}.0.conv{j}.weight": {"selected": i * j, "total": 100, "fraction": i * j / 100}
        for i in range(1, 5)
        for j in range(1, 9)
    }
    blocks = {
        f"encoder.layers.{i}": {"importance": i / 435 if i > 4 else None, "selected": i, "moved": i, "total": 30}
        for i in range(30)
    }
    search = {
        "objective": "worst_group_roc_auc",
        "trials": [{"number": i, "value": None if i == 3 else 0.8 + 0.01 * i} for i in range(12)],
        "importances": {"learning_rate": 0.7, "layer4.conv": 0.3},
        "pareto": [{"number": i, "gap": 0.1 * i, "roc_auc": 0.8 + 0.02 * i} for i in range(3)],
        "mask": {f"encoder.layers.{i}": {"norm1": True, "attention": i > 1, "mlp": False} for i in range(4)},
    }
    extra = {
        "pixels": [Case()] * 4,
        "evaluations": {"Hospital with a long name": {"before": sides[0], "after": sides[1]}},
        "leakage": {"sex*age": {"before": 0.7, "after": 0.6}},
        "search": search,
    }
    report = DebiasReport(
        method="bmft",
        accepted=True,
        reason="smallest gap of 15 of 20 epochs",
        before=sides[0],
        after=sides[1],
        evaluated_on="test",
        config={"data": "a/very/long/path/" * 8 + "isic.csv", "lr": [0.001, 0.01]},
        history=history,
        mask={"density": 0.2, "by_layer": layers, "by_block": blocks},
        hashes={"checkpoint": "ab" * 32},
        extra=extra,
    )
    return write_report(report, folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(tab, page, width):
    tab.show(page, width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(TOO_WIDE) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_there_and_inside_the_window(tab, page, width):
    tab.show(page, width)
    charts = tab.evaluate(CHARTS)
    assert len(charts) == page.read_text(encoding="utf-8").count("<svg ") > 20
    for left, right, height in charts:
        assert 0 <= left < right - 250
        assert right <= width
        assert height > 50
    images = tab.evaluate(IMAGES)
    assert len(images) == 4
    assert all(complete and natural == 486 and 200 < shown <= width for complete, natural, shown in images)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_label_of_a_chart_is_cut_off(tab, page, width):
    tab.show(page, width)
    assert tab.evaluate(CUT_LABELS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_the_paper(tab, page, scheme):
    tab.show(page, 1280, scheme=scheme)
    contrast, text = tab.evaluate(CONTRASTS)
    assert contrast >= 4.5, f"{text!r} has a contrast of {contrast:.2f}"


def test_the_two_schemes_are_two(tab, page):
    papers, lines = [], []
    for scheme in ("light", "dark"):
        tab.show(page, 1280, scheme=scheme)
        papers.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        lines.append(tab.evaluate(LINES))
    assert papers[0] != papers[1]
    assert len(lines[0]) == len(lines[1]) > 100
    assert all(light != dark for light, dark in zip(*lines, strict=True))


def test_the_page_asks_for_nothing_but_itself(tab, page):
    tab.requests.clear()
    tab.show(page, 1280)
    assert {url for url in tab.requests if not url.startswith("data:")} == {page.resolve().as_uri()}


def test_on_paper_every_table_fits_and_every_detail_is_open(tab, page):
    tab.show(page, 680, media="print")  # A4 between its margins
    assert tab.evaluate(WIDE_TABLES) == []
    assert tab.evaluate("document.querySelectorAll('details table').length") > 5
    assert tab.evaluate(CLOSED_TABLES) == 0
    assert tab.print().startswith(b"%PDF")
