"""Files that mean harm, or were harmed: one clear error each, and none of their code runs."""

import io
import json
import os
import pickle
import pickletools
import stat
import struct
import warnings
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from torch import nn

from bmft.checkpoints import load_checkpoint, read_checkpoint, write_checkpoint
from bmft.errors import BmftError, CheckpointError, UntrustedPickleError

TENSORS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2), "n.count": torch.tensor(4)}


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path, protocol=None):
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def save_safetensors(content, path):
    safetensors.torch.save_file(content, path, metadata={"who": "me"})


SAVES = {"zip": save_zip, "legacy": save_legacy, "safetensors": save_safetensors}


def in_bytes(save):
    path = io.BytesIO()
    if save is save_safetensors:
        return safetensors.torch.save(TENSORS, metadata={"who": "me"})
    save({"state_dict": TENSORS, "epoch": 3}, path)
    return path.getvalue()


WHOLE = {name: in_bytes(save) for name, save in SAVES.items()}


def refuse(path, **options):
    """The message with which reading is refused: one line, naming the file."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# Pickles that run code


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
@pytest.mark.parametrize(
    "hide",
    [
        lambda evil: evil,
        lambda evil: {"state_dict": evil},
        lambda evil: {"state_dict": TENSORS, "epoch": evil},
        lambda evil: {"state_dict": {**TENSORS, "x.weight": evil}},
        lambda evil: {"state_dict": TENSORS, "optimizer": {"state": [({}, evil)]}},
        lambda evil: OrderedDict(TENSORS, key=evil),
    ],
    ids=["alone", "as the weights", "beside them", "among them", "deep", "in an ordered dict"],
)
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, save, hide):
    save(hide(Evil(tmp_path / "pwned")), tmp_path / "evil.pt")
    with pytest.raises(UntrustedPickleError) as caught:
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()
    message = str(caught.value)
    assert "\n" not in message
    for part in ("evil.pt", "posix.mkdir", "--trust-pickle", "state_dict()"):
        assert part in message


def test_the_same_pickle_does_run_when_trusted(tmp_path):
    # Without this the test above could pass because nothing ever runs.
    save_zip({"state_dict": TENSORS, "epoch": Evil(tmp_path / "pwned")}, tmp_path / "evil.pt")
    read_checkpoint(tmp_path / "evil.pt", trust_pickle=True)
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_is_refused_whatever_its_protocol(tmp_path, protocol):
    save_pickle(Evil(tmp_path / "pwned"), tmp_path / "evil.pt", protocol)
    assert "posix.mkdir" in refuse(tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("protocol", [0, 1])
def test_a_pickle_in_text_is_no_file_of_weights(tmp_path, protocol):
    save_pickle(Evil(tmp_path / "pwned"), tmp_path / "evil.pt", protocol)
    refuse(tmp_path / "evil.pt", trust_pickle=True)
    assert not (tmp_path / "pwned").exists()


def test_a_pickle_of_harmless_values_is_refused_too(tmp_path):
    save_pickle({"state_dict": {"w": [1.0]}}, tmp_path / "m.pt")
    with pytest.raises(UntrustedPickleError, match=r"holds more than plain tensors, and reading"):
        read_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_whole_model_is_refused_by_the_name_of_its_classes(tmp_path, save):
    save({"model": nn.Linear(2, 2)}, tmp_path / "m.pt")
    message = refuse(tmp_path / "m.pt")
    assert "torch.nn.modules.linear.Linear" in message
    assert "OrderedDict" not in message
    assert "_rebuild_parameter" not in message


def test_a_long_list_of_classes_is_cut(tmp_path):
    torch.save(
        [nn.Linear(1, 1), nn.ReLU(), nn.GELU(), nn.Conv2d(1, 1, 1), nn.Dropout(), nn.Flatten()], tmp_path / "m.pt"
    )
    assert refuse(tmp_path / "m.pt").count("torch.nn.modules") == 5


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
def test_a_trusted_pickle_is_read_and_written_back(tmp_path, save):
    save({"state_dict": TENSORS, "range": range(3)}, tmp_path / "m.pt")
    refuse(tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt", trust_pickle=True)
    write_checkpoint(checkpoint, {name: tensor + 1 for name, tensor in checkpoint.state.items()}, tmp_path / "o.pt")
    if save is save_pickle:
        written = pickle.loads((tmp_path / "o.pt").read_bytes())
    else:
        written = torch.load(tmp_path / "o.pt", weights_only=False)
    assert written["range"] == range(3)
    assert torch.equal(written["state_dict"]["fc.bias"], TENSORS["fc.bias"] + 1)


def test_trust_does_not_unpickle_what_can_be_read_without(tmp_path, monkeypatch):
    calls = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: calls.append(k["weights_only"]) or load(*a, **k))
    save_zip(TENSORS, tmp_path / "m.pt")
    read_checkpoint(tmp_path / "m.pt", trust_pickle=True)
    assert calls == [True]


def test_a_trusted_pickle_whose_code_is_not_here_says_so(tmp_path):
    code = b"\x80\x02cno_such_module\nNet\n)\x81."
    (tmp_path / "m.pt").write_bytes(code)
    assert "no_such_module" in refuse(tmp_path / "m.pt")
    assert "cannot be imported here" in refuse(tmp_path / "m.pt", trust_pickle=True)


def test_a_name_from_the_stack_is_named(tmp_path):
    # Protocol 4 puts module and name on the stack instead of into the opcode.
    save_pickle(Evil(tmp_path / "pwned"), tmp_path / "m.pt", 4)
    assert "STACK_GLOBAL" in {op.name for op, _, _ in pickletools.genops((tmp_path / "m.pt").read_bytes())}
    assert "(posix.mkdir)" in refuse(tmp_path / "m.pt")


# Files that are something else


def test_torchscript_is_refused_with_the_way_out(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated, in some versions of torch
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "m.pt")
    for trust in (False, True):
        message = refuse(tmp_path / "m.pt", trust_pickle=trust)
        assert "TorchScript" in message
        assert "torch.jit.load(path).state_dict()" in message


@pytest.mark.parametrize(
    "content",
    [b"not a checkpoint", b"<!DOCTYPE html><html>", b"\x89HDF\r\n\x1a\n" + b"\0" * 50, b"\x80", b"\xff" * 100, b"\n"],
)
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    refuse(tmp_path / "m.pt")


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "m.pt").touch()
    assert "is empty" in refuse(tmp_path / "m.pt")


def test_a_missing_file_is_called_missing(tmp_path):
    assert "does not exist" in refuse(tmp_path / "m.pt")


def test_a_folder_is_called_a_folder_and_what_is_in_it_is_named(tmp_path):
    assert "is a folder without weights" in refuse(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert "notes.txt" in refuse(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path):
    (tmp_path / "m.pt").write_bytes(WHOLE["zip"])
    (tmp_path / "m.pt").chmod(0)
    assert "cannot be opened: Permission denied" in refuse(tmp_path / "m.pt")
    (tmp_path / "m.pt").chmod(stat.S_IRUSR)


def test_a_path_with_a_null_in_it_is_refused():
    with pytest.raises(CheckpointError):
        read_checkpoint("m\0.pt")


def test_a_zip_file_of_something_else_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("folder/readme.txt", "hello")
    assert "no data.pkl" in refuse(tmp_path / "m.pt")


# Damage


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, kind):
    whole = WHOLE[kind]
    for length in {*range(0, len(whole), max(1, len(whole) // 150)), *range(40), len(whole) - 1}:
        (tmp_path / "m.pt").write_bytes(whole[:length])
        assert "--trust-pickle" not in refuse(tmp_path / "m.pt")


def test_the_whole_files_are_read(tmp_path):
    # Without this every refusal here could be for another reason.
    for whole in WHOLE.values():
        (tmp_path / "m.pt").write_bytes(whole)
        state = read_checkpoint(tmp_path / "m.pt").state
        assert all(torch.equal(state[name], tensor) for name, tensor in TENSORS.items())


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path):
    whole = bytearray(WHOLE["zip"])
    at = whole.index(TENSORS["conv.weight"].numpy().tobytes())
    whole[at + 5] ^= 1
    (tmp_path / "m.pt").write_bytes(whole)
    assert "checksum" in refuse(tmp_path / "m.pt")


# Sizes that are not


def rezipped(path, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    """The zip checkpoint with changed records, and right checksums."""
    with zipfile.ZipFile(io.BytesIO(WHOLE["zip"])) as source, zipfile.ZipFile(path, "w", compression) as target:
        for record in source.infolist():
            target.writestr(record.filename, change(record.filename, source.read(record)))


def test_a_rewritten_archive_is_read(tmp_path):
    rezipped(tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.pt").state


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    def grow(name, data):
        return bytes(200_000_000) if name.endswith("data/0") else data

    rezipped(tmp_path / "m.pt", grow, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "m.pt").stat().st_size < 1_000_000
    assert "unpacks to more than it holds" in refuse(tmp_path / "m.pt")


def test_records_that_share_their_bytes_are_refused(tmp_path):
    rezipped(tmp_path / "m.pt", lambda name, data: bytes(1_000_000) if name.endswith("data/0") else data)
    whole = (tmp_path / "m.pt").read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    entries, size, start = struct.unpack("<HII", whole[end + 10 : end + 20])
    times = 20
    counts = (entries * times, entries * times, size * times, start)
    directory = whole[start:end] * times + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, *counts, 0)
    (tmp_path / "m.pt").write_bytes(whole[:start] + directory)
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        assert sum(record.file_size for record in archive.infolist()) > 20_000_000
    assert "unpacks to more than it holds" in refuse(tmp_path / "m.pt")


def safetensors_file(header, data=b"\0" * 64, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_file({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),
        safetensors_file({"a": entry(0, 8), "b": entry(12, 20)}, b"\0" * 20),
        safetensors_file({"a": entry(0, 8)}, b"\0" * 100),
        safetensors_file({"a": entry(0, 8)}, b"\0" * 4),
        safetensors_file({"a": entry(8, 0)}),
        safetensors_file({"a": entry(0, 8, (2**62, 4))}, b"\0" * 8),
        safetensors_file({"a": entry(0, 8, (-2,))}, b"\0" * 8),
        safetensors_file({"a": entry(0, 8, dtype="X99")}, b"\0" * 8),
        safetensors_file({"a": 3}),
        safetensors_file([1]),
        safetensors_file(b'{"a": '),
        safetensors_file(b"{" * 10_000),
        safetensors_file(b"{\xff}"),
        safetensors_file({"a": entry(0, 8)}, length=2**63),
        safetensors_file({"a": entry(0, 8)}, length=99_999_999),
        safetensors_file({"__metadata__": {"a": 1}, "a": entry(0, 8)}, b"\0" * 8),
        safetensors_file({}, b""),
        safetensors_file({"__metadata__": {"a": "b"}}, b""),
    ],
    ids=[
        "overlap",
        "hole",
        "more data",
        "less data",
        "backwards",
        "overflow",
        "negative",
        "dtype",
        "no entry",
        "list",
        "cut",
        "nested",
        "not utf-8",
        "huge length",
        "long length",
        "metadata",
        "no tensors",
        "only metadata",
    ],
)
def test_a_forged_safetensors_header_is_refused(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    refuse(tmp_path / "m.safetensors")


def test_the_forger_can_make_a_good_one(tmp_path):
    (tmp_path / "m").write_bytes(safetensors_file({"a": entry(0, 8), "b": entry(8, 16)}, b"\0" * 16))
    assert list(read_checkpoint(tmp_path / "m").state) == ["a", "b"]


# Tensors and contents that cannot be tuned


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.empty(2, device="meta"), "on the meta device"),
        (lambda: torch.eye(2).to_sparse(), "sparse_coo, not dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.ones(1).expand(10**12), "expanded"),
        (lambda: [1.0, 2.0], "a list, not a tensor"),
        (lambda: None, "a NoneType, not a tensor"),
        (lambda: "text", "a str, not a tensor"),
    ],
)
# Torch is giving quantized tensors up, and says so where one is made or saved.
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:.*TypedStorage:UserWarning")
@pytest.mark.parametrize("bare", [True, False])
def test_what_is_no_dense_weight_is_refused_by_name(tmp_path, make, why, bare):
    state = {**TENSORS, "odd.weight": make()}
    torch.save(state if bare else {"state_dict": state}, tmp_path / "m.pt")
    assert f"'odd.weight' is {why}" in refuse(tmp_path / "m.pt")


def test_many_odd_weights_are_counted(tmp_path):
    torch.save({**TENSORS, **{f"{i}.weight": None for i in range(9)}}, tmp_path / "m.pt")
    assert refuse(tmp_path / "m.pt").endswith("'4.weight' is a NoneType, not a tensor and 4 more")


def test_plain_values_and_extra_state_among_weights_are_kept(tmp_path):
    torch.save({**TENSORS, "epoch": 3, "layer._extra_state": {"scale": 1.0}, 7: "seven"}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert list(checkpoint.state) == list(TENSORS)
    write_checkpoint(checkpoint, checkpoint.state, tmp_path / "o.pt")
    written = torch.load(tmp_path / "o.pt", weights_only=True)
    assert (written["epoch"], written["layer._extra_state"], written[7]) == (3, {"scale": 1.0}, "seven")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (torch.ones(3), "it is a Tensor"),
        ([torch.ones(3)], "it is a list"),
        ({}, "its entries are none"),
        ({"epoch": 3, "state_dict": {}}, "its entries are epoch, state_dict"),
        ({"params": dict(TENSORS), "epoch": 3}, "tensors are under params"),
        ({"params": dict(TENSORS), "class_weights": torch.ones(2)}, "tensors are under params"),
        ({"state_dict": {1: torch.ones(2)}}, "its entries are state_dict"),
        ({1: torch.ones(2)}, "its entries are 1"),
    ],
)
def test_a_content_without_weights_says_what_is_there(tmp_path, content, what):
    torch.save(content, tmp_path / "m.pt")
    message = refuse(tmp_path / "m.pt")
    assert what in message
    assert "state_dict, model, model_state_dict, net, ema" in message


def test_a_content_that_holds_itself_is_read_to_a_depth(tmp_path):
    loop = {"epoch": 1}
    loop["model"] = loop["config"] = loop
    torch.save(loop, tmp_path / "m.pt")
    refuse(tmp_path / "m.pt")
    loop["state_dict"] = TENSORS
    torch.save(loop, tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.pt").state


def test_a_content_nested_too_deep_is_refused(tmp_path):
    depth = 100_000
    pickled = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    rezipped(tmp_path / "m.pt", lambda name, data: pickled if name.endswith("data.pkl") else data)
    refuse(tmp_path / "m.pt")


def test_an_allocation_that_no_machine_can_make_is_refused(tmp_path):
    # bytearray(2**62), which the safe unpickler allows.
    pickled = b"\x80\x02c__builtin__\nbytearray\n\x8a\x08" + struct.pack("<q", 2**62) + b"\x85R."
    rezipped(tmp_path / "m.pt", lambda name, data: pickled if name.endswith("data.pkl") else data)
    refuse(tmp_path / "m.pt")


# Any bytes at all

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


def survives(path, content):
    """What one of our errors says about `content`; else it is read, and written and read once more."""
    path.write_bytes(content)
    try:
        checkpoint = read_checkpoint(path)
    except BmftError as error:
        return str(error)
    assert all(isinstance(tensor, torch.Tensor) for tensor in checkpoint.state.values())
    write_checkpoint(checkpoint, checkpoint.state, path.with_name("out"))
    assert list(read_checkpoint(path.with_name("out")).state) == list(checkpoint.state)
    return ""


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6
)


def edited(content, edits):
    """Each edit overwrites, inserts or drops some bytes, or cuts the rest off."""
    for place, how, data in edits:
        at = int(place * len(content))
        content = (
            content[:at] + (data if how < 2 else b"") + content[at + (0, len(data), len(data), len(content))[how] :]
        )
    return content


@FUZZ
@given(kind=st.sampled_from(sorted(WHOLE)), edits=EDITS)
def test_any_damage_to_a_file_is_survived(tmp_path, kind, edits):
    assert "\n" not in survives(tmp_path / "m", edited(WHOLE[kind], edits))


@FUZZ
@given(edits=EDITS)
@example(edits=[(0.0, 3, b"x")])
def test_any_damage_to_the_pickle_inside_an_archive_is_survived(tmp_path, edits):
    rezipped(tmp_path / "z", lambda name, data: edited(data, edits) if name.endswith("data.pkl") else data)
    assert "\n" not in survives(tmp_path / "m", (tmp_path / "z").read_bytes())


@FUZZ
@given(edits=EDITS)
def test_any_damage_to_a_safetensors_header_is_survived(tmp_path, edits):
    whole = WHOLE["safetensors"]
    length = int.from_bytes(whole[:8], "little")
    assert "\n" not in survives(
        tmp_path / "m", safetensors_file(edited(whole[8 : 8 + length], edits), whole[8 + length :])
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
tensor_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E5M2", "F64", "X"]) | json_values,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
    }
)


@FUZZ
@given(header=st.dictionaries(st.text(max_size=8), tensor_entries | json_values, max_size=4), size=st.integers(0, 64))
def test_any_safetensors_header_is_survived(tmp_path, header, size):
    assert "\n" not in survives(tmp_path / "m", safetensors_file(header, bytes(size)))


@FUZZ
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x20\0\0\0\0\0\0\0{"]))
def test_any_bytes_are_survived(tmp_path, content, start):
    assert "\n" not in survives(tmp_path / "m", start + content)


plain = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6) | st.just(torch.ones(2)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["state_dict", "model", "net", "a.b", "module.w", "x", 3]), inner, max_size=4)
    ),
    max_leaves=12,
)


@FUZZ
@given(plain)
def test_any_content_is_survived(tmp_path, content):
    torch.save(content, tmp_path / "z")
    assert "\n" not in survives(tmp_path / "m", (tmp_path / "z").read_bytes())


def test_programs_and_models_of_other_kinds_are_named_with_the_way_out(tmp_path):
    model = torch.nn.Linear(2, 1)
    program = torch.export.export(model, (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "a.pt2")
    assert "torch.export.load(path).state_dict" in refuse(tmp_path / "a.pt2")
    for name, start in (
        ("b.onnx", b"\x08\x07\x12\x07pytorch"),
        ("c.h5", b"\x89HDF\r\n\x1a\n"),
        ("d.tflite", b"\x1c\0\0\0TFL3"),
    ):
        (tmp_path / name).write_bytes(start + bytes(64))
        message = refuse(tmp_path / name)
        assert any(kind in message for kind in ("ONNX", "Keras", "TensorFlow Lite"))
        assert "bmft audit --predictions" in message
