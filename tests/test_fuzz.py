"""Anything at all in every parser: what comes out is a value, or an error of the family in a few lines."""

import json
import string
from contextlib import suppress

import click
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from safetensors.torch import save

from bmft._common import in_order
from bmft.auditing import read_predictions
from bmft.checkpoints import WeightPatch
from bmft.data import from_arrays, load_manifest
from bmft.errors import BmftError
from bmft.gate import load_policy, parse_policy
from bmft.masks import WeightMask
from bmft.models import readings
from bmft.settings import Settings
from bmft.tables import encode_attribute, read_table
from bmft_cli.main import main
from bmft_cli.options import Assigned, BatchSize, Pair

FUZZ = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60
)
"""`make test` runs this many; ``benchmarks/fuzz.py`` a million."""


def outcome(call, *args, **options):
    """What a call gives, or the error of the family, whose message is short enough to read."""
    try:
        return call(*args, **options)
    except BmftError as error:
        found = error
    assert len(str(found)) < 4000
    return found


# ---- bytes: valid ones in which some were changed

EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["put", "insert", "drop", "cut", "twice"]), st.binary(max_size=8)),
    min_size=1,
    max_size=5,
)


def edited(content, edits):
    """Each edit overwrites, inserts, drops or doubles some bytes, or cuts the rest off."""
    for place, how, data in edits:
        at = int(place * len(content))
        head, tail = content[:at], content[at:]
        if how == "put":
            content = head + data + tail[len(data) :]
        elif how == "insert":
            content = head + data + tail
        elif how == "drop":
            content = head + tail[len(data) :]
        elif how == "twice":
            content = head + tail[: 4 * len(data)] + tail
        else:
            content = head
    return content


def test_edits_change_bytes():
    kept = [edited(b"abcdef", [(0.5, how, b"xy")]) for how in ("put", "insert", "drop", "cut", "twice")]
    assert kept == [b"abcxyf", b"abcxydef", b"abcf", b"abc", b"abcdefdef"]


# ---- tables

CELLS = st.sampled_from(
    [
        "",
        "0",
        "1",
        "2",
        "f",
        "m",
        "nan",
        "+nan",
        "inf",
        "-0",
        "1e5",
        "9" * 5000,
        "²",
        "=cmd()",
        "a\nb",
        '"',
        "\0",
        ",",
        "\ufeff",
        "\x85",
        " ",
        "40",
        "60.0",
        "../x",
        "/etc/passwd",
        ".",
        "C:\\x",
        "\u202e",
        "'",
        "\t",
        ";",
    ]
) | st.text(max_size=6)
TABLES = st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=6)
SPECS = st.sampled_from(
    ["sex", "age", "age:40,60", "age:", "age:nan", "sex*age", "sex*sex", "*", ":", "", "sex*age:1e999", "age:60,40"]
) | st.text("sexage*:,.0123456789 e+-", max_size=12)

CSV = b'path,label,sex,age\n0.png,0,f,30\n1.png,1,m,40\n"2.png",0,"f\n",59.5\n3.png,1,"m",\n'


def load(path, **options):
    return load_manifest(path, **{"target": "label", "sensitive": "sex", "normalize": "none", **options})


@FUZZ
@given(rows=TABLES, spec=SPECS)
@example(rows=[[".", "0", "f"], ["/dev/zero", "1", "m"]], spec="sex")
@example(rows=[["a", "0", "f"], ["b", "9" * 5000, "m"]], spec="sex")
@example(rows=[["a", "0", "+nan"], ["b", "1", "-nan"], ["c", "1", "1"]], spec="sex:2")
def test_any_cells_are_read_or_refused(tmp_path, rows, spec):
    pd.DataFrame(rows, columns=["path", "label", "sex"]).to_csv(tmp_path / "m.csv", index=False, errors="replace")
    assert isinstance(outcome(load, tmp_path / "m.csv", sensitive=spec), BmftError)  # there are no such images


