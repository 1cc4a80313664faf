import argparse
import copy
import errno
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import bmft.checkpoints.formats
from bmft.checkpoints import as_stored, build_from, describe, load_checkpoint, read_checkpoint, write_checkpoint
from bmft.checkpoints.checkpoint import fingerprint
from bmft.checkpoints.layout import same_bits
from bmft.errors import ArchitectureError, CheckpointError, ConfigError, MismatchError, NonFiniteError
from bmft.models import build_model
from tests.tiers import in_ci

SHARED = Path(os.environ.get("BMFT_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "models" / "ham10000_resnet18.pt"

ARCH = "shufflenet_v2_x0_5"
INPUTS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def model_of(outputs=1, arch=ARCH, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(arch, num_outputs=outputs).eval()


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture
def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def lightning(state):
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**prefixed("net.", state), "criterion.weight": torch.tensor([0.3, 0.7])},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": 0.1},
    }


def save_zip(make):
    return lambda state, path: torch.save(make(state), path)


def save_legacy(state, path):
    torch.save({"state_dict": state, "epoch": 1}, path, _use_new_zipfile_serialization=False)


def save_safetensors(prefix="", metadata=None):
    return lambda state, path: safetensors.torch.save_file(prefixed(prefix, state), path, metadata=metadata)


# name -> (how it is saved, the entry and the prefix that are in it)
CONTAINERS = {
    "bare": (save_zip(lambda s: s), None, ""),
    "ordered": (save_zip(OrderedDict), None, ""),
    "state_dict": (save_zip(lambda s: {"n": 1, "state_dict": s, "best": torch.tensor(0.9)}), "state_dict", ""),
    "model": (save_zip(lambda s: {"model": s, "lr": 0.1}), "model", ""),
    "model_state_dict": (save_zip(lambda s: {"model_state_dict": s}), "model_state_dict", ""),
    "net": (save_zip(lambda s: {"net": s, "acc": 1.0}), "net", ""),
    "ema": (save_zip(lambda s: {"ema": s}), "ema", ""),
    "nested": (save_zip(lambda s: {"ema": {"decay": 0.9, "state_dict": s}}), "ema/state_dict", ""),
    "lightning": (save_zip(lightning), "state_dict", "net."),
    "data parallel": (save_zip(lambda s: {"model": prefixed("module.", s)}), "model", "module."),
    "compiled": (save_zip(lambda s: prefixed("_orig_mod.", s)), None, "_orig_mod."),
    "wrapped twice": (save_zip(lambda s: prefixed("module.model.", s)), None, "module.model."),
    "wrapped thrice": (save_zip(lambda s: prefixed("model._orig_mod.net.", s)), None, "model._orig_mod.net."),
    "legacy": (save_legacy, "state_dict", ""),
    "safetensors": (save_safetensors(), None, ""),
    "safetensors, wrapped": (save_safetensors("model.", {"who": "me"}), None, "model."),
}


# Of each way to hold weights one, and one that is wrapped.
QUICK = ("bare", "nested", "lightning", "wrapped twice", "legacy", "safetensors, wrapped")


@pytest.fixture(params=[*QUICK, *in_ci(*(name for name in CONTAINERS if name not in QUICK))])
def container(request, tmp_path, state):
    """A file, and the entry and prefix in it."""
    save, entry, prefix = CONTAINERS[request.param]
    save(state, tmp_path / "in.file")
    return tmp_path / "in.file", entry, prefix


def content(path):
    """The file as plain torch and safetensors read it: the weights' dict, and the rest."""
    if path.read_bytes()[8:9] == b"{":
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    return torch.load(path, weights_only=True), None


def same(a, b):
    """Equal in types, keys, order, dtypes, strides and every bit."""
    if isinstance(a, torch.Tensor):
        alike = (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        return alike and bool(same_bits(a.detach(), b.detach()).all())
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# Reading


def test_every_container_gives_the_model_that_went_in(container, model):
    path, entry, prefix = container
    checkpoint = read_checkpoint(path)
    assert (checkpoint.entry, checkpoint.prefix) == (entry, prefix)
    assert list(checkpoint.state) == list(model.state_dict()) or path.read_bytes()[8:9] == b"{"
    loaded = load_checkpoint(path)
    assert type(loaded) is type(model)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), model(INPUTS))


