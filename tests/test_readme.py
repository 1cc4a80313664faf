"""The README's own examples, run as they stand."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from bmft_cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(study, tmp_path, monkeypatch) -> Path:
    shutil.copytree(study, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_line_example_runs(folder):
    commands = [line.removeprefix("$ bmft ") for block in blocks("console") for line in block.splitlines()]
    assert len(commands) >= 5
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    for name in ("fair.pt", "fair.patch.safetensors", "report/report.html", "again.pt", "audit.json"):
        assert (folder / name).is_file(), name


def test_the_config_example_is_enough_for_the_short_command(folder):
    (text,) = blocks("toml")
    (folder / "bmft.toml").write_text(text)
    assert tomllib.loads(text)["label"] == "malignant"
    assert main(["debias", "model.pt"]) == 0
    assert (folder / "fair.pt").is_file()


def test_the_python_examples_run(folder, capsys):
    assert len(blocks("python")) >= 3
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("True ")
    assert (folder / "fair.patch.safetensors").is_file()


def test_every_link_to_a_file_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    assert {"demo", "test", "lint", "test-long", "bench"} <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"demo", "test"} <= set(re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)) <= targets
