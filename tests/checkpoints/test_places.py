"""Files with several sets of weights: which one is read, and what a library finds afterwards."""

import pytest
import torch

from bmft import load_checkpoint, read_checkpoint, write_checkpoint
from bmft.errors import CheckpointError, ConfigError
from bmft.models import build_model
from tests.tiers import in_ci

ARCH = "shufflenet_v2_x0_5"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def weights(seed, outputs=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(build_model(ARCH, num_outputs=outputs).state_dict())


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def raw():
    return weights(1)


@pytest.fixture(scope="module")
def average():
    return weights(2)


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def tuned(path, out, **options):
    """Read `path`, move a weight, write `out`; the new weights."""
    model = load_checkpoint(path, **options)
    with torch.no_grad():
        model.fc.weight[0, 0] += 1
    write_checkpoint(read_checkpoint(path, **options), model.state_dict(), out)
    return dict(model.state_dict())


def in_lightning(raw, average):
    return {"state_dict": {**prefixed("ema_model.", average), **prefixed("model.", raw), "loss.weight": torch.ones(2)}}


@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), *in_ci((("model", "model_ema"),))])
@pytest.mark.parametrize("prefix", ["module.", *in_ci("")])
def test_what_timm_loads_by_default_is_what_is_read_and_holds_the_new_weights(tmp_path, raw, average, keys, prefix):
    timm = pytest.importorskip("timm")
    torch.save(dict(zip(keys, (prefixed(prefix, raw), prefixed(prefix, average)), strict=True)), tmp_path / "m.pth")
    net = build_model(ARCH, num_outputs=1)
    timm.models.load_checkpoint(net, str(tmp_path / "m.pth"))
    assert equal(read_checkpoint(tmp_path / "m.pth").state, net.state_dict())
    new = tuned(tmp_path / "m.pth", tmp_path / "o.pth")
    for use_ema in (True, False):
        timm.models.load_checkpoint(net, str(tmp_path / "o.pth"), use_ema=use_ema)
        assert equal(net.state_dict(), new)


# name -> (what is saved, the set that is taken, whether the other becomes the same)
FILES = {
    "empty average": (lambda a, b: {"state_dict": a, "state_dict_ema": None, "other": b}, "state_dict", False),
    "ema": (lambda a, b: {"state_dict": a, "ema": {"decay": 0.9, "state_dict": b}}, "state_dict", True),
    "average of the weights alone": (
        lambda a, b: {"state_dict": a, "ema": {n: t for n, t in b.items() if not n.endswith(BUFFERS)}},
        "state_dict",
        True,
    ),
    "lightning": (in_lightning, "state_dict", True),
    "lightning, averaged model": (
        lambda a, b: {"state_dict": {**prefixed("net.", a), **prefixed("model_ema.module.", b)}},
        "state_dict",
        True,
    ),
    "average kept as buffers": (
        lambda a, b: {
            "state_dict": {**a, **{f"model_ema.{n.replace('.', '')}": t for n, t in b.items() if "num_" not in n}}
        },
        "state_dict",
        True,
    ),
    "swa": (
        lambda a, b: {"model": a, "swa_state_dict": {**prefixed("module.", b), "n_averaged": torch.tensor(3)}},
        "model",
        True,
    ),
    "student and teacher": (lambda a, b: {"teacher": b, "student": a}, "student", True),
    "student and teacher in one": (
        lambda a, b: {"model": {**prefixed("teacher.", b), **prefixed("student.", a)}},
        "model/student.",
        True,
    ),
    "an earlier state": (lambda a, b: {"model": a, "initial_model": b}, "model", False),
    "a momentum": (lambda a, b: {"state_dict": a, "momentum": b}, "state_dict", False),
}
QUICK = ("lightning", "average kept as buffers", "a momentum")


