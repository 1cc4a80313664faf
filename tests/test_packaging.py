"""What an install brings: the two packages, the command, the licence, and nothing else."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(code: str, folder: Path) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("bmft", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    return source / run(code, source).split()[-1]


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


def test_the_wheel_holds_our_two_packages_and_no_other(wheel):
    tops = {name.split("/")[0] for name in names(wheel)}
    assert tops == {"bmft", "bmft_cli", "bmft-0.1.0.dist-info"}


def test_every_module_and_data_file_is_in_the_wheel(wheel):
    inside = set(names(wheel))
    sources = [path for path in (ROOT / "bmft").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(ROOT).as_posix() for path in sources} <= inside
    assert {f"bmft_cli/{path.name}" for path in (ROOT / "cli").glob("*.py")} <= inside


def test_the_licence_travels_with_it(wheel):
    with zipfile.ZipFile(wheel) as file:
        text = file.read("bmft-0.1.0.dist-info/licenses/LICENSE").decode()
        metadata = file.read("bmft-0.1.0.dist-info/METADATA").decode()
    assert "Apache License" in text
    assert "License-Expression: Apache-2.0" in metadata


def test_the_command_answers_from_the_unpacked_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    here = repr(str(tmp_path))
    code = f"import sys; sys.path.insert(0, {here}); from bmft_cli.main import main; main(['--help'])\n"
    code += f"import bmft_cli; assert bmft_cli.__file__.startswith({here})"
    assert "debias" in run(code, tmp_path)


def imported(folder: str) -> set[str]:
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).split(".")[0])
    return found


def test_what_is_imported_is_required_or_an_extra():
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [requirement for name in extras if name != "dev" for requirement in extras[name]]
    wanted = [*PROJECT["project"]["dependencies"], *optional]
    distributions = {re.split(r"[<>=\[]", requirement)[0] for requirement in wanted}
    modules = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "mlflow": "mlflow-skinny"}
    foreign = (imported("bmft") | imported("cli")) - sys.stdlib_module_names - {"bmft"}
    assert {modules.get(name, name) for name in foreign} <= distributions


def test_required_python_is_what_is_tested_for():
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert sys.version_info >= (3, 11)
