"""The documentation site, built as ``make docs`` builds it: a warning fails it, and so does a name that is missing."""

import contextlib
import importlib
import inspect
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from matplotlib import pyplot

import bmft
from bmft_cli.main import bmft as command_line

inventory = pytest.importorskip("sphinx.util.inventory", reason="the extra docs")
pytestmark = pytest.mark.ci
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
WHOLE = ("comparison", "errors", "fairness", "fairtune", "gate", "inference", "masks", "report", "testing")


def built(folder: Path, *options: str) -> Path:
    """The site, built from a copy: what is generated beside the sources stays out of the working tree."""
    ignored = shutil.ignore_patterns("_build", "gallery", "project", "__pycache__", ".*")
    for name in ("docs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for page in ROOT.glob("*.md"):
        shutil.copy(page, folder)
    command = re.search(r"^docs:.*\n\t\$\(BIN\)/python (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    command = [sys.executable, *command.split(), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "docs" / "_build" / "html"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Every page; the notebooks are run below, with few steps."""
    return built(tmp_path_factory.mktemp("clone"), "-D", "plot_gallery=0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """With what the notebooks show where they are run as they are."""
    return built(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def documented(site) -> set[str]:
    with (site / "objects.inv").open("rb") as file:
        found = inventory.InventoryFile.load(file, "", lambda base, path: path)
    return {name for kind, names in found.items() if kind.startswith("py:") for name in names}


def test_every_public_name_is_documented(documented):
    names = {name: f"bmft.{name}" for name in bmft.__all__ if name != "__version__"}
    assert {name for name, at in names.items() if at not in documented | {"bmft.BmftError"}} == set()
    assert "bmft.errors.BmftError" in documented


@pytest.mark.parametrize("package", WHOLE)
def test_so_is_every_function_and_class_of_the_packages_that_people_use(documented, package):
    module = importlib.import_module(f"bmft.{package}")
    # What the top has is documented there; a value that is no function or class is told where it is used.
    names = {
        name
        for name in getattr(module, "__all__", None) or vars(module)
        if not name.startswith("_")
        and (inspect.isfunction(value := getattr(module, name)) or inspect.isclass(value))
        and value.__module__.startswith(f"bmft.{package}")
    }
    at_the_top = {name for name in names if getattr(bmft, name, None) is getattr(module, name)}
    assert {f"bmft.{package}.{name}" for name in names - at_the_top} - documented == set()
    assert names


def test_the_page_of_the_command_line_has_every_option_of_every_command(site):
    page, context = (site / "commands.html").read_text(encoding="utf-8"), click.Context(command_line)
    wanted = {
        f"cmdoption-bmft-{name}-{declared.removeprefix('--')}"
        for name in command_line.list_commands(context)
        for option in command_line.get_command(context, name).params
        if isinstance(option, click.Option) and not option.hidden
        for declared in option.opts
        if declared.startswith("--")
    }
    assert len(wanted) > 100
    assert {name for name in wanted if f'id="{name}"' not in page} == set()
    assert "Sentinel" not in page


@pytest.mark.parametrize("which", ["site", pytest.param("whole", marks=pytest.mark.slow)])
def test_nothing_on_a_page_is_fetched_from_elsewhere(which, request):
    site = request.getfixturevalue(which)
    fetched = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["'](?:https?:)?//[^"']+""")
    for page in site.rglob("*.html"):
        assert not fetched.findall(page.read_text(encoding="utf-8")), page.name
    for sheet in (site / "_static").rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), (
            sheet.name
        )


def run(name: str, folder: Path) -> None:
    (folder / "notebooks").mkdir()
    with contextlib.chdir(folder / "notebooks"):
        runpy.run_path(str(ROOT / "docs" / "notebooks" / f"{name}.py"))
    pyplot.close("all")


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS if path.stem != "debias"])
def test_a_notebook_runs(name, tmp_path, few_steps):
    run(name, tmp_path)


def test_the_page_on_the_report_tells_of_the_report_that_it_shows(tmp_path, few_steps):
    run("debias", tmp_path)
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    report = (tmp_path / "_build" / "extra" / "report" / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", report)
    told = re.findall(r"\*\*(.+?)\*\*", page)
    assert len(told) > 6
    assert [name for name in told if name not in headings] == []
