"""Models of every make: they are debiased with everything but values as it was, or refused in one clear sentence."""

import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm as old_weight_norm
from torch.utils.data import DataLoader, TensorDataset

import bmft
from bmft.checkpoints import load_checkpoint, read_checkpoint, write_checkpoint
from bmft.errors import ArchitectureError, ConfigError
from bmft.masks import weight_importance
from bmft.models import copied, in_own_precision, tensors_of, working_copy
from tests.upright import upright

pytestmark = pytest.mark.usefixtures("few_steps")

CPU = torch.device("cpu")


class Net(nn.Module):
    """A little CNN with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.norm(self.conv(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.features(x)).mean((2, 3)))


class Tied(Net):
    """One convolution twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(8, 8, 3)
        self.conv3.weight = self.conv2.weight

    def features(self, x: Tensor) -> Tensor:
        return self.conv3(torch.relu(super().features(x)))


class Noting(Net):
    """Something beside tensors in its state dict."""

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": 2.0}

    def set_extra_state(self, state: dict[str, float]) -> None:
        assert state == {"scale": 2.0}


class Buffered(Net):
    """Buffers of every sort: integers, flags, infinities, and one that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("mask", torch.full((2, 2), float("-inf")))
        self.register_buffer("scale", torch.ones(8, 1, 1), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * self.scale


class Fourier(Net):
    """A filter with complex weights before the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, 8, 5, dtype=torch.cfloat))

    def features(self, x: Tensor) -> Tensor:
        return super().features(torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=(8, 8)))


class WithoutGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def transposed() -> nn.Module:
    """Weights whose memory does not run in the order of their axes."""
    model = Net()
    for layer in (model.conv2, model.fc):
        turned = layer.weight.detach().transpose(0, 1).contiguous().transpose(0, 1)
        layer.weight = nn.Parameter(turned)
    assert not model.conv2.weight.is_contiguous()
    return model


