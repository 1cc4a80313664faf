"""Manifests, archives, policies and names that mean harm: nothing runs, nothing fills the memory, nothing is obeyed."""

import csv
import gzip
import io
import json
import os
import pickle
import tomllib
import tracemalloc
import zipfile
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bmft.auditing import Predictions, read_predictions
from bmft.checkpoints import WeightPatch
from bmft.checkpoints.patch import Change
from bmft.data import load_manifest
from bmft.errors import BmftError, DataError, GroupError, MismatchError
from bmft.gate import check, load_policy, parse_policy, starting_policy
from bmft.inference import audit
from bmft.masks import WeightMask
from bmft.models import state_hash
from bmft.report import write_report
from bmft.tables import Attribute, read_table

ROWS = "path,label,sex\n0.png,0,f\n1.png,1,m\n0.png,0,f\n1.png,1,m\n"


class Evil:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def folder(tmp_path):
    for i in range(2):
        Image.fromarray(np.full((4, 4, 3), 100 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "m.csv").write_text(ROWS)
    return tmp_path


def load(path, **options):
    return load_manifest(path, **{"target": "label", "sensitive": "sex", "normalize": "none", **options})


def refuse(path, error=DataError, **options):
    """The message of a refusal, for which little memory was taken."""
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            load(path, **options)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    return str(caught.value)


# ---- code


def npz(path, content, name="images.npy", **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(name, content)


def npy(shape, dtype="|u1", data=b"", order=False):
    header = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def test_a_pickle_inside_an_npz_is_refused_and_runs_nothing(folder):
    images = np.empty(4, object)
    images[:] = [Evil(folder / "pwned")] * 4
    np.savez(folder / "m.npz", images=images)
    assert "expected uint8" in refuse(folder / "m.npz")
    npz(folder / "m.npz", pickle.dumps(Evil(folder / "pwned")))
    refuse(folder / "m.npz")
    npz(folder / "m.npz", npy((4, 2, 2), "|O", pickle.dumps(Evil(folder / "pwned"))))
    refuse(folder / "m.npz")
    assert not (folder / "pwned").exists()


def test_the_same_pickle_does_run_where_pickles_are_allowed(folder):
    # Without this the test above could pass because nothing ever runs.
    np.savez(folder / "m.npz", images=np.array([Evil(folder / "pwned")], object))
    with np.load(folder / "m.npz", allow_pickle=True) as file:
        file["images"]
    assert (folder / "pwned").exists()


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m", "m.csv.gz", "m.parquet", "m.npz"])
def test_a_pickle_under_a_manifests_name_is_refused_and_runs_nothing(folder, name):
    (folder / name).write_bytes(pickle.dumps(Evil(folder / "pwned")))
    refuse(folder / name)
    with pytest.raises(BmftError):
        read_predictions(folder / name, sensitive="sex")
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("read", [WeightMask.load, WeightPatch.load, load_policy])
def test_a_pickle_under_another_files_name_is_refused_and_runs_nothing(folder, read):
    (folder / "x.safetensors").write_bytes(pickle.dumps(Evil(folder / "pwned"), protocol=4))
    with pytest.raises(BmftError):
        read(folder / "x.safetensors")
    assert not (folder / "pwned").exists()


# ---- size


def test_an_array_is_judged_by_its_header_before_it_is_unpacked(folder):
    (folder / "m.csv").write_text(ROWS)
    for shape, words in (
        ((4, 40_000, 40_000), "0 bytes for an array of (4, 40000, 40000)"),
        ((2**40, 2, 2), f"{2**40} images for 4 rows"),
        ((4, 2**62, 2**62), "0 bytes for an array"),
        ((4, -1, -4), "0 bytes for an array"),
        ((4,), "expected uint8 (n, h, w)"),
    ):
        npz(folder / "m.npz", npy(shape))
        assert words in refuse(folder / "m.npz")


def test_a_small_npz_of_huge_images_is_refused(folder):
    (folder / "m.csv").write_text("path,label,sex\na,0,f\nb,1,m\n")
    header = npy((2, 1 << 15, (1 << 15) + 1))
    with (
        zipfile.ZipFile(folder / "m.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        file.write(header)
        for _ in range(64):
            file.write(bytes(1 << 20))
    # The bytes that are missing are claimed, as by a forger, in the archive's directory.
    data = (folder / "m.npz").read_bytes()
    real, claimed = len(header) + (64 << 20), len(header) + 2 * (1 << 15) * ((1 << 15) + 1)
    assert data.count(real.to_bytes(4, "little")) >= 1
    (folder / "m.npz").write_bytes(data.replace(real.to_bytes(4, "little"), claimed.to_bytes(4, "little")))
    assert "expected at most 1073741824 bytes each" in refuse(folder / "m.npz")


def test_an_npz_behind_a_password_or_an_unknown_packing_is_refused(folder):
    np.savez(folder / "m.npz", images=np.zeros((4, 3, 3), np.uint8))
    whole = (folder / "m.npz").read_bytes()
    directory = whole.rindex(b"PK\x01\x02")
    for at, value, words in ((8, 1, "encrypted"), (10, 77, "compression")):
        odd = bytearray(whole)
        odd[directory + at] = odd[at - 2] = value
        (folder / "m.npz").write_bytes(odd)
        assert words in refuse(folder / "m.npz")


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(folder):
    with gzip.open(folder / "m.csv.gz", "wb") as file:
        file.write(ROWS.encode())
        for _ in range(160):
            file.write(b"x" * (1 << 20))
    assert (folder / "m.csv.gz").stat().st_size < 1 << 20
    assert "unpacks to more than 200 times its size" in refuse(folder / "m.csv.gz")


def test_a_manifest_that_compresses_well_is_read(folder):
    (folder / "m.csv.gz").write_bytes(gzip.compress((ROWS + "0.png,0,f\n" * 100_000).encode()))
    assert len(read_table(folder / "m.csv.gz")) == 100_004


def test_an_image_bomb_is_refused_by_its_header(folder):
    image = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(image, "PNG")
    assert len(image.getvalue()) < 100_000
    (folder / "0.png").write_bytes(image.getvalue())
    message = refuse(folder / "m.csv")
    assert "2 of 4 images cannot be read" in message
    assert "exceeds limit" in message


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "/dev/zero"])
def test_an_image_without_an_end_is_refused(folder, make):
    (folder / "0.png").unlink()
    make(folder / "0.png")
    assert "row 0: " in (message := refuse(folder / "m.csv"))
    assert "not a file but a pipe, socket or device" in message


def test_a_file_too_large_for_an_image_is_not_read(folder):
    with (folder / "0.png").open("wb") as file:
        file.truncate(1 << 40)  # takes no room
    assert "expected at most" in refuse(folder / "m.csv")


def test_an_intersection_of_more_groups_than_anyone_can_read_is_refused(folder):
    rows = "".join(f"0.png,{i % 2},g{i}\n" for i in range(200))
    (folder / "m.csv").write_text(f"path,label,sex\n{rows}")
    assert "1600000000 combinations" in refuse(folder / "m.csv", GroupError, sensitive="*".join(["sex"] * 4))


@pytest.mark.ci
def test_fields_of_ten_megabytes_are_read_and_cut_in_messages(folder, caplog):
    huge = "9" * 10_000_000
    for row, options in (
        (f"{huge},0,f", {}),
        (f"0.png,{huge},f", {}),
        (f"0.png,0,{huge}", {"sensitive": "sex:1,2"}),
        (f"0.png,0,{huge}", {"split_column": "sex", "split": "m"}),
    ):
        (folder / "m.csv").write_text(f"path,label,sex\n{row}\n1.png,1,m\n1.png,1,2\n")
        with pytest.raises(DataError) as caught:
            load(folder / "m.csv", **options)
        assert len(str(caught.value)) < 2000
    assert all(len(record.getMessage()) < 2000 for record in caplog.records)


# ---- places


@pytest.mark.parametrize("path", ["..", "../x.png", "a/../../x.png", "\0", "a\0.png", "", "\t"])
def test_a_path_out_of_the_folder_or_with_a_nul_is_refused(folder, path):
    (folder / "m.csv").write_text(ROWS.replace("0.png", path))
    assert "2 image paths are refused" in refuse(folder / "m.csv")


@pytest.mark.parametrize("path", [".", "./", "a/..", "//", "x" * 5000, "=cmd()", "~/x.png", "$HOME/x.png", "a|b"])
def test_any_other_path_is_taken_as_it_is_written_and_is_no_image_here(folder, path):
    (folder / "m.csv").write_text(ROWS.replace("0.png", path))
    assert "2 of 4 images cannot be read" in refuse(folder / "m.csv")


def test_a_nul_a_mark_and_a_formula_are_text_like_any_other(folder):
    (folder / "m.csv").write_bytes(b"\xef\xbb\xbf" + ROWS.replace("f\n", "\"=cmd|'/c calc'!A0\"\n").encode())
    assert load(folder / "m.csv").attributes[0].groups == ("=cmd|'/c calc'!A0", "m")
    (folder / "m.csv").write_bytes(ROWS.replace("f\n", "f\0\n").encode())
    assert load(folder / "m.csv").attributes[0].groups == ("f\0", "m")


# ---- names in what is written and shown

NASTY = "<img src=x onerror=alert(1)>\x1b[31m\n::error::|\"'&]]>=cmd()\u202e\x07"
NASTY_NAME = NASTY.replace(":", ";")  # of an attribute, which is cut where there is a colon


def nasty_predictions(n=400):
    rng = np.random.default_rng(0)
    targets, groups = rng.integers(0, 2, (2, n))
    scores = np.clip(0.25 + 0.5 * targets + rng.normal(0, 0.2, n) - 0.1 * groups, 0, 1)
    return Predictions(scores, targets, groups, (Attribute(NASTY_NAME, (NASTY, f"={NASTY}")),), classes=("no", NASTY))


def assert_tame(text):
    """Nothing a terminal obeys, no line that a CI log takes for a command."""
    assert not any(line.startswith("::") for line in text.splitlines())
    assert all(c.isprintable() or c == "\n" for c in text)


def test_reports_show_nasty_names_as_text(tmp_path):
    paths = write_report(audit(nasty_predictions(), seed=0), tmp_path / "report")
    html, markdown = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert paths
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html
    front, rest = markdown.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["model-index"]
    assert "<img" not in rest
    json.loads((tmp_path / "report" / "report.json").read_text())


def nasty_policy(path):
    """The policy of someone who may name a column as they please."""
    name = json.dumps(NASTY_NAME)
    path.write_text(f'[[check]]\nmetric = "true_positive_rate"\nsensitive = [{name}]\nmax_difference = 0.01\n')
    return path


def test_a_verdict_shows_nasty_names_as_text(tmp_path):
    verdict = check(audit(nasty_predictions(), seed=0), load_policy(nasty_policy(tmp_path / "p.toml")))
    assert_tame(verdict.to_text())
    assert "<img" not in verdict.to_markdown()
    ET.fromstring(verdict.to_junit())
    assert json.loads(json.dumps(verdict.to_dict()))["checks"][0]["id"].endswith(f"/{NASTY_NAME}")


def test_a_starting_policy_from_nasty_names_is_a_policy():
    report = audit(nasty_predictions(), seed=0)
    text = starting_policy(report, [NASTY_NAME], cluster=NASTY + "\x7f")
    assert parse_policy(text).cluster == NASTY + "\x7f"
    assert set(tomllib.loads(text)) == {"gate", "check"}


def test_the_gate_shows_nasty_names_as_text(tmp_path, bmft, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    nasty, group = "<b>\x1b[2J", NASTY
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["y_true", "y_score", nasty])
        predictions = nasty_predictions()
        for target, score, place in zip(
            predictions.targets[:, 0], predictions.scores[:, 0], predictions.groups[:, 0], strict=True
        ):
            rows.writerow([target, score, (group, "=2+5")[place]])
    name = json.dumps(nasty)
    (tmp_path / "p.toml").write_text(
        f'[[check]]\nmetric = "roc_auc"\nsensitive = [{name}]\nmax_difference = 0.001\nmin_group = 0.99999\n'
    )
    code = bmft(
        "gate",
        "--predictions",
        "scores.csv",
        "--policy",
        "p.toml",
        "--junit",
        "<b>.xml",
        "--summary",
        "s.md",
        "--json",
        "g.json",
    )
    told = capsys.readouterr()
    assert code in (1, 3), told.err
    assert "=2+5" in told.out
    assert_tame(told.out + told.err)
    ET.parse(tmp_path / "<b>.xml")
    assert "<b>" not in (tmp_path / "s.md").read_text()
    assert json.loads((tmp_path / "g.json").read_text())["schema"] == 1
    assert sorted(os.listdir(tmp_path)) == sorted(["scores.csv", "p.toml", "<b>.xml", "s.md", "g.json"])


def test_errors_and_tables_show_nasty_names_as_text(tmp_path, bmft, capsys):
    from bmft_cli.console import table

    assert_tame(table([[NASTY, "1"], ["a", NASTY]]))
    (tmp_path / "s.csv").write_text("y_true,y_score,sex\n0,2,\x1b[31m\n1,\x1b[31m,m\n")
    nasty_policy(tmp_path / "\x1b[31m.toml")
    assert bmft("gate", "--predictions", "s.csv", "--policy", "\x1b[31m.toml") == 4
    told = capsys.readouterr().err
    assert "[31m" in told
    assert_tame(told)


# ---- for another model


def test_a_patch_made_to_fit_by_its_hash_alone_is_refused(tmp_path):
    state = {"w": torch.arange(4.0)}
    for name, place, dtype, total in (
        ("other", 1, torch.float32, 4),
        ("w", 9, torch.float32, 10),
        ("w", 1, torch.int64, 4),
        ("w", 1, torch.float32, 4),
    ):
        change = Change(torch.tensor([place]), torch.ones(1).to(dtype), torch.full((1,), 7).to(dtype), total)
        WeightPatch({name: change}, state_hash(state), "0" * 64).save(tmp_path / "p")
        with pytest.raises(MismatchError, match="the patch is damaged"):
            WeightPatch.load(tmp_path / "p").apply(state)
