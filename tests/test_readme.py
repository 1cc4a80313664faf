"""The examples of the README and of the pages it leads to, run as they stand."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from bmft_cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = ("README.md", "docs/quickstart.md", "docs/data.md", "docs/choosing.md")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def pages_with(language: str) -> list[object]:
    """Those that have examples; the README's are the quick start's, and so slow tests."""
    marks = {"README.md": pytest.mark.slow, "docs/quickstart.md": pytest.mark.ci}
    return [pytest.param(page, marks=marks.get(page, ())) for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("language", ["console", "python"])
def test_the_readme_s_examples_are_those_of_the_quick_start(language):
    short, long = ("".join(blocks(page, language)).splitlines() for page in ("README.md", "docs/quickstart.md"))
    # There the data have one more attribute, which the debiasing is not told of.
    assert {line.replace('"sex",', '["sex", "age:40,60"],') if "load_m" in line else line for line in short} <= {*long}


@pytest.fixture
def folder(study, tmp_path, monkeypatch) -> Path:
    shutil.copytree(study, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", pages_with("console"))
def test_the_commands_run(page, folder, few_steps):
    for line in "".join(blocks(page, "console")).splitlines():
        assert main(shlex.split(line.removeprefix("$ bmft "))) == 0, line
    names = {"README.md": ("fair.pt",), "docs/quickstart.md": ("report/report.html", "again.pt", "audit.json")}
    assert all((folder / name).is_file() for name in names.get(page, ()))


def test_the_config_example_is_enough_for_the_short_command(folder, few_steps):
    (text,) = blocks("docs/quickstart.md", "toml")
    (folder / "bmft.toml").write_text(text + '\n[debias]\nepochs = 2\nkeep = "last"\n')
    assert tomllib.loads(text)["label"] == "malignant"
    assert main(["debias", "model.pt"]) == 0
    assert (folder / "fair.pt").is_file()


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_examples_run(page, folder, few_steps, capsys):
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    assert page == "docs/data.md" or capsys.readouterr().out.startswith("True ")


def test_every_link_to_a_file_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    assert {"demo", "test", "test-ci", "lint", "test-long", "bench"} <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"demo", "test"} <= set(re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)) <= targets
