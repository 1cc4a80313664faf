import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models.inception import InceptionOutputs

from bmft.errors import ArchitectureError, DataError
from bmft.models import Head, build_model, find_head, forward_logits, outline, read_as

needs_timm = pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="timm is not installed")


class Answer(nn.Module):
    """A linear layer whose output is handed on in the shape that `wrap` gives it."""

    def __init__(self, wrap, outputs=3):
        super().__init__()
        self.fc = nn.Linear(4, outputs)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.fc(x))


LOGITS_OBJECT = [
    lambda out: out,
    lambda out: (out, "aux"),
    lambda out: [out],
    lambda out: SimpleNamespace(logits=out, loss=None),
    lambda out: {"loss": 0, "logits": out},
    lambda out: (SimpleNamespace(logits=out),),
    lambda out: InceptionOutputs(out, out + 1),
    lambda out: out[:, :, None, None],
]


@pytest.mark.parametrize("wrap", LOGITS_OBJECT)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_logits_are_taken_out_of_any_answer(wrap, n):
    model, inputs = Answer(wrap), torch.randn(n, 4)
    assert torch.equal(forward_logits(model, inputs), model.fc(inputs))


@pytest.mark.parametrize(("n", "outputs"), [(1, 1), (5, 1), (1, 3)])
def test_squeezed_answers_get_their_rows_back(n, outputs):
    model, inputs = Answer(torch.squeeze, outputs), torch.randn(n, 4)
    assert torch.equal(forward_logits(model, inputs), model.fc(inputs))


def test_logits_of_the_right_shape_are_the_models_own_tensor():
    # An audit reads from their grad_fn which operation made them.
    model = Answer(torch.sigmoid)
    assert forward_logits(model, torch.randn(2, 4)).grad_fn.name().startswith("Sigmoid")


@pytest.mark.parametrize("answer", ["text", None, {}, (), ("text",)])
def test_an_answer_without_logits_is_refused(answer):
    with pytest.raises(ArchitectureError, match="expected a tensor of logits"):
        forward_logits(Answer(lambda out: answer), torch.randn(2, 4))


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 2), (6,), (), (1, 2, 3), (4, 3, 1, 1)])
def test_an_answer_that_is_not_one_row_per_sample_is_refused(shape):
    with pytest.raises(ArchitectureError, match=r"for 2 samples: expected \(2, outputs\)"):
        forward_logits(Answer(lambda out: torch.zeros(shape)), torch.randn(2, 4))


def test_dicts_are_passed_by_name_and_tuples_by_place():
    class Two(nn.Module):
        def forward(self, pixels, scale):
            return pixels * scale

    pixels, scale = torch.randn(3, 2), torch.tensor([[2.0]] * 3)
    expected = pixels * scale
    assert torch.equal(forward_logits(Two(), {"scale": scale, "pixels": pixels}), expected)
    assert torch.equal(forward_logits(Two(), (pixels, scale)), expected)
    assert torch.equal(forward_logits(Two(), [pixels, scale]), expected)


def test_googlenet_in_training_mode_gives_its_logits_not_its_auxiliary_ones():
    model = build_model("googlenet", num_outputs=2).eval()
    model.training = True
    inputs = torch.randn(2, 3, 64, 64)
    logits = forward_logits(model, inputs)
    answer = model(inputs)
    assert torch.equal(logits, answer.logits)
    assert not torch.equal(logits, answer.aux_logits1)


TORCHVISION = {
    "alexnet": ("classifier.6", 64),
    "densenet121": ("classifier", 32),
    "efficientnet_b0": ("classifier.1", 32),
    "googlenet": ("fc", 32),
    "mobilenet_v3_small": ("classifier.3", 32),
    "resnet18": ("fc", 32),
    "shufflenet_v2_x0_5": ("fc", 32),
    "squeezenet1_1": ("classifier.1", 32),
    "swin_t": ("head", 32),
    "vit_b_32": ("heads.head", 224),
    "inception_v3": ("fc", 75),
}