def test_loading_leaves_the_random_numbers_alone(tmp_path, state):
    torch.save(state, tmp_path / "m.pt")
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "m.pt")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("outputs", [1, 2, 7])
def test_the_head_has_as_many_outputs_as_the_weights(tmp_path, outputs):
    torch.save(model_of(outputs).state_dict(), tmp_path / "m.pt")
    assert load_checkpoint(tmp_path / "m.pt").fc.out_features == outputs
    assert load_checkpoint(tmp_path / "m.pt", arch=ARCH, num_classes=outputs).fc.out_features == outputs


def test_one_output_is_two_classes_and_any_other_number_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "m.pt")
    assert load_checkpoint(tmp_path / "m.pt", num_classes=2).fc.out_features == 1
    with pytest.raises(ConfigError, match=r"--num-classes is 7, but the head in .*m\.pt has 1 outputs"):
        load_checkpoint(tmp_path / "m.pt", num_classes=7)


def test_batch_norms_older_than_their_counter_load(tmp_path, state, model):
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "m.pt")
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "m.pt")(INPUTS), model(INPUTS))


def test_a_network_that_asks_for_its_format_version_loads_without_one(tmp_path):
    net = model_of(1, "mnasnet0_5")
    torch.save(dict(net.state_dict()), tmp_path / "m.pt")
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "m.pt")(INPUTS), net(INPUTS))


