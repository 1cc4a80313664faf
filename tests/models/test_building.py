import importlib.util
import logging
import sys

import pytest
import torch
import torchvision
from torch import nn

import bmft.models
from bmft.errors import ArchitectureError, MissingExtraError
from bmft.models import build_model, fit_of, index_entry, infer_architecture, outline, readings, shapes_of
from bmft.models.architectures import index, make_entry, matches, nearest
from tests.tiers import in_ci

needs_timm = pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="timm is not installed")

# The smallest of each of torchvision's families.
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vgg11_bn",
    "vit_b_16",
    "wide_resnet50_2",
]


def shapes(arch, outputs=None):
    return shapes_of(outline(arch, num_outputs=outputs).state_dict())


def without_timm(monkeypatch):
    for place in ("building", "recognising"):
        monkeypatch.setattr(f"bmft.models.{place}.find_spec", lambda name: None)


class Small(nn.Module):
    """A network of one's own, as --arch names it."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)


def of_outputs(num_outputs=5):
    return nn.Linear(2, num_outputs)


def of_fixed_size(width=2):
    return nn.Linear(width, 9)


def no_module():
    return 3


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_networks", sys.modules[__name__])


@pytest.mark.parametrize(
    ("arch", "outputs"),
    [
        ("torchvision:resnet18", 1),
        ("resnet18", 7),
        ("squeezenet1_1", 3),
        ("my_networks:Small", 2),
        ("my_networks:of_outputs", 3),
    ],
)
def test_a_network_is_built_with_the_outputs_asked_for(arch, outputs):
    model = build_model(arch, num_outputs=outputs)
    assert bmft.models.head.find_head(model).num_outputs == outputs


def test_without_a_number_of_outputs_the_network_keeps_its_own():
    assert build_model("torchvision:resnet18").fc.out_features == 1000
    assert build_model("my_networks:Small").fc.out_features == 4


def test_a_factory_that_takes_no_number_is_called_without():
    assert build_model("my_networks:of_fixed_size", num_outputs=2).out_features == 9


def test_options_follow_the_name():
    assert build_model("my_networks:of_fixed_size,width=6").in_features == 6
    assert shapes("torchvision:vit_b_16,image_size=64")["encoder.pos_embedding"] == (1, 17, 768)
    assert "AuxLogits.fc.weight" not in shapes("inception_v3,aux_logits=False")


@needs_timm
def test_timm_builds_its_networks():
    model = build_model("timm:vit_tiny_patch16_224,img_size=32,in_chans=1,depth=1", num_outputs=2)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 2)
    assert build_model("vit_tiny_patch16_224.augreg_in21k,depth=1", num_outputs=3).head.out_features == 3


@pytest.mark.parametrize(
    ("arch", "complaint"),
    [
        ("resnet19", "torchvision or timm has no network 'resnet19'. Did you mean 'resnet18'"),
        ("torchvision:resnet19", "Did you mean 'resnet18'"),
        ("torchvision:qqqqqqqq", "package.module:factory"),
        ("no_such_module:net", "'no_such_module' cannot be imported"),
        ("my_networks:Smal", "Did you mean 'Small'"),
        ("my_networks:no_module", "gives a int"),
        ("resnet18,width", "expected options as in"),
        ("resnet18,3=4", "expected options as in"),
        ("resnet18,wide=3", "cannot be built with .wide=3.*unexpected keyword"),
        ("torchvision:resnet18,weights=DEFAULT", "'weights' cannot be set"),
        ("timm:resnet18,pretrained=True", "'pretrained' cannot be set"),
        ("timm:resnet18,checkpoint_path=x.pt", "'checkpoint_path' cannot be set"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_to_do(arch, complaint):
    with pytest.raises(ArchitectureError, match=complaint):
        build_model(arch)


@needs_timm
@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp/model", "resnet18x"])
def test_nothing_is_fetched_for_timm(name):
    with pytest.raises(ArchitectureError, match="timm has no network"):
        build_model(f"timm:{name}")


def test_a_missing_timm_is_named_with_its_extra(monkeypatch):
    without_timm(monkeypatch)
    for arch in ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224"):
        with pytest.raises(MissingExtraError, match=r"bmft\[timm\]"):
            build_model(arch)


@pytest.mark.parametrize("arch", ["regnet_y_400mf", "swin_t", "squeezenet1_1"])
def test_an_outline_has_the_shapes_and_no_memory(arch):
    model = outline(arch, num_outputs=3)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert shapes_of(model.state_dict()) == shapes_of(build_model(arch, num_outputs=3).state_dict())


def test_an_outline_of_ones_own_network_is_the_network():
    assert not outline("my_networks:Small").fc.weight.is_meta


@needs_timm
def test_a_network_that_computes_with_its_weights_while_built_has_an_outline():
    assert not outline("timm:vit_small_patch16_rope_mixed_224,depth=1").head.weight.is_meta


def test_an_outline_that_cannot_be_built_says_so():
    with pytest.raises(ArchitectureError, match="wide"):
        outline("resnet18,wide=3")


@pytest.mark.parametrize("arch", [*FAMILIES[:4], *in_ci(*FAMILIES[4:])])
def test_a_torchvision_network_is_known_by_its_weights(arch):
    assert infer_architecture(shapes(arch, 3)) == f"torchvision:{arch}"


@pytest.mark.parametrize("outputs", [1, 2, 1000])
def test_the_number_of_outputs_does_not_matter(outputs):
    assert infer_architecture(shapes("resnet18", outputs)) == "torchvision:resnet18"
    assert infer_architecture(shapes("squeezenet1_1", outputs)) == "torchvision:squeezenet1_1"


def test_neither_order_nor_old_batch_norms_matter():
    known = shapes("resnet18", 1)
    old = {name: shape for name, shape in reversed(known.items()) if not name.endswith("num_batches_tracked")}
    assert len(old) < len(known)
    assert infer_architecture(old) == "torchvision:resnet18"


def test_networks_without_their_auxiliary_heads_are_known():
    for arch in ("torchvision:inception_v3,aux_logits=False", "torchvision:googlenet,aux_logits=False"):
        assert infer_architecture(shapes(arch, 2)) == arch


def test_what_weights_cannot_tell_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        infer_architecture(shapes("inception_v3", 1))
        assert "torchvision:inception_v3,transform_input=True" in caplog.text
        caplog.clear()
        infer_architecture(shapes("resnet18", 1))
        assert not caplog.text


def test_torchvision_goes_before_timm_networks_with_the_same_weights():
    assert "timm:resnetblur18" in matches(shapes("resnet18", 1))
    assert infer_architecture(shapes("resnet18", 1)) == "torchvision:resnet18"


@needs_timm
def test_a_timm_network_of_its_own_is_known_by_its_weights():
    assert infer_architecture(shapes("timm:convnext_atto", 2)) == "timm:convnext_atto"


@needs_timm
def test_timm_networks_with_the_same_weights_are_asked_about():
    with pytest.raises(ArchitectureError, match=r"timm:deit_tiny_patch16_224, timm:vit_tiny_patch16_224.*--arch"):
        infer_architecture(shapes("timm:vit_tiny_patch16_224", 2))


def test_weights_of_a_missing_timm_name_its_extra(monkeypatch):
    if not importlib.util.find_spec("timm"):
        pytest.skip("timm is not installed, which builds the weights")
    weights = shapes("timm:convnext_atto", 2)
    without_timm(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"timm:convnext_atto.*bmft\[timm\]"):
        infer_architecture(weights)


def test_unknown_weights_name_the_nearest_networks_and_what_differs():
    gray = shapes("resnet18", 1) | {"conv1.weight": (64, 1, 7, 7)}
    with pytest.raises(ArchitectureError) as caught:
        infer_architecture(gray)
    message = str(caught.value)
    assert (
        "torchvision:resnet18 (1 has another shape ('conv1.weight' is (64, 1, 7, 7), expected (64, 3, 7, 7)))"
        in message
    )
    assert message.index("torchvision:resnet18") < message.index("--arch")
    assert "fc.weight" not in message


def test_without_timm_no_network_of_timm_is_suggested(monkeypatch):
    without_timm(monkeypatch)
    with pytest.raises(ArchitectureError) as caught:
        infer_architecture(shapes("resnet18", 1) | {"conv1.weight": (64, 1, 7, 7)})
    assert "timm:resnet18" not in str(caught.value)
    assert "no network of torchvision has" in str(caught.value)


def test_weights_near_nothing_get_no_suggestion():
    with pytest.raises(ArchitectureError) as caught:
        infer_architecture({"a.weight": (2, 2)})
    assert "Nearest" not in str(caught.value)


def test_the_nearest_network_shares_most_weights():
    body = {name: shape for name, shape in shapes("resnet34", 3).items() if not name.startswith("layer4")}
    assert nearest(body, 1)[0] in ("torchvision:resnet34", "timm:resnet34")
    assert nearest({}, 3) == []


@pytest.mark.parametrize(
    ("arch", "trusted", "expected"),
    [
        ("torchvision:resnet18", True, ("torchvision:resnet18",)),
        ("squeezenet1_1,dropout=0", True, ("torchvision:squeezenet1_1,dropout=0",)),
        ("resnet18.a1_in1k", False, ("timm:resnet18.a1_in1k",)),
        ("nothing_like_it", True, ()),
        ("my_networks:Small", True, ("my_networks:Small",)),
        ("my_networks:Small", False, ()),
        ("os:system", False, ()),
        ("torchvision:nothing", False, ()),
        ("inception_v3,aux_logits=False", False, ("torchvision:inception_v3,aux_logits=False",)),
        ("vit_b_16,image_size=64", False, ("torchvision:vit_b_16,image_size=64",)),
        ("vit_b_16,image_size='64'", False, ()),
        ("resnet18,progress=1", False, ()),
        ("resnet18,weights=1", False, ()),
        ("resnet18,", False, ()),
    ],
)
def test_a_name_is_read_as_far_as_its_source_is_trusted(arch, trusted, expected):
    found = readings(arch, trusted=trusted)
    assert tuple(name for name in found if name in expected) == expected
    assert bool(found) == bool(expected)


@needs_timm
def test_a_bare_name_of_both_libraries_is_torchvisions_first():
    assert readings("resnet18") == ("torchvision:resnet18", "timm:resnet18")


def test_a_bare_name_of_both_is_torchvisions_alone_without_timm(monkeypatch):
    without_timm(monkeypatch)
    assert readings("resnet18") == ("torchvision:resnet18",)
    assert readings("vit_tiny_patch16_224") == ("timm:vit_tiny_patch16_224",)


def test_a_broken_option_is_an_error_where_the_name_is_trusted():
    with pytest.raises(ArchitectureError, match="expected options"):
        readings("resnet18,")


def test_a_fit_counts_what_differs():
    fit = fit_of(
        {"a": (1,), "b": (2,), "c": (3,), "bn.num_batches_tracked": ()}, {"b": (2,), "c": (4,), "d": (5,), "e": (1,)}
    )
    assert (fit.missing, fit.unexpected, fit.reshaped, fit.distance) == (("a",), ("d", "e"), ("c",), 4)
    assert (
        fit.notes == "1 has another shape ('c' is (4,), expected (3,)), 1 is missing ('a'), 2 are unexpected ('d', 'e')"
    )
    assert fit_of({"a": (1,)}, {"a": (1,)}).notes == ""


def test_a_long_list_of_names_is_cut():
    notes = fit_of({}, dict.fromkeys("abcd", ())).notes
    assert notes == "4 are unexpected ('a', 'b', 'c', ...)"


def test_shapes_of_leave_out_what_is_no_tensor():
    assert shapes_of({"w": torch.zeros(2, 1), "_extra_state": {"a": 1}}) == {"w": (2, 1)}


def test_the_index_has_every_network_of_torchvision():
    names = torchvision.models.list_models(module=torchvision.models)
    assert {f"torchvision:{name}" for name in names} <= set(index()), "run benchmarks/make_architecture_index.py"


@pytest.mark.parametrize("arch", ["torchvision:squeezenet1_1", "torchvision:inception_v3,aux_logits=False"])
def test_the_index_is_what_the_installed_library_gives(arch):
    assert index()[arch] == index_entry(arch)


@pytest.mark.slow
def test_the_whole_index_is_what_the_installed_torchvision_gives():
    for arch in index():
        if arch.startswith("torchvision:"):
            assert index()[arch] == index_entry(arch), arch


def test_no_two_torchvision_networks_share_a_signature():
    signatures = [entry.signature for arch, entry in index().items() if arch.startswith("torchvision:")]
    assert len(signatures) == len(set(signatures))


@pytest.mark.parametrize(
    "other",
    [{"w": (3, 8)}, {"w": (3, 9)}, {"w": (5, 8), "v": (1,)}, {"v": (5, 8)}],
    ids=["no head", "another axis", "another name more", "another name"],
)
def test_a_network_whose_head_cannot_be_told_has_no_entry(other):
    with pytest.raises(ArchitectureError, match="first axis"):
        make_entry({"w": (3, 8)}, other)
