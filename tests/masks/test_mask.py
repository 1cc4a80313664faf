import json

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import nn

from bmft.errors import ConfigError, MismatchError
from bmft.masks import WeightMask


def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def scores_of(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.floats(0.001, 1.0), st.integers(0, 100))
def test_top_fraction_takes_exactly_the_highest_scores(sizes, fraction, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {f"w{i}": torch.rand(n, generator=generator) + 0.01 for i, n in enumerate(sizes)}
    mask = WeightMask.top_fraction(scores, fraction)
    assert mask.selected == max(1, round(fraction * sum(sizes)))
    joined = torch.cat(list(scores.values()))
    chosen = torch.cat(list(mask.tensors.values()))
    if mask.selected < sum(sizes):
        assert joined[chosen].min() >= joined[~chosen].max()


def test_ties_are_still_counted_exactly():
    assert WeightMask.top_fraction({"w": torch.ones(10)}, 0.3).selected == 3


def test_weights_outside_within_do_not_compete():
    mask = WeightMask.top_fraction(
        {"body": torch.tensor([1.0, 2.0]), "head": torch.tensor([9.0])}, 0.5, within=["body"]
    )
    assert mask.tensors["body"].tolist() == [False, True]
    assert mask.tensors["head"].tolist() == [False]


@pytest.mark.parametrize("granularity", ["channel", "layer", "block"])
def test_units_are_taken_whole_within_the_budget(granularity):
    model = net()
    mask = WeightMask.top_fraction(
        scores_of(model), 0.6, granularity=granularity, unit_of=lambda name: "head" if name.startswith("3") else "body"
    )
    assert 0 < mask.selected <= round(0.6 * mask.total)
    for name, tensor in mask.tensors.items():
        rows = tensor.reshape(tensor.shape[0], -1)
        assert (rows.all(1) == rows.any(1)).all(), name
        if granularity != "channel":
            assert tensor.all() == tensor.any(), name


def test_layers_are_ranked_by_importance_and_not_all_selected():
    # The published mask_scale="layer" ignored its threshold and selected every layer.
    scores = {
        "a.weight": torch.full((10,), 3.0),
        "b.weight": torch.full((10,), 1.0),
        "c.weight": torch.full((10,), 2.0),
    }
    mask = WeightMask.top_fraction(scores, 0.67, granularity="layer")
    assert [name for name, tensor in mask.tensors.items() if tensor.all()] == ["a.weight", "c.weight"]


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({"w": torch.zeros(4)}, {}, "no weight has a positive score"),
        ({"w": torch.tensor([1.0, float("nan")])}, {}, "not finite"),
        ({"w": torch.ones(100)}, {"granularity": "layer"}, "fits"),
        ({"w": torch.ones(4)}, {"granularity": "neuron"}, "expected one of weight, channel"),
        ({"w": torch.ones(4)}, {"within": ["v"]}, "no scores for 'v'"),
        ({"w": torch.ones(4)}, {"granularity": "block"}, "unit_of"),
    ],
)
def test_an_empty_or_impossible_mask_is_an_error(scores, options, message):
    with pytest.raises(ConfigError, match=message):
        WeightMask.top_fraction(scores, 0.1, **options)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ConfigError, match="fraction"):
        WeightMask.top_fraction({"w": torch.ones(4)}, fraction)


def test_mask_algebra_follows_its_laws():
    model = net()
    a = WeightMask.top_fraction(scores_of(model, 1), 0.5)
    b = WeightMask.top_fraction(scores_of(model, 2), 0.3)
    equal = lambda x, y: all(torch.equal(x.tensors[k], y.tensors[k]) for k in x.tensors)  # noqa: E731
    assert equal(~(a & b), ~a | ~b)
    assert equal(~~a, a)
    assert (a & ~a).selected == 0
    assert (a | ~a).density == 1
    assert equal(a & b, b & a)


def test_a_soft_mask_combines_by_minimum_and_maximum():
    soft, hard = WeightMask({"w": torch.tensor([0.2, 0.7])}), WeightMask({"w": torch.tensor([True, False])})
    torch.testing.assert_close((soft & hard).tensors["w"], torch.tensor([0.2, 0.0]))
    torch.testing.assert_close((soft | hard).tensors["w"], torch.tensor([1.0, 0.7]))
    torch.testing.assert_close((~soft).tensors["w"], torch.tensor([0.8, 0.3]))
    assert not soft.hard
    assert (soft & hard).selected == 1


def test_names_include_and_exclude():
    model = net()
    everything = WeightMask.by_name(model)
    assert everything.density == 1
    assert everything.excluding("3.*").selected == everything.total - 10
    assert everything.only("1.*").selected == 8
    with pytest.raises(ConfigError, match=r"'fc\.\*' matches no parameter"):
        everything.excluding("fc.*")
    with pytest.raises(ConfigError, match="the mask is empty"):
        everything.excluding("*")


@pytest.mark.parametrize("bad", [torch.tensor([1.5]), torch.tensor([float("nan")]), torch.tensor([1])])
def test_values_that_are_no_mask_are_refused(bad):
    with pytest.raises(ConfigError):
        WeightMask({"w": bad})


def test_by_layer_counts_every_weight_once():
    mask = WeightMask.by_name(net(), "0.*")
    layers = mask.by_layer()
    assert layers["0"] == {"selected": 40, "total": 40, "fraction": 1.0}
    assert sum(entry["total"] for entry in layers.values()) == mask.total


@pytest.mark.parametrize("soft", [False, True])
def test_a_saved_mask_comes_back_equal(tmp_path, soft):
    tensors = {"a.b": torch.rand(3, 4), "c": torch.rand(())}
    mask = WeightMask(tensors if soft else {k: t > 0.5 for k, t in tensors.items()})
    mask.save(tmp_path / "m.safetensors", {"fraction": 0.5})
    again = WeightMask.load(tmp_path / "m.safetensors")
    assert all(torch.equal(again.tensors[k], t) for k, t in mask.tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_damaged_foreign_and_newer_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    WeightMask({"w": torch.tensor([True] * 50)}).save(path)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(MismatchError, match="cannot be read as a mask"):
            WeightMask.load(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(MismatchError, match="no bmft file"):
        WeightMask.load(path)
    save_file({"w": torch.ones(2)}, path, metadata={"kind": "bmft.mask", "format": "2", "recipe": json.dumps({})})
    with pytest.raises(MismatchError, match="newer bmft"):
        WeightMask.load(path)
    with pytest.raises(MismatchError, match="cannot be read"):
        WeightMask.load(tmp_path / "absent.safetensors")


def test_a_mask_for_another_model_is_refused_with_the_first_difference():
    mask = WeightMask.by_name(net())
    with pytest.raises(MismatchError, match="1 here are not in it"):
        mask.check_fits({n: p.shape for n, p in [*net().named_parameters(), ("x", torch.ones(1))]})


@given(seed=st.integers(0, 2**16), budget=st.integers(1, 60))
def test_the_highest_scores_are_chosen_and_of_equal_ones_the_first(seed, budget):
    scores = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(seed)).float()
    parts = {"a": scores[:42].reshape(6, 7), "b": scores[42:]}
    expected = sorted(range(60), key=lambda place: (-scores[place].item(), place))[:budget]
    mask = WeightMask.top_fraction(parts, budget / 60)
    chosen = torch.cat([mask.tensors["a"].flatten(), mask.tensors["b"]]).nonzero()[:, 0].tolist()
    positive = {place for place in expected if scores[place] > 0}
    assert positive <= set(chosen) <= set(expected)
