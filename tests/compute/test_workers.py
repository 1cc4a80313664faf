"""Tasks in several processes: the same results as in one, one clear line when something goes wrong, none left over."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bmft.compute import Workers
from bmft.errors import ConfigError, DataError, WorkerError

KEPT = "What was done is kept."


def total(shared, task, tell):
    tell(("began", task))
    return os.getpid(), float(shared["rows"].sum()) * task


def others(shared, task, tell):
    return shared["others"]


def refused(shared, task, tell):
    raise DataError(f"row {task} of {len(shared)} is no image")


def killed(shared, task, tell):
    os.kill(os.getpid(), signal.SIGKILL)


def endless(shared, task, tell):
    tell(os.getpid())
    time.sleep(600)


def gone(process):
    """Whether a process ends within some seconds."""
    for _ in range(100):
        state = Path(f"/proc/{process}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_processes_find_what_one_finds_tell_of_it_and_stay_for_the_next_tasks(temporary):
    heard, tasks = [], {"a": 1, "b": 2, "c": 3}
    with Workers({"rows": torch.arange(5)}, 2, kept=KEPT, hear=heard.append) as workers:
        first, again = (dict(workers.do(total, tasks)) for _ in range(2))
        assert list(temporary.iterdir())
    assert {key: value for key, (_, value) in first.items()} == {"a": 10.0, "b": 20.0, "c": 30.0}
    assert {value for _, value in again.values()} == {10.0, 20.0, 30.0}
    used = {process for process, _ in [*first.values(), *again.values()]}
    assert len(used) <= 2
    assert os.getpid() not in used
    assert sorted(heard) == sorted(("began", task) for task in (1, 2, 3, 1, 2, 3))
    assert not list(temporary.iterdir())


@pytest.mark.ci
def test_what_a_task_refuses_is_refused_here_and_the_processes_are_gone(temporary):
    with pytest.raises(DataError, match="row 1 of 3 is no image"), Workers([1, 2, 3], 2, kept=KEPT) as workers:
        dict(workers.do(refused, {1: 1}))
    assert not list(temporary.iterdir())


@pytest.mark.ci
def test_a_process_that_is_killed_is_one_clear_line():
    with (
        pytest.raises(WorkerError, match=r"killed, out of memory.*What was done is kept\. .*--jobs 1 if memory"),
        Workers(0, 2, kept=KEPT) as workers,
    ):
        dict(workers.do(killed, {1: 1}))


@pytest.mark.ci
def test_an_exception_here_ends_the_processes_at_once():
    heard = []

    def interrupted(process):
        heard.append(process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Workers(0, 2, kept=KEPT, hear=interrupted) as workers:
        dict(workers.do(endless, {1: 1, 2: 2}))
    assert gone(heard[0])


@pytest.mark.ci
def test_processes_end_with_one_that_is_killed(tmp_path):
    code = """
import sys
from bmft.compute import Workers
from tests.compute.test_workers import KEPT, endless
with Workers(0, 2, kept=KEPT, hear=lambda process: print(process, flush=True)) as workers:
    dict(workers.do(endless, {1: 1}))
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=root) as parent:
        process = int(parent.stdout.readline())
        parent.kill()
    assert gone(process)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shared", [lambda rows: rows, threading.Lock()])
def test_what_no_other_process_can_have_is_named_with_the_option(shared, temporary):
    with (
        pytest.raises(ConfigError, match=r"--jobs cannot be given this: .*--jobs 1"),
        Workers(shared, 2, kept=KEPT) as workers,
    ):
        dict(workers.do(total, {1: 1}))
    assert not list(temporary.iterdir())


@pytest.mark.ci
def test_a_class_that_other_processes_do_not_find_is_named(monkeypatch):
    found = type("Network", (torch.nn.Linear,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Network", found, raising=False)
    with (
        pytest.raises(ConfigError, match=r"cannot read what it is given: .*Network.* in a module"),
        Workers(found(2, 1), 2, kept=KEPT) as workers,
    ):
        dict(workers.do(total, {1: 1}))


@pytest.mark.ci
def test_more_tensors_than_files_may_be_open_are_no_matter():
    code = """
import resource, torch
from bmft.compute import Workers
from tests.compute.test_workers import KEPT, others
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    shared = {"others": [torch.ones(1) for _ in range(200)]}
    with Workers(shared, 2, kept=KEPT) as workers:
        print(sum(dict(workers.do(others, {1: 2}))[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "tensor([200.])\n", done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
def test_a_full_disk_is_one_clear_line(monkeypatch, temporary):
    place = temporary / "full"
    place.mkdir()
    (place / "shared.pt").symlink_to("/dev/full")
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(place))
    with (
        pytest.raises(WorkerError, match=r"shared\.pt: No space left.*TMPDIR"),
        Workers(torch.ones(100_000), 2, kept=KEPT) as workers,
    ):
        dict(workers.do(total, {1: 1}))
    assert not place.exists()


def test_fewer_than_one_process_or_more_beside_those_of_torchrun_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="jobs is 0"):
        Workers(0, 0, kept=KEPT)
    monkeypatch.setattr("bmft.compute.distributed.count", lambda: 2)
    Workers(0, 1, kept=KEPT)
    with pytest.raises(ConfigError, match=r"jobs is 3 in one of 2 processes of torchrun.*--jobs 1"):
        Workers(0, 3, kept=KEPT)