@pytest.mark.parametrize("arch", TORCHVISION)
def test_the_head_is_found_by_the_models_structure(arch):
    head = find_head(outline(arch, num_outputs=3))
    name = TORCHVISION[arch][0]
    assert head == Head(name, (f"{name}.weight", f"{name}.bias"), 3)


@pytest.mark.parametrize(
    ("arch", "outputs"),
    [("googlenet", 1), ("inception_v3", 2), ("mobilenet_v3_small", 3), ("squeezenet1_1", 1), ("squeezenet1_1", 4)],
)
def test_the_head_is_found_by_running_the_model(arch, outputs):
    name, size = TORCHVISION[arch]
    model = build_model(arch, num_outputs=outputs)
    found = find_head(model, torch.randn(1, 3, size, size))
    assert found == Head(name, (f"{name}.weight", f"{name}.bias"), outputs)


@needs_timm
@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("timm:convnext_atto", "head.fc"),
        ("timm:efficientnet_b0", "classifier"),
        ("timm:inception_v4", "last_linear"),
        ("timm:vit_tiny_patch16_224,depth=1", "head"),
    ],
)
def test_timm_models_declare_their_head(arch, name):
    head = find_head(outline(arch, num_outputs=2))
    assert (head.name, head.num_outputs) == (name, 2)


@needs_timm
def test_a_distilled_transformer_has_two_layers_in_its_head():
    model = build_model("timm:deit_tiny_distilled_patch16_224,depth=1,img_size=32", num_outputs=2)
    for head in (find_head(model), find_head(model, torch.randn(1, 3, 32, 32))):
        assert set(head.parameters) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


@needs_timm
def test_a_timm_model_without_a_classifier_is_no_classifier():
    model = outline("timm:vit_tiny_patch16_224,depth=1", num_outputs=0)
    assert "head" not in find_head(model).name


class Misleading(nn.Module):
    """Defines its head first, under no usual name, and runs another layer after it."""

    def __init__(self):
        super().__init__()
        self.answer = nn.Linear(4, 2)
        self.body = nn.Linear(4, 4)
        self.side = nn.Linear(4, 2)
        self.decoder = nn.Linear(2, 4)

    def forward(self, x):
        features = torch.relu(self.body(x))
        logits = self.answer(features)
        return logits, self.side(features), self.decoder(logits)


def test_running_the_model_finds_what_structure_misses():
    assert find_head(Misleading()).name == "decoder"
    assert find_head(read_as(Misleading(), answer=0), torch.randn(3, 4)).name == "answer"


def test_of_a_head_of_two_layers_the_last_is_taken():
    model = build_model("squeezenet1_1", num_outputs=1)
    model.classifier = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 1)
    )
    assert find_head(model).name == "classifier.4"
    assert find_head(model, torch.randn(1, 3, 32, 32)).name == "classifier.4"


def test_of_pooled_layers_of_the_right_size_the_last_that_runs_is_taken():
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), *pool)
    assert find_head(model, torch.randn(1, 3, 4, 4)).name == "2"


def test_a_layer_that_runs_twice_counts_where_it_ran_last():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.a(self.b(self.a(x))).mean((2, 3))

    assert find_head(Shared(), torch.randn(1, 2, 4, 4)).name == "a"


def test_usual_places_go_before_what_comes_last():
    model = nn.ModuleDict({"fc": nn.Linear(4, 2), "projection": nn.Linear(4, 8)})
    assert find_head(model).name == "fc"


def test_a_model_that_is_its_head_has_the_empty_name():
    head = find_head(nn.Linear(4, 2), torch.zeros(1, 4))
    assert head == Head("", ("weight", "bias"), 2)


def test_a_head_of_ones_own_kind_is_found_by_its_output():
    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return nn.functional.normalize(x) @ nn.functional.normalize(self.weight).T

    model = nn.Sequential(nn.Linear(4, 4), Cosine())
    assert find_head(model, torch.randn(2, 4)) == Head("1", ("1.weight",), 3)


