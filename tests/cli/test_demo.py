import json

import pytest


def test_the_demo_does_the_main_job(bmft, tmp_path, capsys):
    assert bmft("demo", "--number", 1000, "--seed", 0) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "demo/report.html"
    assert (tmp_path / "demo" / "report.html").is_file()
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    before, after = (report[when]["gaps"]["skin"]["equalized_odds_difference"] for when in ("before", "after"))
    assert after < before


@pytest.mark.ci
def test_the_command_that_the_demo_shows_does_the_job_again(bmft, tmp_path, capsys):
    assert bmft("demo", "--number", 1000, "--seed", 0) == 0
    shown = capsys.readouterr()
    command = shown.err.partition("now the main job: bmft ")[2].splitlines()[0].split()
    command[command.index("--out") + 1] = "again.pt"
    assert bmft(*command) == 0
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "demo" / "debiased.pt").read_bytes()
