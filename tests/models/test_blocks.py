import importlib.util

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from bmft.models import blocks, components, find_head, outline
from bmft.models.block_structure import COMPONENTS
from tests.tiers import in_ci

HAS_TIMM = importlib.util.find_spec("timm") is not None

# Network -> how many blocks it repeats, one of them, its components, and blocks between and after them.
KNOWN = {
    "resnet18": (8, "layer2.0", {"norm", "conv", "shortcut"}, ()),
    "resnet50": (16, "layer1.1", {"norm", "conv"}, ()),
    "densenet121": (4, "features.denseblock2", {"norm", "conv"}, ("features.transition1", "features.norm5")),
    "efficientnet_b0": (16, "features.2.1", {"norm", "conv"}, ("features.8",)),
    "mobilenet_v2": (17, "features.3", {"norm", "conv"}, ("features.18",)),
    "mobilenet_v3_small": (11, "features.4", {"norm", "conv"}, ("features.12", "classifier.0")),
    "convnext_tiny": (18, "features.1.0", {"norm", "conv", "mlp", "other"}, ("features.2", "classifier.0")),
    "vit_b_16": (12, "encoder.layers.encoder_layer_3", {"norm", "attention", "mlp"}, ("encoder.ln",)),
    "swin_t": (12, "features.3.1", {"norm", "attention", "mlp"}, ("features.2", "norm")),
    "swin_v2_t": (12, "features.3.1", {"norm", "attention", "mlp"}, ("features.2", "norm")),
    "regnet_y_400mf": (16, "trunk_output.block2.block2-0", {"norm", "conv", "shortcut"}, ()),
    "shufflenet_v2_x0_5": (16, "stage2.0", {"norm", "conv"}, ("conv5",)),
    "inception_v3": (12, "Mixed_6b", {"norm", "conv"}, ()),
    "squeezenet1_1": (8, "features.3", {"conv"}, ()),
    "vgg11_bn": (0, "features.4", {"norm", "conv"}, ("features.0", "classifier.0")),
}
KNOWN_TIMM = {
    "timm:vit_tiny_patch16_224": (12, "blocks.0", {"norm", "attention", "mlp"}, ("norm",)),
    "timm:deit_tiny_distilled_patch16_224": (12, "blocks.0", {"norm", "attention", "mlp"}, ("norm",)),
    "timm:swin_tiny_patch4_window7_224": (
        12,
        "layers.1.blocks.0",
        {"norm", "attention", "mlp"},
        ("layers.1.downsample", "norm"),
    ),
    "timm:convnext_atto": (
        12,
        "stages.1.blocks.0",
        {"norm", "conv", "mlp", "other"},
        ("stages.1.downsample", "head.norm"),
    ),
    "timm:resnet18": (8, "layer2.0", {"norm", "conv", "shortcut"}, ()),
    "timm:densenet121": (4, "features.denseblock2", {"norm", "conv"}, ("features.transition1",)),
    "timm:efficientnet_b0": (16, "blocks.1.0", {"norm", "conv"}, ("conv_head",)),
    "timm:mobilenetv3_small_100": (11, "blocks.2.1", {"norm", "conv"}, ("conv_head",)),
    "timm:regnety_004": (16, "s2.b1", {"norm", "conv", "shortcut"}, ()),
}
ALL = [*KNOWN, *(KNOWN_TIMM if HAS_TIMM else ())]
QUICK = ("resnet18", "convnext_tiny", "vit_b_16", "shufflenet_v2_x0_5", "vgg11_bn")


def assert_partition(model):
    names = [name for name, _ in model.named_parameters()]
    cut, finer = blocks(model), components(model)
    assert sorted(name for block in cut.values() for name in block) == sorted(names)
    assert list(finer) == list(cut)
    for block, kinds in finer.items():
        assert set(kinds) <= set(COMPONENTS)
        assert sorted(name for part in kinds.values() for name in part) == sorted(cut[block])
        assert all(kinds.values())


@pytest.mark.parametrize("arch", [*QUICK, *in_ci(*(arch for arch in ALL if arch not in QUICK))])
def test_the_blocks_of_a_known_network_are_what_it_repeats(arch):
    model = outline(arch, num_outputs=2)
    count, example, kinds, between = {**KNOWN, **KNOWN_TIMM}[arch]
    assert_partition(model)
    found = blocks(model)
    kinds_of = components(model)
    head = find_head(model)
    assert list(found)[-1] == "head"
    assert set(found["head"]) == set(head.parameters)
    assert kinds_of["head"] == {"other": found["head"]}
    assert set(kinds_of[example]) == kinds
    assert set(between) <= set(found)
    if count:
        assert next(iter(found)) == "stem"
        several = [b for b in found if sum(n.endswith("weight") for n in found[b]) > 2 and b not in ("stem", "head")]
        assert len(several) == count


def test_the_stem_is_everything_before_the_first_block():
    found = blocks(outline("resnet18"))
    assert found["stem"] == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert set(blocks(outline("vit_b_16"))["stem"]) == {
        "class_token",
        "conv_proj.weight",
        "conv_proj.bias",
        "encoder.pos_embedding",
    }