@FUZZ
@given(edits=EDITS, name=st.sampled_from(["m.csv", "m.tsv", "m.txt", "m"]))
@example(edits=[(0.0, "insert", b"\xff\xfe")], name="m.csv")
def test_any_damage_to_a_manifest_is_survived(tmp_path, edits, name):
    (tmp_path / name).write_bytes(edited(CSV, edits))
    outcome(load, tmp_path / name, cluster="sex", split_column="age")
    table = outcome(read_table, tmp_path / name)
    assert isinstance(table, BmftError) or all(isinstance(value, str) for value in table.to_numpy().ravel())


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    path = tmp_path_factory.mktemp("parquet") / "m.parquet"
    ages = [30, 40, None, 60]
    pd.DataFrame({"path": list("abcd"), "label": [0, 1, 0, 1], "sex": list("fmfm"), "age": ages}).to_parquet(path)
    return path.read_bytes()


@FUZZ
@given(edits=EDITS)
def test_any_damage_to_a_parquet_manifest_is_survived(tmp_path, parquet, edits):
    (tmp_path / "m.parquet").write_bytes(edited(parquet, edits))
    outcome(load, tmp_path / "m.parquet")


@FUZZ
@given(edits=EDITS, packed=st.booleans())
def test_any_damage_to_an_npz_is_survived(tmp_path, edits, packed):
    (tmp_path / "m.csv").write_bytes(CSV)
    (np.savez_compressed if packed else np.savez)(tmp_path / "m.npz", images=np.zeros((4, 3, 3), np.uint8))
    assert len(load(tmp_path / "m.npz")) == 4
    (tmp_path / "m.npz").write_bytes(edited((tmp_path / "m.npz").read_bytes(), edits))
    outcome(load, tmp_path / "m.npz")


@FUZZ
@given(spec=SPECS)
def test_any_sensitive_option_is_read_or_refused(spec):
    table = pd.DataFrame({"sex": ["f", "m", ""], "age": ["39.5", "60", "7"], "*": ["a", "b", "c"]})
    found = outcome(encode_attribute, table, spec)
    if not isinstance(found, BmftError):
        attribute, ids = found
        assert -1 <= ids.min() <= ids.max() < len(attribute.groups)


PREDICTIONS = b"y_true,y_score,sex,patient\n0,0.2,f,a\n1,0.9,m,b\n0,1e-3,f,c\n1,.5,m,\n"


@FUZZ
@given(edits=EDITS, spec=SPECS)
def test_any_damage_to_predictions_is_survived(tmp_path, edits, spec):
    (tmp_path / "p.csv").write_bytes(PREDICTIONS)
    assert len(read_predictions(tmp_path / "p.csv", sensitive="sex", cluster="patient")) == 4
    (tmp_path / "p.csv").write_bytes(edited(PREDICTIONS, edits))
    outcome(read_predictions, tmp_path / "p.csv", sensitive=spec)
    outcome(read_predictions, tmp_path / "p.csv", sensitive="sex", cluster="patient")


@FUZZ
@given(st.text("0123456789.,/e-+nai ", max_size=20) | st.text(max_size=20))
@example("0/1e-320")
@example("1e308/1e-308")
@example("/")
def test_any_normalization_gives_finite_pixels_or_is_refused(text):
    images = np.full((2, 2, 2, 3), 255, np.uint8)
    data = outcome(from_arrays, images, [0, 1], [0, 1], normalize=text)
    assert isinstance(data, BmftError) or data.inputs(slice(None)).isfinite().all()


# ---- TOML

KEYS = st.sampled_from(
    [
        "gate",
        "check",
        "non_inferiority",
        "waiver",
        "metric",
        "sensitive",
        "max_difference",
        "min_group",
        "margin",
        "alpha",
        "seed",
        "per_group",
        "classes",
        "intersect",
        "reason",
        "group",
        "data",
        "label",
        "settings",
        "audit",
        "debias",
        "epochs",
        "x",
        '"a b"',
        '""',
        "on_inconclusive",
        "tool",
        "tool.bmft",
    ]
)
VALUES = st.recursive(
    st.sampled_from(
        [
            "1",
            "0.1",
            "-1",
            "inf",
            "-inf",
            "nan",
            "true",
            '"sex"',
            '"roc_auc"',
            '"fail"',
            '""',
            "9" * 400,
            "9" * 5000,
            "0x" + "f" * 5000,
            "1979-05-27",
            "07:32:00",
            "1979-05-27T07:32:00Z",
            "'<b>'",
            '"\\u0000"',
            '"age:40"',
            '"x\\ny"',
            "1e400",
            "0o7",
            "[]",
            "{}",
            '"' + "x" * 10_000 + '"',
        ]
    )
    | st.integers().map(str)
    | st.floats().map(str),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
        | st.tuples(KEYS, inner).map(lambda pair: f"{{{pair[0]} = {pair[1]}}}")
    ),
    max_leaves=5,
)
LINES = st.lists(
    st.tuples(KEYS, VALUES).map(" = ".join) | KEYS.map("[{}]".format) | KEYS.map("[[{}]]".format), max_size=8
)
CHECK = '[[check]]\nmetric = "roc_auc"\nsensitive = ["sex"]\nmax_difference = 0.1\n'