@pytest.mark.parametrize(
    "make", [pytest.param(make, id=name, marks=() if name in QUICK else pytest.mark.ci) for name, make in FILES.items()]
)
def test_the_main_weights_are_taken_and_no_stale_copy_of_them_stays(tmp_path, raw, average, make):
    save, name, same = make
    torch.save(save(raw, average), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert checkpoint.chosen.name == name
    assert equal(checkpoint.state, raw)
    assert [one.subject for one in checkpoint.assumed] == ["weights"]
    new = tuned(tmp_path / "m.pt", tmp_path / "o.pt")
    written = read_checkpoint(tmp_path / "o.pt")
    (other,) = [one for one in written.sets if one.name != name]
    found = read_checkpoint(tmp_path / "o.pt", entry=other.name).under(new).state
    expected = new if same else average
    assert "fc.weight" in found
    assert equal({n: t for n, t in found.items() if n in new}, {n: expected[n] for n in found if n in new})


@pytest.mark.parametrize(
    ("entry", "index"), [("ema_model", 1), ("ema_model.", 1), ("state_dict/ema_model.", 1), ("state_dict", 0)]
)
def test_entry_picks_a_set_by_its_name_or_a_part_of_it(tmp_path, raw, average, entry, index):
    torch.save(in_lightning(raw, average), tmp_path / "m.ckpt")
    assert equal(load_checkpoint(tmp_path / "m.ckpt", entry=entry).state_dict(), (raw, average)[index])


def test_a_set_picked_by_its_entry_is_written_alone_and_the_default_is_named(tmp_path, raw, average, caplog):
    torch.save({"state_dict": raw, "state_dict_ema": average}, tmp_path / "m.pt")
    new = tuned(tmp_path / "m.pt", tmp_path / "o.pt", entry="state_dict")
    written = torch.load(tmp_path / "o.pt", weights_only=True)
    assert equal(written["state_dict"], new)
    assert equal(written["state_dict_ema"], average)
    assert "opened there by default is state_dict_ema, which is as it was" in caplog.text
    assert not read_checkpoint(tmp_path / "m.pt", entry="state_dict").assumed


def test_an_entry_under_a_name_of_ones_own_is_read_where_it_is_named(tmp_path, raw, average):
    torch.save({"classifier": raw, "discriminator": average}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="say which with --entry: classifier, discriminator"):
        read_checkpoint(tmp_path / "m.pt")
    assert equal(read_checkpoint(tmp_path / "m.pt", entry="discriminator").state, average)


def test_an_entry_that_is_not_there_is_answered_with_those_that_are(tmp_path, raw, average):
    torch.save({"state_dict": raw, "ema": average}, tmp_path / "m.pt")
    with pytest.raises(ConfigError, match=r"--entry 'emma' is no set of weights in .*m\.pt: it holds state_dict, ema"):
        read_checkpoint(tmp_path / "m.pt", entry="emma")


def test_an_average_of_another_network_is_left_alone(tmp_path, raw):
    torch.save({"state_dict": raw, "teacher": weights(3, outputs=7)}, tmp_path / "m.pt")
    tuned(tmp_path / "m.pt", tmp_path / "o.pt")
    assert equal(torch.load(tmp_path / "o.pt", weights_only=True)["teacher"], weights(3, outputs=7))


def test_layers_that_are_called_like_an_average_are_layers():
    from bmft.checkpoints.places import weight_sets

    state = {"ema.weight": torch.ones(2), "avg_pool.conv.weight": torch.ones(2), "conv.weight": torch.ones(2)}
    state |= {f"layer{i}.weight": torch.ones(3) for i in range(8)}
    assert [one.name for one in weight_sets({"model": state})] == ["model"]


def test_one_set_is_no_choice(tmp_path, raw):
    torch.save({"state_dict": raw, "epoch": 1}, tmp_path / "m.pt")
    assert not read_checkpoint(tmp_path / "m.pt").assumed


# Names that wrappers and old libraries changed


@pytest.mark.parametrize(
    "wrapper",
    [
        "_forward_module._orig_mod.module.",
        "model._fsdp_wrapped_module.",
        "my_net.features_of.",
        *in_ci("_module.", "backbone.", "_forward_module.", "_fsdp_wrapped_module.", "densenet."),
    ],
)
def test_a_wrapped_network_is_recognised_and_written_back_wrapped(tmp_path, raw, wrapper):
    torch.save({"state_dict": prefixed(wrapper, raw)}, tmp_path / "m.pt")
    new = tuned(tmp_path / "m.pt", tmp_path / "o.pt")
    assert equal(torch.load(tmp_path / "o.pt", weights_only=True)["state_dict"], prefixed(wrapper, new))


@pytest.mark.parametrize(
    "inside", ["_checkpoint_wrapped_module", *in_ci("_fsdp_wrapped_module", "_orig_mod", "module")]
)
@pytest.mark.parametrize("before", ["_forward_module.", *in_ci("", "model._orig_mod.")])
def test_layers_that_were_wrapped_one_by_one_are_recognised(tmp_path, raw, inside, before):
    def key(name):
        first, rest = name.split(".", 1)
        return f"{before}{first}.{inside}.{rest}" if first.startswith(("stage", "conv5")) else before + name

    torch.save({key(name): tensor for name, tensor in raw.items()}, tmp_path / "m.pt")
    new = tuned(tmp_path / "m.pt", tmp_path / "o.pt")
    assert equal(torch.load(tmp_path / "o.pt", weights_only=True), {key(n): t for n, t in new.items()})


@pytest.mark.ci
def test_a_densenet_with_torchvisions_old_names_is_one(tmp_path):
    import re

    net = build_model("densenet121", num_outputs=2).eval()

    def old(name):
        return re.sub(r"(denselayer\d+\.)(norm|conv)(\d)", r"\1\2.\3", name)

    state = {f"module.{old(name)}": tensor for name, tensor in net.state_dict().items()}
    assert "module.features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save({"state_dict": state}, tmp_path / "m.pth.tar")
    loaded = load_checkpoint(tmp_path / "m.pth.tar")
    inputs = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), net(inputs))
    write_checkpoint(read_checkpoint(tmp_path / "m.pth.tar"), loaded.state_dict(), tmp_path / "o.pt")
    assert list(torch.load(tmp_path / "o.pt", weights_only=True)["state_dict"]) == list(state)
