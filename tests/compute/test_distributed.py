"""Two processes give what one gives; averaging what they find by themselves does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, nn

from bmft import fairness
from bmft.checkpoints import read_checkpoint
from bmft.compute import Share
from bmft.compute.distributed import count
from bmft.data import from_arrays
from bmft.errors import ConfigError
from bmft.inference import predict
from bmft.masks import WeightMask, weight_importances
from bmft.methods import debias
from bmft.models import find_head, penultimate_features
from bmft.training import Loss, Step, tune

TOGETHER = 2
OBJECTIVES = (fairness.equalized_odds_gap, fairness.cross_entropy)


def patients(n=203):
    generator = torch.Generator().manual_seed(1)
    groups = (torch.rand(n, generator=generator) < 0.25).long()
    targets = (torch.rand(n, generator=generator) < 0.3 + 0.2 * groups).long()
    inputs = torch.randn(n, 1, 8, 8, generator=generator) + (targets + 0.7 * groups)[:, None, None, None]
    return from_arrays(inputs, targets, groups).with_inputs(inputs.double())


def network():
    torch.manual_seed(3)
    model = (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, 5),
            nn.ReLU(),
            nn.Linear(5, 1),
        )
        .double()
        .eval()
    )
    with torch.no_grad():  # untrained, it says the same of everyone: its threshold is put among the answers
        model[-1].bias -= model(patients().inputs(slice(0, 50))).median()
    return model


def trained(loss, mask, **step):
    model, data = network(), patients()
    losses = []

    def note(epoch, value):
        losses.append(value)
        return False

    tune(
        model,
        data,
        loss,
        WeightMask.by_name(model, mask),
        Step(2, batch_size=37, **step),
        generator=torch.Generator().manual_seed(0),
        after_epoch=note,
    )
    return {"losses": torch.tensor(losses, dtype=torch.float64), **model.state_dict()}


def everything():
    """What a run is made of, by name."""
    data, model = patients(), network()
    found = {"predictions": {"scores": torch.from_numpy(predict(model, data, device="cpu").scores)}}
    for exact in (True, False):
        parts = weight_importances(model, OBJECTIVES, data, batch_size=32, exact=exact)
        for name, part in zip(("gap", "task"), parts, strict=True):
            found[f"importance of the {name}, {'exact' if exact else 'published'}"] = {
                "value": torch.tensor(part.value),
                **part,
            }
    features = penultimate_features(model, find_head(model, data.inputs(slice(0, 2))), data)
    found["features"] = {"inputs": features.inputs(slice(0, None))}
    gap = Loss(fairness.equalized_odds_gap, task_weight=0.5)
    found["training"] = trained(gap, "*", lr=1e-2)
    found["training, published"] = trained(
        Loss(fairness.equalized_odds_gap, task_weight=0.5, whole_set=False), "0.*", lr=1e-2
    )
    found["training, augmented, rate found"] = trained(gap, "6.*", lr=0.0, augment=("hflip", "transpose"))
    fit, select = data.split(0.5, 0.5, seed=0)
    # In bfloat16, where a processor has it, sums over other pieces of a batch differ in the third place.
    config = {"epochs": [2, 2], "fraction": 0.3, "precision": "float32"}
    outcome = debias(
        network().float(), single(fit), single(select), config=config, device="cpu", keep="last", intervals=False
    )
    found["debias"] = dict(outcome.model.state_dict())
    found["mask"] = {name: chosen.float() for name, chosen in outcome.mask.tensors.items()}
    return found


def single(data):
    return data.with_inputs(data.inputs(slice(0, None)).float())


def own_gradient():
    """The gradient of the gap of this process's own rows."""
    data, model = patients(), network()
    mine = Share(len(data)).of(data).take(slice(0, None))
    probabilities = torch.sigmoid(model(mine.inputs))
    fairness.equalized_odds_gap(probabilities, mine.targets[:, None].double(), mine.groups[:, 0]).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def gradient_together():
    signed = lambda weight, gradient: gradient  # noqa: E731
    (found,) = weight_importances(network(), [fairness.equalized_odds_gap], patients(), score=signed)
    return torch.cat([tensor.flatten() for tensor in found.values()])


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=TOGETHER)
    try:
        averaged = own_gradient()
        distributed.all_reduce(averaged)
        found = {
            "all": everything(),
            "averaged": averaged / TOGETHER,
            "together": gradient_together(),
            "refused": [refusal(on_out_of_memory="halve"), refusal(norm_stats="update")],
            "few": predict(network(), patients(1), device="cpu").scores.shape,
        }
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def refusal(**config):
    fit, select = patients().split(0.5, 0.5, seed=0)
    try:
        debias(network(), fit, select, config=config, device="cpu")
    except ConfigError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_distributed as t; t.work"
    started = [subprocess.Popen([sys.executable, "-c", f"{code}({rank}, {str(folder)!r})"]) for rank in range(TOGETHER)]
    assert [process.wait() for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(TOGETHER)]


@pytest.fixture(scope="module")
def one():
    return everything()


