import os
import subprocess
import sys

import pytest


def ask(instruction: str, line: str = "") -> str:
    """What the console script answers a shell that completes `line`, whose cursor is at its end."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    environment = {**os.environ, **words, "_BMFT_COMPLETE": instruction}
    return subprocess.check_output([sys.executable, "-m", "bmft_cli"], env=environment, text=True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_this_command(shell):
    script = ask(f"{shell}_source")
    assert f"_BMFT_COMPLETE={shell}_complete" in script
    assert "bmft" in script


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("bmft deb", ["plain,debias"]),
        ("bmft patch r", ["plain,revert"]),
        ("bmft debias --split-c", ["plain,--split-column"]),
        ("bmft debias model.pt --keep ", ["plain,best", "plain,last"]),
        ("bmft debias mod", ["file,mod"]),
        ("bmft audit model.pt --images im", ["dir,im"]),
        ("bmft prepare isic201", ["plain,isic2017", "plain,isic2018", "plain,isic2019"]),
        ("bmft prepare ham10000 HAM", ["file,HAM"]),
    ],
)
def test_a_line_is_completed(line, completed):
    assert ask("bash_complete", line).split() == completed


def test_bash_takes_the_script():
    shell = ["bash", "-c", "source /dev/stdin; complete -p bmft"]
    assert "_bmft_completion bmft" in subprocess.check_output(shell, input=ask("bash_source"), text=True)
