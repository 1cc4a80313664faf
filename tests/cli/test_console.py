import os
import re
import stat
import time

import click
import pytest

from bmft_cli.console import ProgressBar, Terminal, put, table


def test_a_table_lines_its_columns_up():
    assert table([["group", "n"], ["female", "7"], ["m", "1,000"]]) == ("group       n\nfemale      7\nm       1,000")


def test_a_file_is_put_whole_with_usual_rights(tmp_path):
    put("text\n", tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "text\n"
    os.umask(mask := os.umask(0))
    assert stat.S_IMODE(os.stat(tmp_path / "a.json").st_mode) == 0o666 & ~mask


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        put("half \ud800", tmp_path / "a.json")
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_dash_is_standard_output(capsys):
    put("{}\n", "-")
    assert capsys.readouterr().out == "{}\n"


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with click.Context(click.Command("any"), obj=Terminal()) as context:
        yield context.obj


def test_progress_shows_the_share_done_and_the_time_left(terminal, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with ProgressBar() as progress:
        progress(0, 4, "step 1", 0.0)
        time.sleep(0.12)  # tqdm draws at most ten times a second
        progress(1, 4, "step 1", 90.0)
    assert re.search(r"step 1  25%\|#+ +\| 00:00, 01:30 left", capsys.readouterr().err.replace("█", "#"))


def test_progress_is_silent_when_quiet_or_unwatched(terminal, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with ProgressBar() as progress:
        progress(4, 4, "step 1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    terminal.quiet = True
    with ProgressBar() as progress:
        progress(4, 4, "step 1")
    assert capsys.readouterr().err == ""