@FUZZ
@given(lines=LINES, before=st.sampled_from(["", CHECK]))
@example(lines=["min_group = inf"], before=CHECK)
@example(lines=["min_group = 0x" + "f" * 5000], before=CHECK)
@example(lines=["x = " + "9" * 5000], before="")
@example(lines=["check" + ".a" * 3000 + " = 1"], before="")
@example(lines=["x = " + "[" * 20_000], before="")
def test_any_policy_is_read_or_refused(lines, before):
    outcome(parse_policy, before + "\n".join(lines))


@FUZZ
@given(st.text(max_size=40) | st.text(string.punctuation + string.whitespace + "a1", max_size=40))
@example("#\ud800")
def test_any_text_is_no_policy(text):
    assert isinstance(outcome(parse_policy, text), BmftError)


@FUZZ
@given(edits=EDITS)
def test_any_damage_to_a_policy_file_is_survived(tmp_path, edits):
    (tmp_path / "p.toml").write_bytes(edited(CHECK.encode(), edits))
    outcome(load_policy, tmp_path / "p.toml")


@FUZZ
@given(lines=LINES, name=st.sampled_from(["bmft.toml", "pyproject.toml"]))
@example(lines=["x = " + "9" * 5000], name="bmft.toml")
@example(lines=["seed = 0x" + "f" * 5000], name="bmft.toml")
@example(lines=["data" + ".a" * 3000 + " = 1"], name="bmft.toml")
@example(lines=["tool = 3"], name="pyproject.toml")
@example(lines=["[tool]", "bmft = 3"], name="pyproject.toml")
@example(lines=["[settings]", "patience = 0x" + "f" * 5000], name="bmft.toml")
def test_any_options_file_is_read_or_is_a_usage_error(lines, name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in tmp_path.iterdir():
        other.unlink()
    (tmp_path / name).write_text("\n".join(lines))
    code = main(["audit", "no-such-model.pt", "--data", "no.csv", "--label", "y", "--sensitive", "sex"])
    error = capsys.readouterr().err
    assert code in (2, 4), error
    assert "bug in bmft" not in error
    assert len(error) < 4000


# Not `just`: hypothesis shows what it is given, and Python writes out no integer as long as this.
HUGE = st.none().map(lambda _: 16**5000)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | HUGE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@FUZZ
@given(name=st.sampled_from([*Settings().to_dict(), "x", ""]), value=PLAIN)
@example(name="lr", value=10**400)
@example(name="objective", value={})
@example(name="tune", value=[None])
def test_any_setting_is_taken_or_refused(name, value):
    taken = outcome(Settings().with_values, {name: value})
    assert isinstance(taken, BmftError) or json.dumps(taken.to_dict())


def test_a_setting_that_python_writes_out_in_no_text_is_refused():
    for name in ("patience", "path", "tune", "combine"):
        assert "an int too large to show" in str(outcome(Settings().with_values, {name: 16**5000}))


@FUZZ
@given(st.text(max_size=20) | VALUES.map("patience={}".format))
@example("patience=" + "[" * 5000)
def test_any_text_is_an_option_or_a_usage_error(text):
    for kind in (Assigned("NAME=VALUE", "patience=3"), Pair(int), Pair(float), BatchSize()):
        with suppress(click.UsageError):
            kind.convert(text, None, None)


# ---- names of networks

ARCHS = st.text(max_size=12) | st.tuples(
    st.sampled_from(["resnet18", "torchvision:resnet18", "timm:vit_tiny_patch16_224", "hf-hub:a/b", "os:system", ":"]),
    st.sampled_from(
        [
            "",
            ",",
            ",img_size=64",
            ",img_size=" + "9" * 5000,
            ",a=" + "(" * 500,
            ",a=b",
            ",a=\0",
            ",pretrained=True",
            ",img_size=" + "-" * 5000 + "1",
            ",img_size=True",
        ]
    ),
).map("".join)


@FUZZ
@given(arch=ARCHS, trusted=st.booleans())
@example(arch="resnet18,a=" + "[" * 300, trusted=False)
@example(arch="resnet18,a=" + "-" * 20_000 + "1", trusted=False)
def test_any_architecture_is_read_or_refused(arch, trusted):
    found = outcome(readings, arch, trusted=trusted)
    if not trusted:
        assert isinstance(found, tuple)
        assert all(reading.startswith(("torchvision:", "timm:")) for reading in found)


# ---- masks and patches

MASK = {"conv.weight": torch.tensor([[True, False], [False, True]]), "fc.weight": torch.tensor([0.5, 1.0])}
STATE = {"conv.weight": torch.arange(4.0).reshape(2, 2), "n": torch.tensor(3)}
PATCH = WeightPatch.between(STATE, {**STATE, "conv.weight": STATE["conv.weight"] + torch.tensor([0.0, 1.0])})
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.uint16,
    torch.uint64,
]