def changed(change: Callable[[Net], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Net()
        change(model)
        return model

    return make


def batches(seed: int) -> DataLoader:
    """Images in which red is the label and green the group; the two agree half of the time."""
    generator = torch.Generator().manual_seed(seed)
    targets, groups = torch.randint(0, 2, (2, 120), generator=generator)
    images = torch.randn(120, 3, 8, 8, generator=generator)
    images[:, 0] += (1.6 * targets - 0.8)[:, None, None]
    images[:, 1] += (1.6 * groups - 0.8)[:, None, None]
    return DataLoader(TensorDataset(images, targets, groups), batch_size=60)


def centred(make: Callable[[], nn.Module]) -> nn.Module:
    """The model, upright, with as many positive decisions as negative ones, in its own mode."""
    torch.manual_seed(0)
    model = upright(make(), batches(2))
    # Of a float32 copy in eval mode: what it says of the images, not how it came.
    judge = working_copy(model, CPU)
    with torch.no_grad():
        logits = judge(next(iter(batches(1)))[0])
        model.fc.bias.sub_(logits.median().to(model.fc.bias.dtype))
    return model


def debias(model: nn.Module, **config: object) -> bmft.Outcome:
    config = {"epochs": 1, "granularity": "weight", **config}
    return bmft.debias(model, batches(1), batches(2), config=config, keep="last")


def weight_normed_before_parametrizations() -> nn.Module:
    model = Net()
    with warnings.catch_warnings():
        # Torch calls it deprecated, and checkpoints with it will be around for years.
        warnings.simplefilter("ignore", FutureWarning)
        model.conv2 = old_weight_norm(model.conv2)
    return model


PRECISIONS = [
    pytest.param(changed(lambda model: model.half()), id="float16"),
    pytest.param(changed(lambda model: model.bfloat16()), id="bfloat16"),
    pytest.param(changed(lambda model: model.double()), id="float64"),
]
MAKES = [
    pytest.param(Net, id="plain"),
    *PRECISIONS,
    pytest.param(Tied, id="tied weights"),
    pytest.param(weight_normed_before_parametrizations, id="old weight norm"),
    pytest.param(changed(lambda m: parametrizations.weight_norm(m.conv2)), id="weight norm"),
    pytest.param(changed(lambda m: parametrizations.spectral_norm(m.conv2)), id="spectral norm"),
    pytest.param(changed(lambda m: m.conv.requires_grad_(False)), id="frozen layer"),
    pytest.param(changed(lambda m: m.requires_grad_(False)), id="frozen model"),
    pytest.param(changed(lambda m: m.train()), id="training mode"),
    pytest.param(changed(lambda m: m.train().norm.eval()), id="mixed modes"),
    pytest.param(Buffered, id="buffers"),
    pytest.param(Noting, id="extra state"),
    pytest.param(transposed, id="non-contiguous"),
    pytest.param(changed(lambda m: m.to(memory_format=torch.channels_last)), id="channels last"),
]


def outside(model: nn.Module) -> dict[str, object]:
    """All about a model but its values."""
    return {
        "modes": [module.training for module in model.modules()],
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "dtypes": {name: tensor.dtype for name, tensor in tensors_of(model).items()},
        "strides": {name: parameter.stride() for name, parameter in model.named_parameters()},
        "tied": len({parameter.data_ptr() for _, parameter in model.named_parameters(remove_duplicate=False)}),
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
    }


def bits(state: dict[str, Tensor]) -> dict[str, bytes]:
    return {k: t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for k, t in state.items()}


@cache
def debiased(make: Callable[[], nn.Module]) -> tuple[object, ...]:
    """A model that was debiased, what it was before, and the outcome."""
    model = centred(make)
    return model, bits(tensors_of(model)), outside(model), debias(model)


@pytest.mark.parametrize("make", MAKES)
def test_only_weights_of_the_mask_differ_between_what_goes_in_and_what_comes_out(make):
    model, before, around, outcome = debiased(make)
    assert bits(tensors_of(model)) == before
    assert outside(model) == around
    assert outside(outcome.model) == around
    assert outcome.accepted
    after = tensors_of(outcome.model)
    same = {name for name, value in bits(after).items() if value == before[name]}
    parameters = dict(outcome.model.named_parameters(remove_duplicate=False))
    assert any(name.startswith("conv") for name in after.keys() - same)
    assert same >= after.keys() - parameters.keys()  # buffers
    for name, mask in outcome.mask.tensors.items():
        kept = ~mask
        assert torch.equal(parameters[name].detach()[kept], model.state_dict()[name][kept]), name


@pytest.mark.parametrize("make", MAKES)
def test_what_comes_out_computes(make):
    outcome = debiased(make)[-1]
    inputs = next(iter(batches(3)))[0].to(outcome.model.fc.bias.dtype)
    assert outcome.model.eval()(inputs).isfinite().all()


def test_a_parameter_s_flag_does_not_say_what_may_move_but_a_pattern_does():
    model = centred(changed(lambda model: model.conv.requires_grad_(False)))
    assert "conv.weight" in debias(model).patch.changes
    assert "conv.weight" not in debias(model, freeze=["conv.*"]).patch.changes


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_parametrized_head_is_kept_or_refused_with_the_way_out(norm):
    model = centred(changed(lambda model: norm(model.fc)))
    with pytest.raises(ConfigError, match="use reset = 'keep'"):
        debias(model, reset="zero")
    around = outside(model)
    outcome = debias(model, reset="keep")
    assert outside(outcome.model) == around
    assert any(name.startswith("fc.") for name in outcome.patch.changes)


COMPLEX = r"1 parameters of the model are complex \(first: 'filter'\)"
NO_VALUES = r"2 weights of the model have no values \(first: 'conv2.weight', on the meta device"


def test_complex_weights_are_refused():
    model = centred(Net)
    torch.manual_seed(0)
    odd = Fourier()
    odd.load_state_dict(model.state_dict(), strict=False)
    for call in (lambda: debias(odd), lambda: working_copy(odd, CPU)):
        with pytest.raises(ArchitectureError, match=COMPLEX):
            call()
    with pytest.raises(ArchitectureError, match=COMPLEX):
        weight_importance(odd, bmft.fairness.equalized_odds_gap, batches(1))


class ComplexHead(Net):
    """Its logits are the real part of what a complex layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.fc.weight = nn.Parameter(torch.randn(1, 8, dtype=torch.cfloat))
        self.fc.bias = nn.Parameter(torch.zeros(1, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.features(x)).mean((2, 3)).to(torch.cfloat)).real


def test_a_complex_head_is_audited_but_not_debiased():
    torch.manual_seed(0)
    assert bmft.audit(ComplexHead(), batches(1)).n == 120
    with pytest.raises(ArchitectureError, match=r"2 parameters of the model are complex \(first: 'fc.weight'\)"):
        debias(ComplexHead())


def partly_meta() -> nn.Module:
    model = Net()
    model.conv2.to("meta")
    return model


def lazy() -> nn.Module:
    model = Net()
    model.conv2 = nn.LazyConv2d(8, 3)
    return model


@pytest.mark.parametrize("make", [partly_meta, lazy])
def test_a_model_without_values_is_not_debiased(make):
    with pytest.raises(ArchitectureError, match=NO_VALUES):
        debias(make())


@pytest.mark.parametrize("make", [partly_meta, lazy])
def test_a_model_without_values_is_refused_everywhere_else(make, tmp_path):
    torch.save(Net().state_dict(), tmp_path / "model.pt")
    for call in (
        lambda model: bmft.audit(model, batches(1)),
        lambda model: weight_importance(model, bmft.fairness.equalized_odds_gap, batches(1)),
        lambda model: working_copy(model, CPU),
        lambda model: load_checkpoint(tmp_path / "model.pt", into=model),
    ):
        with pytest.raises(ArchitectureError, match=NO_VALUES):
            call(make())


def test_a_model_that_computes_without_gradients_is_told_so():
    with pytest.raises(ArchitectureError, match=r"no gradient: its forward pass runs under torch\.no_grad"):
        debias(centred(WithoutGradient))


FILES = {
    "float16": (changed(lambda model: model.half()), Net),
    "bfloat16": (changed(lambda model: model.bfloat16()), Net),
    "float64": (changed(lambda model: model.double()), Net),
    "tied weights": (Tied, Tied),
    "non-contiguous": (transposed, Net),
    "channels last": (changed(lambda model: model.to(memory_format=torch.channels_last)), Net),
    "weight norm": (changed(lambda m: parametrizations.weight_norm(m.conv2)),) * 2,
    "old weight norm": (weight_normed_before_parametrizations, weight_normed_before_parametrizations),
    "buffers": (Buffered, Buffered),
}


@pytest.mark.parametrize(("trained", "network"), [pytest.param(*makes, id=name) for name, makes in FILES.items()])
def test_a_file_comes_back_with_its_precision_strides_and_ties(tmp_path, trained, network):
    torch.save(centred(trained).state_dict(), tmp_path / "model.pt")
    model = load_checkpoint(tmp_path / "model.pt", into=network())
    outcome = debias(model)
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    write_checkpoint(checkpoint, outcome.model.state_dict(), tmp_path / "fair.pt")
    old, new = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "fair.pt"))
    assert list(new) == list(old)
    assert {k: (t.dtype, t.stride()) for k, t in new.items()} == {k: (t.dtype, t.stride()) for k, t in old.items()}
    assert len({t.data_ptr() for t in new.values()}) == len({t.data_ptr() for t in old.values()})
    moved = {name for name, value in bits(new).items() if value != bits(old)[name]}
    assert moved <= set(outcome.patch.changes)
    assert any(name.startswith("conv") for name in moved)
    assert bmft.audit(load_checkpoint(tmp_path / "fair.pt", into=network()), batches(1)).n == 120


def test_a_working_copy_shares_nothing_with_the_model():
    model = Tied().half().train()
    copy = working_copy(model, CPU)
    assert not copy.training
    assert model.training
    assert copy.conv3.weight is copy.conv2.weight
    assert {p.dtype for p in copy.parameters()} == {torch.float32}
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in copy.parameters()}


def test_a_computed_tensor_is_copied_with_its_values():
    model = weight_normed_before_parametrizations()
    model(torch.zeros(1, 3, 8, 8))
    copy = copied(model)
    assert copy.conv2.weight is not model.conv2.weight
    assert torch.equal(copy.conv2.weight, model.conv2.weight)


def test_what_did_not_change_keeps_its_bits_in_any_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        own = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype) / 3, "n": torch.tensor(7)}
        single = {name: tensor.float() if name == "w" else tensor for name, tensor in own.items()}
        single["w"][0] = 5.0
        back = in_own_precision(single, own)
        assert back["w"].dtype == dtype
        assert back["w"][0] == 5
        assert torch.equal(back["w"][1:], own["w"][1:])
        assert torch.equal(back["n"], own["n"])


def test_extra_state_that_is_no_tensor_passes():
    assert in_own_precision({"_extra_state": {"a": 1}}, {"_extra_state": {}}) == {"_extra_state": {"a": 1}}
