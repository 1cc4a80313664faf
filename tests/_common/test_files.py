import errno
import json
import os
import resource
import threading
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bmft import datasets
from bmft._common import put, replacing
from bmft.checkpoints import WeightPatch, read_checkpoint, write_checkpoint
from bmft.comparison import runner
from bmft.errors import CheckpointError, DataError
from bmft.masks import WeightMask
from bmft.report import page, reports

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(*_):
    raise OSError(*FULL.args)


def net():
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1))


def save_mask(path):
    WeightMask.by_name(net()).save(path)


def save_patch(path):
    before, after = net().state_dict(), net().state_dict()
    WeightPatch.between(before, after).save(path)


def save_checkpoint(path):
    whole = path.with_name("whole.pt")
    if not whole.exists():
        torch.save(net().state_dict(), whole)
    checkpoint = read_checkpoint(whole)
    write_checkpoint(checkpoint, checkpoint.state, path)


WRITERS = {
    "bytes": lambda path: put(bytes(40_000), path),
    "mask": save_mask,
    "patch": save_patch,
    "checkpoint": save_checkpoint,
}


@pytest.fixture(params=WRITERS.values(), ids=WRITERS)
def write(request, tmp_path):
    # What a writer reads is made before the disk is full.
    request.param(tmp_path / "first")
    (tmp_path / "first").unlink()
    return request.param


@contextmanager
def small_files():
    """No file may grow beyond 2 kB, as on a disk that is nearly full; not even the one that the test runner writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_put_is_there_and_nothing_else(tmp_path):
    put("é\r\n", tmp_path / "a.txt")
    put(b"\0\1", tmp_path / "b.bin")
    assert contents(tmp_path) == {"a.txt": b"\xc3\xa9\r\n", "b.bin": b"\0\1"}


def test_the_name_is_free_until_the_block_ends_well(tmp_path):
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
        assert not (tmp_path / "a").exists()
    assert contents(tmp_path) == {"a": b"new"}


def test_a_write_that_does_not_fit_leaves_the_old_file_as_it_was(write, tmp_path):
    put("old", tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises((OSError, CheckpointError), match="File too large"), small_files():
        write(tmp_path / "out")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_file_as_it_was(write, tmp_path, monkeypatch, step):
    put("old", tmp_path / "out")
    before = contents(tmp_path)
    monkeypatch.setattr(os, step, full)
    with pytest.raises((OSError, CheckpointError), match="No space left on device") as caught:
        write(tmp_path / "out")
    assert str(tmp_path / "out") in str(caught.value)
    assert contents(tmp_path) == before


def test_the_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        put("x", tmp_path / "no" / "a.json")
    assert caught.value.filename == str(tmp_path / "no" / "a.json")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
    assert contents(tmp_path) == {}


def test_an_interrupt_leaves_no_file(tmp_path):
    def interrupted():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as file:
        file.writelines(interrupted())
    assert contents(tmp_path) == {}


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    put("through", pipe)
    reader.join(5)
    assert read == [b"through"]
    assert pipe.is_fifo()


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError, match="out"):
        put("x", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_reports_and_comparisons_are_written_by_the_same_function():
    assert reports.page is runner.page is page
    assert page.put is put


def test_a_manifest_and_its_images_appear_together_or_not_at_all(tmp_path, monkeypatch):
    table = pd.DataFrame({"label": [0, 1]})
    table.attrs["images"] = np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8)
    monkeypatch.setattr(datasets, "prepare", lambda *_: table)
    expected = r"out\.csv: the manifest cannot be written: File too large"
    with pytest.raises(DataError, match=expected), small_files():
        datasets.write_manifest("oasis1", tmp_path, tmp_path / "out.csv")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("target", ["no/such.json", "."])
def test_a_file_that_cannot_be_written_is_one_line_and_exit_code_4(bmft, study, capsys, target):
    assert bmft("inspect", study / "model.pt", "--json", target) == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_is_one_line_and_exit_code_4(bmft, study, capsys, tmp_path, monkeypatch):
    put("{}", tmp_path / "out.json")
    monkeypatch.setattr(os, "fsync", full)
    assert bmft("inspect", study / "model.pt", "--json", "out.json") == 4
    assert capsys.readouterr().err == "bmft: error: out.json: No space left on device\n"
    assert json.loads((tmp_path / "out.json").read_text()) == {}
    assert len(contents(tmp_path)) == 1