def bytes_of(thing, path):
    thing.save(path)
    return path.read_bytes()


def applied(path):
    patch = WeightPatch.load(path)
    patch.summary()
    return patch.apply(STATE)


@FUZZ
@given(edits=EDITS, part=st.sampled_from(["header", "all"]))
def test_any_damage_to_a_mask_or_a_patch_is_survived(tmp_path, edits, part):
    for thing, read in ((WeightMask(MASK), WeightMask.load), (PATCH, applied)):
        whole = bytes_of(thing, tmp_path / "t")
        assert not isinstance(outcome(read, tmp_path / "t"), BmftError)
        end = 8 + int.from_bytes(whole[:8], "little")
        header = edited(whole[8:end], edits)
        damaged = len(header).to_bytes(8, "little") + header + whole[end:] if part == "header" else edited(whole, edits)
        (tmp_path / "t").write_bytes(damaged)
        outcome(read, tmp_path / "t")


TENSORS = st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)).map(
    lambda kind: torch.ones(kind[1]).to(kind[0])
)


@FUZZ
@given(
    tensors=st.dictionaries(
        st.sampled_from(
            ["w", "w:index", "w:before", "w:after", "conv.weight:index", "conv.weight:before", "conv.weight:after"]
        ),
        TENSORS,
        max_size=4,
    ),
    metadata=st.fixed_dictionaries(
        {"format": st.just("1"), "kind": st.sampled_from(["bmft.mask", "bmft.patch"])},
        optional={
            "totals": st.sampled_from(
                [
                    '{"w": 4}',
                    '{"conv.weight": 4}',
                    '{"w": 1e999}',
                    '{"w": "4"}',
                    "[]",
                    "3",
                    "[" * 5000,
                    '{"w": NaN}',
                    '{"w": true}',
                    '{"w": ' + "9" * 5000 + "}",
                ]
            ),
            "recipe": st.sampled_from(["{}", "[]", "[1]", "3", '"x"', "null", "[" * 5000]),
            "before_hash": st.just(PATCH.before_hash),
            "after_hash": st.text(max_size=3),
        },
    ),
)
@example(
    tensors={f"w:{part}": torch.ones(1, dtype=torch.int64) for part in ("index", "before", "after")},
    metadata={
        "format": "1",
        "kind": "bmft.patch",
        "totals": '{"w": 4}',
        "recipe": "{}",
        "before_hash": PATCH.before_hash,
        "after_hash": "",
    },
)
@example(tensors={"w": torch.ones(2).to(torch.float8_e5m2)}, metadata={"format": "1", "kind": "bmft.mask"})
@example(tensors={"w": torch.ones(0)}, metadata={"format": "1", "kind": "bmft.mask"})
def test_any_tensors_make_a_mask_or_a_patch_or_are_refused(tmp_path, tensors, metadata):
    if tensors:
        (tmp_path / "t").write_bytes(in_order(save(tensors, metadata)))
        mask = outcome(WeightMask.load, tmp_path / "t")
        assert isinstance(mask, BmftError) or 0 <= mask.density <= 1
        outcome(applied, tmp_path / "t")