@pytest.mark.parametrize("where", ["arch", "architecture", "model_name", "model"])
@pytest.mark.parametrize("inside", [None, "hyper_parameters", "hparams", "config", "args"])
def test_what_the_checkpoint_says_about_its_architecture_is_read(tmp_path, where, inside):
    said = {where: "resnet18"} if inside is None else {inside: {"lr": 1, where: "resnet18"}}
    torch.save({"state_dict": {"a.weight": torch.ones(2)}, **said}, tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.pt").arch == "resnet18"


def test_safetensors_say_it_in_their_metadata(tmp_path):
    save_safetensors(metadata={"arch": "resnet18", "epoch": "3"})({"w": torch.ones(2)}, tmp_path / "m")
    checkpoint = read_checkpoint(tmp_path / "m")
    assert checkpoint.arch == "resnet18"
    assert checkpoint.metadata == {"arch": "resnet18", "epoch": "3"}


def test_plain_values_beside_the_weights_are_metadata(tmp_path):
    torch.save({"net": {"w": torch.ones(2)}, "epoch": 3, "note": "x", "other": [1]}, tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.pt").metadata == {"epoch": 3, "note": "x"}
    torch.save({"w": torch.ones(2), "epoch": 3}, tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.pt").arch is None


def test_what_the_checkpoint_says_settles_what_the_weights_leave_open(tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("deit_tiny_patch16_224", num_classes=1)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=r"vit_tiny_patch16_224.*--arch"):
        load_checkpoint(tmp_path / "m.pt")
    torch.save({"state_dict": net.state_dict(), "arch": "deit_tiny_patch16_224"}, tmp_path / "m.pt")
    assert load_checkpoint(tmp_path / "m.pt").head.out_features == 1


def test_of_two_libraries_with_the_name_the_one_whose_weights_they_are_is_taken(tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("efficientnet_b0", num_classes=1)
    torch.save({"state_dict": net.state_dict(), "arch": "efficientnet_b0"}, tmp_path / "m.pt")
    assert type(load_checkpoint(tmp_path / "m.pt")) is type(net)
    assert type(load_checkpoint(tmp_path / "m.pt", arch="efficientnet_b0")) is type(net)


def test_the_weights_know_better_than_a_wrong_name(tmp_path, state, model, caplog):
    torch.save({"state_dict": state, "arch": "resnet18"}, tmp_path / "m.pt")
    with caplog.at_level("INFO"):
        assert type(load_checkpoint(tmp_path / "m.pt")) is type(model)
    assert "calls itself 'resnet18'; taken from its weights" in caplog.text


def test_a_checkpoint_cannot_have_a_module_imported(tmp_path, state, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"state_dict": state, "arch": "trap:net"}, tmp_path / "m.pt")
    load_checkpoint(tmp_path / "m.pt")
    assert "trap" not in sys.modules


def test_an_unknown_network_names_the_file_the_nearest_and_what_it_calls_itself(tmp_path, state):
    torch.save({"model": {**state, "conv1.0.weight": torch.ones(24, 3, 5, 5)}, "arch": "MyNet"}, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError) as caught:
        load_checkpoint(tmp_path / "m.pt")
    for part in ("m.pt", "torchvision:shufflenet_v2_x0_5 (1 has another shape", "--arch", "calls itself 'MyNet'"):
        assert part in str(caught.value)


def test_a_given_architecture_that_does_not_fit_says_what_differs(tmp_path, state):
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(
        ArchitectureError, match=r"m\.pt are not those of torchvision:resnet18: .* missing .*unexpected"
    ):
        load_checkpoint(tmp_path / "m.pt", arch="torchvision:resnet18")


def test_an_architecture_that_does_not_exist_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=r"Did you mean .shufflenet_v2_x0_5"):
        load_checkpoint(tmp_path / "m.pt", arch="shufflenet_v2_x0_6")


# Loading into a model


class Wrapper(nn.Module):
    """A user's own model, whose parts have the names that wrappers use."""

    def __init__(self, outputs=2):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, outputs)

    def forward(self, x):
        return self.head(self.model(x))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.net.", "model."])
def test_weights_go_into_a_model_under_whatever_prefix_has_its_names(tmp_path, prefix):
    net = Wrapper()
    extra = {"loss.weight": torch.ones(2)} if prefix else {}
    torch.save({"state_dict": {**prefixed(prefix, net.state_dict()), **extra}}, tmp_path / "m.pt")
    other = Wrapper().train()
    assert load_checkpoint(tmp_path / "m.pt", into=other) is other
    assert not other.training
    assert same(dict(other.state_dict()), dict(net.state_dict()))


def test_a_changed_state_is_written_under_the_prefix_it_was_found_under(tmp_path):
    net = Wrapper()
    torch.save(net.state_dict(), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert checkpoint.prefix == "model."
    assert checkpoint.under(net.state_dict()).prefix == ""
    changed = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    write_checkpoint(checkpoint, changed, tmp_path / "out.pt")
    assert same(dict(torch.load(tmp_path / "out.pt", weights_only=True)), changed)
    assert list(as_stored(checkpoint, changed)) == list(changed)


def test_a_model_of_another_shape_is_refused_and_left_alone(tmp_path):
    torch.save(Wrapper(3).state_dict(), tmp_path / "m.pt")
    other = Wrapper(2)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        ArchitectureError, match=r"not those of Wrapper: 2 have another shape \('head.weight' is \(3, 4\)"
    ):
        load_checkpoint(tmp_path / "m.pt", into=other)
    assert same(dict(other.state_dict()), dict(before))
    assert other.training


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_missing_and_unexpected_weights_are_named(tmp_path, change):
    weights = dict(Wrapper().state_dict())
    if change == "missing":
        del weights["head.bias"]
    else:
        weights["extra.bias"] = torch.ones(1)
    torch.save(weights, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=f"1 is {change} .'(head|extra).bias'"):
        load_checkpoint(tmp_path / "m.pt", into=Wrapper())


def test_into_and_arch_contradict_each_other(tmp_path):
    torch.save(Wrapper().state_dict(), tmp_path / "m.pt")
    for options in ({"arch": "resnet18"}, {"num_classes": 2}):
        with pytest.raises(ConfigError, match="into="):
            load_checkpoint(tmp_path / "m.pt", into=Wrapper(), **options)


def test_a_factory_builds_what_it_fits(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_code", sys.modules[__name__])
    torch.save({"model": Wrapper(2).state_dict()}, tmp_path / "m.pt")
    assert load_checkpoint(tmp_path / "m.pt", arch="my_code:Wrapper").head.out_features == 2
    torch.save({"model": {**Wrapper(3).state_dict(), "extra.bias": torch.ones(1)}}, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match="not those of my_code:Wrapper"):
        load_checkpoint(tmp_path / "m.pt", arch="my_code:Wrapper")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 3, bias=False)
        self.decode = nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight


def test_of_tied_weights_one_in_the_file_is_enough(tmp_path):
    net = Tied()
    safetensors.torch.save_file({"encode.weight": net.encode.weight.detach() + 1}, tmp_path / "m.safetensors")
    other = load_checkpoint(tmp_path / "m.safetensors", into=Tied())
    assert torch.equal(other.decode.weight, net.encode.weight + 1)
    checkpoint = read_checkpoint(tmp_path / "m.safetensors")
    write_checkpoint(checkpoint, other.state_dict(), tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, state, value):
    state["stage2.0.branch2.0.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(NonFiniteError, match=r"1 weights in .*m\.pt hold NaN or infinite.*'stage2.0.branch2.0.weight'"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_buffer_may_be_infinite_but_not_nan(tmp_path):
    net = Wrapper()
    net.register_buffer("attention_mask", torch.tensor([0.0, -float("inf")]))
    torch.save(net.state_dict(), tmp_path / "m.pt")
    assert load_checkpoint(tmp_path / "m.pt", into=net).attention_mask[1].isinf()
    net.attention_mask[0] = float("nan")
    torch.save(net.state_dict(), tmp_path / "m.pt")
    with pytest.raises(NonFiniteError, match="attention_mask"):
        load_checkpoint(tmp_path / "m.pt", into=net)


def test_integers_are_no_weights(tmp_path, state):
    state["fc.bias"] = state["fc.bias"].to(torch.int8)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"'fc.bias' is torch.int8, but the model computes with torch.float32"):
        load_checkpoint(tmp_path / "m.pt")


# Writing


def test_what_did_not_change_is_written_as_it_came(container, model):
    path, _, _ = container
    out = path.with_name("out.file")
    write_checkpoint(read_checkpoint(path), model.state_dict(), out)
    assert same(content(path), content(out))
    if path.read_bytes()[8:9] == b"{":
        assert path.read_bytes() == out.read_bytes()


def test_only_the_changed_weights_differ(container, model):
    path, entry, prefix = container
    out = path.with_name("out.file")
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.fc.weight[0, 3] += 1
        tuned.conv1[0].weight.mul_(2)
    write_checkpoint(read_checkpoint(path), tuned.state_dict(), out)
    before, after = content(path), content(out)
    for weights in (before[0], after[0]):
        for key in entry.split("/") if entry else []:
            weights = weights[key]
        weights.pop(f"{prefix}conv1.0.weight")
        last = weights.pop(f"{prefix}fc.weight")
        last[0, 3] = 0
    assert same(before, after)
    loaded = load_checkpoint(out)
    assert torch.equal(loaded.fc.weight, tuned.fc.weight)
    assert torch.equal(loaded.conv1[0].weight, tuned.conv1[0].weight)


def test_the_bytes_do_not_depend_on_the_files_name(container):
    path, _, _ = container
    checkpoint = read_checkpoint(path)
    for name in ("one.pt", "another name.ckpt"):
        write_checkpoint(checkpoint, checkpoint.state, path.with_name(name))
    assert path.with_name("one.pt").read_bytes() == path.with_name("another name.ckpt").read_bytes()


@pytest.mark.ci
def test_the_bytes_do_not_depend_on_the_process(tmp_path, state):
    torch.save(lightning(state), tmp_path / "m.ckpt")
    script = (
        "import sys; from bmft.checkpoints import read_checkpoint, write_checkpoint; c = read_checkpoint(sys.argv[1]);"
        "write_checkpoint(c, {k: t + 1 for k, t in c.state.items()}, sys.argv[2])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "m.ckpt", tmp_path / "theirs"], env=environment, check=True
    )
    checkpoint = read_checkpoint(tmp_path / "m.ckpt")
    write_checkpoint(checkpoint, {k: t + 1 for k, t in checkpoint.state.items()}, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_writing_twice_gives_the_same_bytes_as_writing_once(container):
    path, _, _ = container
    first, second = path.with_name("first"), path.with_name("second")
    write_checkpoint(read_checkpoint(path), read_checkpoint(path).state, first)
    write_checkpoint(read_checkpoint(first), read_checkpoint(first).state, second)
    assert first.read_bytes() == second.read_bytes()


def test_what_was_read_is_not_changed_by_writing(tmp_path, state):
    torch.save({"state_dict": state}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    write_checkpoint(checkpoint, {name: tensor + 1 for name, tensor in checkpoint.state.items()}, tmp_path / "o.pt")
    assert same(dict(checkpoint.state), state)
    assert same(checkpoint.file.content["state_dict"], state)


def test_the_versions_that_torch_keeps_beside_the_weights_are_kept(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    write_checkpoint(checkpoint, checkpoint.state, tmp_path / "o.pt")
    written = torch.load(tmp_path / "o.pt", weights_only=True)
    assert type(written) is OrderedDict
    assert written._metadata == model.state_dict()._metadata


def test_parameters_stay_parameters(tmp_path):
    torch.save(
        {"w.a": nn.Parameter(torch.ones(2)), "w.b": nn.Parameter(torch.ones(2), requires_grad=False)}, tmp_path / "m"
    )
    write_checkpoint(read_checkpoint(tmp_path / "m"), {"w.a": torch.zeros(2), "w.b": torch.ones(2)}, tmp_path / "o")
    written = torch.load(tmp_path / "o", weights_only=True)
    assert [(type(t), t.requires_grad) for t in written.values()] == [(nn.Parameter, True), (nn.Parameter, False)]
    assert written["w.a"].tolist() == [0, 0]


@pytest.mark.parametrize("save", [torch.save, safetensors.torch.save_file])
@pytest.mark.parametrize("dtype", [torch.bfloat16, *in_ci(torch.float16, torch.float64)])
def test_a_checkpoint_keeps_its_precision_and_its_bits(tmp_path, state, dtype, save):
    stored = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    stored["fc.bias"] = torch.tensor([-0.0], dtype=dtype)
    if dtype == torch.float64:
        stored["fc.weight"] += 1e-12
    save(stored, tmp_path / "m")
    tuned = load_checkpoint(tmp_path / "m")
    assert {p.dtype for p in tuned.parameters()} == {torch.float32}
    with torch.no_grad():
        tuned.fc.weight[0, 0] = 3.0
    checkpoint = read_checkpoint(tmp_path / "m")
    write_checkpoint(checkpoint, tuned.state_dict(), tmp_path / "o")
    written = read_checkpoint(tmp_path / "o").state
    stored["fc.weight"][0, 0] = 3.0
    assert same({n: written[n] for n in stored}, stored)


def test_a_change_too_small_for_the_files_precision_is_rounded_and_one_too_large_refused(tmp_path):
    torch.save({"w": torch.ones(3, dtype=torch.float16)}, tmp_path / "m")
    checkpoint = read_checkpoint(tmp_path / "m")
    stored = as_stored(checkpoint, {"w": torch.tensor([1 + 1e-6, 1.0, 2.0])})
    assert same(stored, {"w": torch.tensor([1, 1, 2], dtype=torch.float16)})
    with pytest.raises(NonFiniteError, match=r"'w' are too large for torch.float16"):
        write_checkpoint(checkpoint, {"w": torch.tensor([1e6, 1.0, 1.0])}, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_state_comes_in_the_files_order(tmp_path):
    torch.save({"b": torch.ones(1), "a": torch.zeros(1)}, tmp_path / "m")
    stored = as_stored(read_checkpoint(tmp_path / "m"), {"a": torch.zeros(1), "b": torch.ones(1)})
    assert list(stored) == ["b", "a"]


def test_tied_weights_stay_tied_and_strides_stay(tmp_path):
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    flat = torch.randn(6)
    before = {"a.w": weight, "b.w": weight, "c.w": torch.randn(3, 5).t(), "d.w": flat[:2], "e.w": flat[2:]}
    torch.save(before, tmp_path / "m")
    new = {name: tensor.contiguous() * 2 for name, tensor in before.items()}
    write_checkpoint(read_checkpoint(tmp_path / "m"), new, tmp_path / "o")
    written = torch.load(tmp_path / "o", weights_only=True)
    for name, tensor in before.items():
        assert torch.equal(written[name], new[name])
        assert written[name].stride() == tensor.stride()
    assert written["a.w"].data_ptr() == written["b.w"].data_ptr()
    assert written["d.w"].untyped_storage().data_ptr() == written["e.w"].untyped_storage().data_ptr()


def test_tied_weights_cannot_get_different_values(tmp_path):
    weight = torch.ones(3)
    torch.save({"a.w": weight, "b.w": weight}, tmp_path / "m")
    with pytest.raises(MismatchError, match=r"'a.w' shares its values with another weight"):
        write_checkpoint(read_checkpoint(tmp_path / "m"), {"a.w": weight * 2, "b.w": weight * 3}, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_strided_or_tied_state_goes_into_safetensors(tmp_path, state):
    save_safetensors(metadata={"who": "me"})(state, tmp_path / "m")
    new = {n: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in state.items()}
    checkpoint = read_checkpoint(tmp_path / "m")
    write_checkpoint(checkpoint, new, tmp_path / "o")
    assert (tmp_path / "o").read_bytes() == (tmp_path / "m").read_bytes()


def test_safetensors_in_an_order_of_their_own_keep_it(tmp_path):
    b, a = ({"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4]} for shape, at in (([1], 4), ([], 0)))
    header = json.dumps({"b": b, "a": a}).encode() + b"  "
    data = torch.tensor([1.0, 2.0]).numpy().tobytes()
    (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header + data)
    checkpoint = read_checkpoint(tmp_path / "m")
    assert {name: tensor.item() for name, tensor in checkpoint.state.items()} == {"b": 2.0, "a": 1.0}
    write_checkpoint(checkpoint, {"a": torch.tensor(5.0), "b": torch.tensor([6.0])}, tmp_path / "o")
    expected = torch.tensor([5.0, 6.0]).numpy().tobytes()
    assert (tmp_path / "o").read_bytes() == len(header).to_bytes(8, "little") + header + expected


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("fc.bias"), r"in the file 1 is unexpected \('fc.bias'\)"),
        (lambda s: s.update({"extra": torch.ones(1)}), r"in the file 1 is missing \('extra'\)"),
        (lambda s: s.update({"fc.bias": torch.ones(2)}), r"'fc.bias' is \(1,\), expected \(2,\)"),
    ],
)
def test_another_models_state_is_not_written(tmp_path, state, change, complaint):
    torch.save(state, tmp_path / "m.pt")
    change(state)
    with pytest.raises(MismatchError, match=complaint):
        write_checkpoint(read_checkpoint(tmp_path / "m.pt"), state, tmp_path / "o.pt")
    assert not (tmp_path / "o.pt").exists()


def test_counters_that_the_file_does_not_have_are_not_added(tmp_path, state, model):
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "m.pt")
    write_checkpoint(read_checkpoint(tmp_path / "m.pt"), model.state_dict(), tmp_path / "o.pt")
    assert same(torch.load(tmp_path / "o.pt", weights_only=True), old)


@pytest.mark.parametrize("kind", ["bare", "safetensors"])
def test_a_full_disk_leaves_what_was_there(tmp_path, state, monkeypatch, kind):
    CONTAINERS[kind][0](state, tmp_path / "m")
    (tmp_path / "o").write_text("what was there")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bmft.checkpoints.formats.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"o cannot be written: .*No space left on device"):
        write_checkpoint(read_checkpoint(tmp_path / "m"), state, tmp_path / "o")
    assert (tmp_path / "o").read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "o"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path, state, monkeypatch):
    torch.save(state, tmp_path / "m")
    (tmp_path / "o").write_text("what was there")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bmft.checkpoints.formats.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(read_checkpoint(tmp_path / "m"), state, tmp_path / "o")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "o"]
    assert (tmp_path / "o").read_text() == "what was there"


def test_a_folder_that_is_not_there_is_named(tmp_path, state):
    torch.save(state, tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"none/o cannot be written: .*No such file"):
        write_checkpoint(read_checkpoint(tmp_path / "m"), state, tmp_path / "none" / "o")


def test_a_checkpoint_can_be_written_over_itself(tmp_path, state):
    for kind in ("bare", "safetensors"):
        CONTAINERS[kind][0](state, tmp_path / "m")
        write_checkpoint(read_checkpoint(tmp_path / "m"), {n: t + 1 for n, t in state.items()}, tmp_path / "m")
        assert torch.equal(read_checkpoint(tmp_path / "m").state["fc.bias"], state["fc.bias"] + 1)


# Whole models, which only a trusted file may hold


class Trained(nn.Module):
    """A module whose class a pickle has to import."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.note = {"epoch": 3}

    def forward(self, x):
        return self.fc(x)


@pytest.fixture
def trained(monkeypatch):
    # Pickle looks a class up by its module's name, which pytest's import mode does not register.
    monkeypatch.setitem(sys.modules, Trained.__module__, sys.modules.get(Trained.__module__) or sys.modules[__name__])
    return Trained().train()


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}], ids=["bare", "entry"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_trusted_model_is_loaded_and_written_back_as_a_model(tmp_path, trained, wrap, dtype):
    trained = trained.to(dtype)
    torch.save(wrap(trained), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt", trust_pickle=True)
    loaded = build_from(checkpoint)
    assert (type(loaded), loaded.training, loaded.fc.weight.dtype) == (Trained, False, torch.float32)
    with torch.no_grad():
        loaded.fc.bias += 1
    write_checkpoint(checkpoint, loaded.state_dict(), tmp_path / "o.pt")
    written = torch.load(tmp_path / "o.pt", weights_only=False)
    if isinstance(written, dict):
        assert written["epoch"] == 3
        written = written["model"]
    assert (type(written), written.training, written.note) == (Trained, True, {"epoch": 3})
    assert torch.equal(written.fc.weight, trained.fc.weight)
    assert torch.equal(written.fc.bias, (trained.fc.bias.float() + 1).to(dtype))
    assert torch.equal(checkpoint.module.fc.bias, trained.fc.bias)


def test_a_trusted_model_with_nan_is_refused(tmp_path, trained):
    nn.init.constant_(trained.fc.bias, float("nan"))
    torch.save(trained, tmp_path / "m.pt")
    with pytest.raises(NonFiniteError, match=r"fc\.bias"):
        load_checkpoint(tmp_path / "m.pt", trust_pickle=True)


def test_the_weights_of_a_trusted_model_go_into_a_named_network(tmp_path, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_code", sys.modules[Trained.__module__])
    torch.save(trained, tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt", trust_pickle=True, arch="my_code:Trained")
    assert torch.equal(loaded.fc.weight, trained.fc.weight)


def test_a_namespace_says_its_architecture_and_is_kept(tmp_path, state):
    torch.save({"state_dict": state, "args": argparse.Namespace(arch=ARCH, lr=0.1)}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert checkpoint.arch == ARCH
    write_checkpoint(checkpoint, checkpoint.state, tmp_path / "o.pt")
    assert torch.load(tmp_path / "o.pt", weights_only=False)["args"] == argparse.Namespace(arch=ARCH, lr=0.1)


# Describing


def test_a_description_is_plain_and_counts_every_parameter_once(tmp_path, state, model):
    torch.save({"state_dict": prefixed("module.", state), "epoch": 3, "arch": ARCH}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    found = json.loads(json.dumps(describe(checkpoint, build_from(checkpoint))))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert found["parameters"] == total == sum(block["parameters"] for block in found["blocks"].values())
    for block in found["blocks"].values():
        assert sum(block["components"].values()) == block["parameters"]
    expected = {
        "container": "torch",
        "entry": "state_dict",
        "prefix": "module.",
        "arch": f"torchvision:{ARCH}",
        "says": ARCH,
        "tensors": len(state),
        "dtypes": ["float32", "int64"],
        "beside": {"epoch": 3, "arch": ARCH},
        "head": {"name": "fc", "num_outputs": 1, "parameters": 1025},
        "path": str(tmp_path / "m.pt"),
        "fingerprint": fingerprint(state),
    }
    assert {key: found[key] for key in expected} == expected
    assert found["blocks"]["head"] == {"parameters": 1025, "components": {"other": 1025}}


def test_a_description_of_ones_own_model_names_its_class_or_what_was_given(tmp_path):
    torch.save(Wrapper().state_dict(), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    found = describe(checkpoint, Wrapper(), head="model.0")
    assert found["arch"].endswith(":Wrapper")
    assert (found["prefix"], found["head"]["name"]) == ("", "model.0")
    assert describe(checkpoint, Wrapper(), arch="mine:Net")["arch"] == "mine:Net"


def test_a_description_of_a_trusted_model_names_its_class(tmp_path, trained):
    torch.save(trained, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt", trust_pickle=True)
    assert describe(checkpoint, build_from(checkpoint))["arch"].endswith(":Trained")


def test_a_fingerprint_knows_names_and_shapes_only():
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    assert fingerprint(state) == fingerprint({"b": torch.ones(1).half(), "a": torch.ones(2, 3)})
    assert (
        len({fingerprint(s) for s in (state, {"a": torch.zeros(3, 2), "b": torch.zeros(1)}, {"a": torch.zeros(2, 3)})})
        == 3
    )


def test_the_content_hash_is_the_files(tmp_path, state):
    torch.save(state, tmp_path / "m.pt")
    ours = read_checkpoint(tmp_path / "m.pt").content_hash
    theirs = subprocess.run(["sha256sum", tmp_path / "m.pt"], capture_output=True, text=True, check=True).stdout
    assert ours == theirs.split()[0]


@pytest.mark.skipif(not REAL.exists(), reason=f"the shared checkpoint is not at {REAL} (set BMFT_SHARED)")
def test_the_shared_checkpoint_comes_back_as_it_was(tmp_path):
    checkpoint = read_checkpoint(REAL)
    assert (checkpoint.entry, checkpoint.prefix, checkpoint.arch) == ("state_dict", "", "resnet18")
    real = build_from(checkpoint)
    assert real.fc.out_features == 1
    with torch.no_grad():
        assert real(torch.zeros(1, 3, 64, 64)).shape == (1, 1)
    write_checkpoint(checkpoint, real.state_dict(), tmp_path / "o.pt")
    assert same(torch.load(REAL, weights_only=True), torch.load(tmp_path / "o.pt", weights_only=True))