def test_each_part_of_a_residual_block_has_its_kind():
    kinds = components(outline("resnet50"))["layer2.0"]
    assert kinds["shortcut"] == ("layer2.0.downsample.0.weight",)
    assert kinds["conv"] == tuple(f"layer2.0.conv{i}.weight" for i in (1, 2, 3))
    assert set(kinds["norm"]) == {
        f"layer2.0.{norm}.{part}" for norm in ("bn1", "bn2", "bn3", "downsample.1") for part in ("weight", "bias")
    }


def test_each_part_of_a_transformer_block_has_its_kind():
    kinds = components(outline("swin_t"))["features.1.0"]
    inside = "features.1.0."
    assert {name.removeprefix(inside).split(".")[0] for name in kinds["norm"]} == {"norm1", "norm2"}
    assert {name.removeprefix(inside).split(".")[0] for name in kinds["attention"]} == {"attn"}
    assert f"{inside}attn.relative_position_bias_table" in kinds["attention"]
    assert {name.removeprefix(inside).split(".")[0] for name in kinds["mlp"]} == {"mlp"}


def test_a_dense_block_is_one_block_and_its_norm_stays_apart():
    found = blocks(outline("densenet121"))
    assert all(name.startswith("features.denseblock4.") for name in found["features.denseblock4"])
    assert found["features.norm5"] == ("features.norm5.weight", "features.norm5.bias")


def test_in_a_plain_network_every_layer_is_a_block_with_the_norm_that_follows_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert blocks(model) == {
        "0": ("0.weight", "0.bias"),
        "2": ("2.weight", "2.bias", "3.weight", "3.bias"),
        "head": ("4.weight", "4.bias"),
    }


def test_a_norm_that_comes_first_is_a_block_of_its_own():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    assert list(blocks(model)) == ["0", "1", "head"]


def test_a_norm_of_another_part_does_not_follow_a_layer():
    two = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model = nn.ModuleDict({"a": two, "norm": nn.LayerNorm(4), "fc": nn.Linear(4, 2)})
    assert list(blocks(model)) == ["a.0", "a.1", "norm", "head"]


@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_b0", "mobilenet_v2", "vit_b_16"])
def test_a_wrapped_network_has_the_same_blocks_under_its_name(arch):
    bare = outline(arch, num_outputs=2)
    wrapped = nn.ModuleDict({"backbone": bare, "fc": nn.Linear(2, 1)})
    inner = [block for block in blocks(bare) if block not in ("stem", "head")]
    assert [f"backbone.{block}" for block in inner] == [b for b in blocks(wrapped) if b.startswith("backbone.")][
        : len(inner)
    ]


def test_a_sequential_that_adds_its_input_is_one_block():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    model = nn.Sequential(nn.Linear(4, 4), Residual(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    assert blocks(model)["1"] == ("1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias")


def test_a_head_in_a_module_with_other_layers_leaves_them_as_blocks():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.norm, self.out = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "head": Classifier()})
    assert list(blocks(model)) == ["conv", "head.hidden", "head"]
    assert blocks(model)["head.hidden"] == tuple(
        f"head.{layer}.{part}" for layer in ("hidden", "norm") for part in ("weight", "bias")
    )


def test_another_head_can_be_given():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    first = find_head(model, name="0")
    assert blocks(model, first) == {"1": ("1.weight", "1.bias"), "head": ("0.weight", "0.bias")}
    assert components(model, first)["head"] == {"other": ("0.weight", "0.bias")}


def test_a_weight_in_a_parametrization_belongs_to_its_layer():
    model = nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(4, 2))
    assert set(components(model)["0"]) == {"conv"}


def test_a_model_that_is_its_head_has_no_other_block():
    assert blocks(nn.Linear(4, 2)) == {"head": ("weight", "bias")}


def leaves():
    layers = [
        lambda: nn.Linear(2, 2),
        lambda: nn.Conv2d(2, 2, 1),
        lambda: nn.BatchNorm2d(2),
        lambda: nn.ReLU(),
        lambda: nn.MultiheadAttention(2, 1),
    ]
    return st.sampled_from(layers).map(lambda make: make())


def trees():
    def inside(children):
        some = st.lists(children, min_size=1, max_size=4)
        return st.one_of(
            some.map(lambda modules: nn.Sequential(*modules)),
            some.map(nn.ModuleList),
            some.map(lambda modules: nn.ModuleDict({f"m{i}": module for i, module in enumerate(modules)})),
        )

    return st.recursive(leaves(), inside, max_leaves=20)


@given(trees(), st.booleans())
def test_every_parameter_of_any_network_is_in_exactly_one_block_and_component(tree, tied):
    model = nn.Sequential(tree, nn.Linear(2, 2))
    if tied:
        model.append(nn.Linear(2, 2))
        model[2].weight = model[1].weight
    model.register_parameter("token", nn.Parameter(torch.zeros(1)))
    assert_partition(model)
