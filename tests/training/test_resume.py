"""A run that was killed goes on and ends with the same bytes."""

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
from functools import cache

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bmft.data import from_arrays
from bmft.errors import ConfigError, DataError
from bmft.methods import METHODS, debias
from bmft.models import changes, put_back
from tests.tiers import in_ci

FAST = {"preset": "path", "epochs": [4, 2], "path": [0.5, 1.0], "bias_weight": [1.0, 1.0, 0.4]}


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


def patients(n=200):
    generator = torch.Generator().manual_seed(1)
    groups = (torch.arange(n) % 4 == 0).long()
    targets = (torch.rand(n, generator=generator) < 0.4).long()
    inputs = torch.randn(n, 6, generator=generator) + (2 * targets[:, None] - 1) * 0.6 + groups[:, None] * 0.7
    return from_arrays(inputs, targets, groups)


@cache
def trained():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 1))
    batch = patients(600).take(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(batch.inputs)[:, 0], batch.targets.float()).backward()
        optimizer.step()
    return model


def network():
    return copy.deepcopy(trained())


def run(folder=None, *, resume=False, die_at=None, method="bmft", **config):
    fit, select = patients().split(0.5, 0.5, seed=0)
    seen = []

    def progress(now):
        seen.append((now.phase, now.done))
        if len(seen) == die_at:
            raise Killed

    outcome = debias(
        network(),
        fit,
        select,
        method=method,
        config=METHODS[method].reading(FAST | config),
        device="cpu",
        journal=folder,
        resume=resume,
        progress=progress,
        intervals=False,
        max_auc_drop=0.2,
        max_group_auc_drop=0.5,
    )
    return outcome, seen


def same(one, other):
    assert repr(one.report.history) == repr(other.report.history)  # as text: a NaN is not equal to itself
    assert one.reason == other.reason
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
    assert one.patch.after_hash == other.patch.after_hash
    assert all(torch.equal(a, other.mask.tensors[name]) for name, a in one.mask.tensors.items())


@cache
def undisturbed():
    return run()


STEPS = 20
# The first and the last of either step, and one at least of each kind between.
SOME = (1, 2, 4, 5, 8, 11, 14, 17, 19, 20)
QUICK = (1, 5, 11, 20)


@pytest.mark.parametrize(
    "die_at",
    [
        *QUICK,
        *in_ci(*(at for at in SOME if at not in QUICK)),
        *(pytest.param(at, marks=pytest.mark.slow) for at in range(1, STEPS + 1) if at not in SOME),
    ],
)
def test_killed_at_any_report_it_ends_the_same(tmp_path, die_at):
    whole, seen = undisturbed()
    with pytest.raises(Killed):
        run(tmp_path / "j", die_at=die_at)
    again, rest = run(tmp_path / "j", resume=True)
    same(again, whole)
    assert rest == seen[len(seen) - len(rest) :]
    # No more is done again than the epoch, or the heads of the point of the path, that was under way.
    assert len(rest) <= len(seen) - die_at + 8