def test_the_parameters_of_a_parametrized_head_are_those_it_is_computed_from():
    model = nn.Sequential(nn.Linear(4, 4), weight_norm(nn.Linear(4, 2)))
    head = find_head(model, torch.randn(1, 4))
    assert head.name == "1"
    assert set(head.parameters) == {n for n, _ in model.named_parameters() if n.startswith("1.")}
    assert len(head.parameters) == 3


def test_a_tied_weight_is_named_as_the_model_names_it():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    assert find_head(model).parameters == ("0.weight",)


@pytest.mark.parametrize(("given", "taken"), [("1", "1.2"), ("1.2", "1.2")])
def test_the_head_can_be_named(given, taken):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    assert find_head(model, torch.randn(1, 4), name=given).name == taken
    with pytest.raises(ArchitectureError, match=r"'1\.0' is not the model's logits, which '1\.2' makes"):
        find_head(model, torch.randn(1, 4), name="1.0")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("clasifier", "'clasifier' is no module of the model. Did you mean 'classifier'"),
        ("act", "'act' has no layer of weights. .*'body'"),
    ],
)
def test_a_name_that_is_no_head_is_refused_with_the_nearest(name, complaint):
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "act": nn.ReLU(), "classifier": nn.Linear(4, 2)})
    with pytest.raises(ArchitectureError, match=complaint):
        find_head(model, name=name)


def test_a_named_layer_that_makes_no_logits_is_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    with pytest.raises(ArchitectureError, match="'0' has 8 outputs, but the model answers with 2"):
        find_head(model, torch.zeros(1, 4), name="0")


def test_a_named_layer_whose_output_is_not_the_logits_is_refused():
    class Adversarial(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.adversary, self.label = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)

        def forward(self, x):
            x = self.body(x)
            return {"adversary": self.adversary(x), "logits": self.label(x)}

    assert find_head(Adversarial(), torch.randn(3, 4), name="label").name == "label"
    with pytest.raises(ArchitectureError, match="'adversary' is not the model's logits, which 'label' makes"):
        find_head(Adversarial(), torch.randn(3, 4), name="adversary")


def test_a_named_layer_whose_output_is_scaled_into_the_logits_is_the_head():
    class Scaled(nn.Sequential):
        def forward(self, x):
            return super().forward(x) / 1.5

    assert find_head(Scaled(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4), name="1").name == "1"


def test_a_norm_after_the_last_layer_is_not_the_head():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[1].running_mean += 1
    assert find_head(model, torch.randn(2, 4)).name == "0"


def test_a_model_without_layers_has_no_head():
    with pytest.raises(ArchitectureError, match="no layer of weights"):
        find_head(nn.Sequential(nn.ReLU()))
    with pytest.raises(ArchitectureError, match="no layer makes the model's 4 outputs"):
        find_head(nn.Sequential(nn.ReLU()), torch.zeros(1, 4))


def test_no_layer_of_the_right_size_is_no_head():
    class Padded(nn.Sequential):
        def forward(self, x):
            return nn.functional.pad(super().forward(x), (0, 1))

    with pytest.raises(ArchitectureError, match=r"no layer makes the model's 3 outputs.*'0'"):
        find_head(Padded(nn.Linear(4, 2)), torch.zeros(1, 4))


def test_inputs_that_the_model_cannot_take_are_named():
    with pytest.raises(DataError, match=r"Linear cannot take inputs of shape \(1, 5\)"):
        find_head(nn.Linear(4, 2), torch.zeros(1, 5))


@pytest.mark.parametrize("example", [torch.zeros(1, 4), torch.zeros(1, 5)], ids=["fits", "fails"])
def test_finding_the_head_leaves_no_trace(example):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    try:
        find_head(model, example)
    except DataError:
        assert example.shape[1] == 5
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.grad is None for parameter in model.parameters())