@pytest.mark.ci
def test_two_processes_give_what_one_gives(two, one):
    for found in two:
        assert set(found["all"]) == set(one)
        for part, tensors in one.items():
            for name, tensor in tensors.items():
                torch.testing.assert_close(
                    found["all"][part][name],
                    tensor,
                    rtol=1e-6,
                    atol=1e-6,
                    msg=lambda m: f"{part}, {name}: {m}",  # noqa: B023
                )


@pytest.mark.ci
def test_the_processes_agree_to_the_last_bit(two):
    first, second = (found["all"] for found in two)
    for part, tensors in first.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second[part][name]), (part, name)


@pytest.mark.ci
def test_a_naive_average_of_the_processes_gradients_is_another_gradient(two):
    alone = gradient_together()
    assert (two[0]["together"] - alone).norm() < 1e-9 * alone.norm()
    assert (two[0]["averaged"] - alone).norm() > 0.05 * alone.norm()


@pytest.mark.ci
def test_fewer_rows_than_processes_are_done_by_each(two):
    assert [tuple(found["few"]) for found in two] == [(1, 1)] * TOGETHER


@pytest.mark.ci
def test_what_each_would_do_for_itself_is_refused(two):
    assert all("for one process" in line for found in two for line in found["refused"])


def test_alone_a_share_is_everything():
    data = patients(9)
    assert count() == 1
    assert Share(9).of(data) is data


def torchrun(*args, cwd, start=("-m", "bmft_cli")):
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *meet, *start]
    return subprocess.run([*command, *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.ci
def test_torchrun_writes_once_what_one_process_writes(bmft, study, data_options, tmp_path):
    options = [study / "model.pt", *data_options, "--epochs", "1,1", "--keep", "last", "--preset", "path"]
    options += ["--set", "path=[1.0]", "--precision", "float32"]
    assert bmft("debias", *options, "--out", "one.pt") == 0
    done = torchrun("debias", *options, "--out", "two.pt", "--report", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equalized odds difference") == 1
    one, two = (read_checkpoint(tmp_path / name).state for name in ("one.pt", "two.pt"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    masks = load_file(tmp_path / "report" / "mask.safetensors")
    assert any(bool(chosen.any()) for chosen in masks.values())
    assert json.loads((tmp_path / "report" / "report.json").read_text())["accepted"]
    assert not list(tmp_path.glob("*.resume"))


POLICY = """
[[check]]
metric = "true_positive_rate"
sensitive = ["sex"]
max_difference = 0.1
"""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "code"), [("audit", 0), ("gate", 1)])
def test_a_measurement_of_two_processes_is_that_of_one_to_the_byte(bmft, study, data_options, tmp_path, command, code):
    (tmp_path / "fairness.toml").write_text(POLICY)
    more = ["--policy", "fairness.toml"] if command == "gate" else []
    options = [command, study / "model.pt", *data_options, *more, "--json"]
    assert bmft(*options, "one.json") == code
    done = torchrun(*options, "two.json", cwd=tmp_path)
    assert (done.returncode, errors(done)) == (code, [])
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def errors(done):
    return [line for line in done.stderr.splitlines() if line.startswith("bmft: error")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["audit", "none.pt", "--data", "none.csv", "--label", "y", "--sensitive", "a"], "none"),
        (["compare", "none.pt"], "use its --workers"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path, args, says):
    done = torchrun(*args, cwd=tmp_path)
    assert done.returncode != 0
    (line,) = errors(done)
    assert says in line


FAILING = """
import os, signal, sys
from bmft_cli.main import main
from bmft.errors import DataError
from bmft.compute import Share

def gather(self, own):
    if os.environ["RANK"] == "1":
        {happens}
    return own_gather(self, own)

own_gather, Share.gather = Share.gather, gather
sys.exit(main(sys.argv[1:]))
"""


def with_a_failure(happens, study, data_options, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING.format(happens=happens))
    options = [study / "model.pt", *data_options, "--out", "fair.pt", "--report", "report"]
    done = torchrun("debias", *options, cwd=tmp_path, start=["failing.py"])
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["failing.py"]
    return done


@pytest.mark.ci
def test_an_error_of_one_process_ends_both_with_its_reason(study, data_options, tmp_path):
    done = with_a_failure("raise DataError('row 7: damaged')", study, data_options, tmp_path)
    (line,) = errors(done)
    assert "row 7: damaged" in line


@pytest.mark.slow
def test_a_killed_process_ends_both(study, data_options, tmp_path):
    done = with_a_failure("os.kill(os.getpid(), signal.SIGKILL)", study, data_options, tmp_path)
    assert "Signal 9 (SIGKILL)" in done.stderr
    # torchrun ends the other too, sometimes before it can say that it was left alone.
    assert [line for line in errors(done) if "another of the processes was killed" not in line] == []
    assert len(errors(done)) <= 1


def test_the_page_on_several_processes_names_the_command_that_the_tests_run():
    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    assert "torchrun --nproc-per-node 2 -m bmft_cli debias" in text
