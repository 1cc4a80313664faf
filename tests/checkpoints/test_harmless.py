"""Settings that scripts keep beside weights are read without trust, and go out as they came in."""

import argparse
import collections
import datetime
import decimal
import pathlib
import pickle
import types
import uuid

import numpy as np
import pytest
import torch

from bmft.checkpoints import read_checkpoint, write_checkpoint
from bmft.errors import UntrustedPickleError

VALUES = {
    "namespace": argparse.Namespace(arch="resnet18", out=pathlib.PurePosixPath("runs/1"), tags={"a", "b"}),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "counter": collections.Counter("aab"),
    "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "seconds": datetime.timedelta(seconds=5),
    "decimal": decimal.Decimal("1.5"),
    "id": uuid.UUID(int=7),
    "path": pathlib.Path("a/b"),
    "windows path": pathlib.PureWindowsPath(r"c:\data"),
    "numpy number": np.float64(0.5),
    "numpy array": np.arange(3),
    "numpy texts": np.array(["f", "m"]),
}


class Reduced:
    """Pickled as a call of something else."""

    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


def saved(path, value, legacy=False):
    content = {"state_dict": {"fc.weight": torch.ones(2)}, "args": value}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("legacy", [False, True])
def test_plain_settings_need_no_trust_and_are_written_back(tmp_path, value, legacy):
    saved(tmp_path / "m.pt", value, legacy)
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    write_checkpoint(checkpoint, checkpoint.state, tmp_path / "o.pt")
    written = torch.load(tmp_path / "o.pt", weights_only=False)["args"]
    assert type(written) is type(value)
    assert np.all(written == value)


@pytest.mark.parametrize("kind", [pathlib.WindowsPath, pathlib.PosixPath])
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_path_of_any_system_is_read_on_this_one_and_stays_what_it_was(tmp_path, kind, trust, legacy):
    more = [Reduced(print)] if trust else []
    saved(tmp_path / "m.pt", [Reduced(kind, "data", "m.pt"), *more], legacy)
    checkpoint = read_checkpoint(tmp_path / "m.pt", trust_pickle=trust)
    path = checkpoint.file.content["args"][0]
    assert path.parts == ("data", "m.pt")
    assert path.__reduce__()[0] is kind
    write_checkpoint(checkpoint, checkpoint.state, tmp_path / "o.pt")
    again = read_checkpoint(tmp_path / "o.pt", trust_pickle=trust).file.content["args"][0]
    assert again == path
    assert kind.__name__.encode() in pickle.dumps(path)


@pytest.mark.parametrize("call", [Reduced(print, "x"), Reduced(getattr, "x", "upper"), collections.deque([1])])
@pytest.mark.parametrize("legacy", [False, True])
def test_anything_else_still_needs_trust_and_is_not_called_damaged(tmp_path, call, legacy):
    saved(tmp_path / "m.pt", {"inner": argparse.Namespace(x=call)}, legacy)
    with pytest.raises(UntrustedPickleError, match="holds more than plain tensors"):
        read_checkpoint(tmp_path / "m.pt")