@pytest.mark.parametrize("goal", ["worst_group_auc", "largest_group_loss"])
def test_a_choice_by_another_figure_goes_on_too(tmp_path, goal):
    whole, seen = run(choose=goal)
    with pytest.raises(Killed):
        run(tmp_path / "j", die_at=len(seen) // 2, choose=goal)
    same(run(tmp_path / "j", resume=True, choose=goal)[0], whole)


@pytest.mark.parametrize("optimizer", ["adam", *in_ci("adamw", "rmsprop", "adagrad")])
def test_every_optimizer_goes_on_with_its_state(tmp_path, optimizer):
    config = {"optimizer": optimizer, "lr": [1e-2, 1e-2]}
    whole, _ = run(**config)
    with pytest.raises(Killed):
        run(tmp_path / "j", die_at=3, **config)
    same(run(tmp_path / "j", resume=True, **config)[0], whole)


@pytest.mark.parametrize("method", ["swift", "dfr", *in_ci("random_mask", "rwreg", "head", "group_dro", "threshold")])
def test_every_method_goes_on(tmp_path, method):
    whole, seen = run(method=method)
    with pytest.raises(Killed):
        run(tmp_path / "j", die_at=max(len(seen) // 2, 1), method=method)
    same(run(tmp_path / "j", resume=True, method=method)[0], whole)


def test_an_optimizer_of_ones_own_starts_its_training_over_and_ends_the_same(tmp_path):
    config = {"optimizer": lambda parameters, lr: torch.optim.NAdam(parameters, lr=lr), "lr": [1e-2, 1e-2]}
    whole, seen = run(**config)
    with pytest.raises(Killed):
        run(tmp_path / "j", die_at=3, **config)
    again, rest = run(tmp_path / "j", resume=True, **config)
    same(again, whole)
    assert rest == seen


def test_killed_twice_it_still_ends_the_same(tmp_path):
    whole, _ = undisturbed()
    for die_at in (3, 2):
        with pytest.raises(Killed):
            run(tmp_path / "j", resume=True, die_at=die_at)
    same(run(tmp_path / "j", resume=True)[0], whole)


def test_there_are_as_many_reports_as_were_tried():
    assert len(undisturbed()[1]) == STEPS


def test_after_the_last_stage_nothing_is_trained_again(tmp_path):
    whole, _ = run(tmp_path / "j")
    again, rest = run(tmp_path / "j", resume=True)
    same(again, whole)
    assert rest == []


def test_another_run_is_refused_and_what_differs_is_named(tmp_path):
    run(tmp_path / "j")
    with pytest.raises(ConfigError, match=r"another fraction \(0.05, now 0.5\).*--resume"):
        run(tmp_path / "j", resume=True, fraction=0.5)


def test_without_resume_the_old_progress_is_forgotten(tmp_path):
    run(tmp_path / "j")
    _, seen = run(tmp_path / "j", fraction=0.5)
    assert len(seen) == STEPS
    same(run(tmp_path / "j", resume=True, fraction=0.5)[0], run(fraction=0.5)[0])


def test_nothing_is_written_before_there_is_something_to_keep(tmp_path):
    with pytest.raises(ConfigError):
        run(tmp_path / "j", objective="none of these")
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08" + bytes(30)])
def test_a_damaged_journal_is_one_line(tmp_path, content):
    run(tmp_path / "j")
    (tmp_path / "j" / "stage-1.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="not a journal"):
        run(tmp_path / "j", resume=True)


def test_another_safetensors_file_is_no_journal(tmp_path):
    run(tmp_path / "j")
    save_file({"a": torch.zeros(1)}, tmp_path / "j" / "stage-1.safetensors")
    with pytest.raises(DataError, match="not a journal"):
        run(tmp_path / "j", resume=True)


def test_changes_put_back_every_bit():
    before = {"few": torch.zeros(4, 5), "sign": torch.zeros(6), "all": torch.zeros(3), "steps": torch.tensor(3)}
    after = {name: tensor.clone() for name, tensor in before.items()}
    after["few"][1, 2] = 5.0
    after["sign"][4] = -0.0
    after["all"] += 1
    after["steps"] += 1
    found = changes(before, after)
    assert set(found) == {"positions few", "values few", "positions sign", "values sign", "whole all", "whole steps"}
    put_back(before, found)
    for name, tensor in after.items():
        assert torch.equal(before[name], tensor)
    assert torch.equal(before["sign"].signbit(), after["sign"].signbit())


KILL = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_resume import debias, patients, network, FAST
left = int(sys.argv[1])
def progress(now):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
fit, select = patients().split(0.5, 0.5, seed=0)
debias(network(), fit, select, config=FAST, device="cpu", journal={folder!r}, progress=progress, intervals=False,
       max_auc_drop=0.2, max_group_auc_drop=0.5)
"""


@pytest.mark.ci
def test_a_real_kill_leaves_no_half_file_and_a_journal_that_goes_on(tmp_path):
    folder = str(tmp_path / "j")
    code = textwrap.dedent(KILL).format(here=os.path.dirname(__file__), folder=folder)
    done = subprocess.run([sys.executable, "-c", code, "6"], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert {name.split("-")[0].split(".")[0] for name in os.listdir(folder)} <= {"best", "epoch", "stage"}
    same(run(folder, resume=True)[0], run()[0])


def test_the_journals_text_is_json_and_holds_no_code(tmp_path):
    from safetensors import safe_open

    run(tmp_path / "j")
    with safe_open(tmp_path / "j" / "stage-1.safetensors", "pt") as file:
        where = json.loads(file.metadata()["journal"])
    assert set(where) == {"run", "stage", "history", "chosen", "remarks"}
