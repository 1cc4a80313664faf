"""CONTRIBUTING's examples: what they add is added in a process of its own, where their tests then run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
TESTS = [(path, code) for path, code in BLOCKS if path.startswith("tests/")]
CONFTEST = """
import importlib, sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import bmft

for path, code in {added!r}:
    name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    if not (Path(bmft.__file__).parents[1] / path).is_file():
        sys.modules[name] = ModuleType(name)
    exec(compile(code, path, "exec"), vars(importlib.import_module(name)))

@pytest.fixture
def data():
    torch.manual_seed(0)
    inputs, groups = torch.randn(120, 4), torch.arange(120) % 2
    return bmft.from_arrays(inputs, (inputs[:, 0] + 0.5 * groups > 0).long(), groups)

@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()

@pytest.fixture
def report(model, data):
    return bmft.audit(model, data, intervals=False)
"""


def run(folder: Path, added: list[tuple[str, str]]) -> str:
    """What pytest says of the page's tests where `added` is in the package."""
    (folder / "conftest.py").write_text(CONFTEST.format(added=added))
    for number, (_, code) in enumerate(TESTS):
        header = "import bmft, bmft.auditing, bmft.datasets, pytest, torch\n"
        (folder / f"test_{number}.py").write_text(header + code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder).stdout


@pytest.mark.ci
def test_every_example_works_as_the_page_has_it(tmp_path):
    number = sum(code.count("def test_") for _, code in TESTS)
    assert number >= 4
    assert f"{number} passed" in run(tmp_path, [block for block in BLOCKS if block not in TESTS])


@pytest.mark.ci
def test_the_examples_tests_fail_without_what_they_are_of(tmp_path):
    last = run(tmp_path, []).splitlines()[-1]
    assert "failed" in last
    assert "passed" not in last


def test_an_example_is_at_most_thirty_lines_and_the_page_one():
    assert all(code.count("\n") < 30 for _, code in BLOCKS)
    assert len(PAGE.splitlines()) <= 140


def test_the_page_names_the_four_things_that_are_added():
    sections = re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    assert [name for name in sections if name.startswith("A ")] == ["A method", "A metric", "A data set", "A container"]


def test_a_commit_is_checked_by_what_make_lint_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    checks = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)[1]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [" ".join([hook["entry"], *hook.get("args", [])]) for repo in config["repos"] for hook in repo["hooks"]]
    assert hooks == [line.strip().removeprefix("$(BIN)/") for line in checks.splitlines()]
