import json

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file

from bmft.checkpoints import WeightPatch
from bmft.errors import MismatchError, NonFiniteError
from bmft.models import state_hash


def states(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    before = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator).to(dtype),
        "bn.running_mean": torch.randn(4, generator=generator).to(dtype),
        "bn.num_batches_tracked": torch.tensor(7),
        "empty": torch.zeros(0),
    }
    after = {name: tensor.clone() for name, tensor in before.items()}
    after["conv.weight"][0, :, 1, 1] += 0.25
    after["bn.num_batches_tracked"] += 1
    return before, after


def same(a, b):
    return list(a) == list(b) and state_hash(a) == state_hash(b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_apply_and_revert_are_exact_through_a_file(tmp_path, dtype):
    before, after = states(dtype)
    WeightPatch.between(before, after, {"method": "bmft"}).save(tmp_path / "p.safetensors")
    patch = WeightPatch.load(tmp_path / "p.safetensors")
    assert same(patch.apply(before), after)
    assert same(patch.revert(after), before)
    assert patch.recipe == {"method": "bmft"}
    assert patch.moved == 4


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20), st.data())
def test_any_change_of_finite_values_is_restored_to_the_last_bit(values, data):
    before = {"w": torch.tensor(values)}
    new = data.draw(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=len(values), max_size=len(values))
    )
    after = {"w": torch.tensor(new)}
    patch = WeightPatch.between(before, after)
    assert same(patch.apply(before), after)
    assert same(patch.revert(after), before)


def test_a_change_of_sign_of_zero_is_a_change():
    patch = WeightPatch.between({"w": torch.tensor([0.0])}, {"w": torch.tensor([-0.0])})
    assert patch.moved == 1


def test_channels_last_weights_are_patched_in_logical_order():
    before, after = states()
    before["conv.weight"] = before["conv.weight"].contiguous(memory_format=torch.channels_last)
    patch = WeightPatch.between(before, after)
    assert torch.equal(patch.apply(before)["conv.weight"], after["conv.weight"])


def test_the_arguments_are_not_changed():
    before, after = states()
    kept = state_hash(before)
    WeightPatch.between(before, after).apply(before)
    assert state_hash(before) == kept


def test_another_model_and_a_second_application_are_refused():
    before, after = states()
    patch = WeightPatch.between(before, after)
    other = states(seed=1)[0]
    with pytest.raises(MismatchError, match="not the original"):
        patch.apply(other)
    with pytest.raises(MismatchError, match="already applied"):
        patch.apply(after)
    with pytest.raises(MismatchError, match="not the debiased"):
        patch.revert(before)


def test_states_of_two_models_have_no_patch():
    before, after = states()
    with pytest.raises(MismatchError, match="names or order"):
        WeightPatch.between(before, {"x": torch.ones(1)})
    after["conv.weight"] = after["conv.weight"].double()
    with pytest.raises(MismatchError, match="float64"):
        WeightPatch.between(before, after)


def test_a_change_to_nan_is_refused():
    before, after = states()
    after["conv.weight"][1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"conv\.weight"):
        WeightPatch.between(before, after)


def test_the_summary_counts_and_measures_the_change():
    before, after = states()
    summary = WeightPatch.between(before, after).summary()
    layer = summary["layers"]["conv.weight"]
    assert (layer["moved"], layer["total"]) == (3, 108)
    assert layer["l2_norm"] == pytest.approx(0.25 * 3**0.5, rel=1e-6)
    assert layer["max_abs"] == pytest.approx(0.25, rel=1e-6)
    json.dumps(summary)


def test_damaged_foreign_and_newer_files_are_refused(tmp_path):
    before, after = states()
    path = tmp_path / "p.safetensors"
    WeightPatch.between(before, after).save(path)
    whole = path.read_bytes()
    for cut in (0, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(MismatchError, match="cannot be read as a patch"):
            WeightPatch.load(path)
    base = {"kind": "bmft.patch", "format": "1", "before_hash": "", "after_hash": "", "recipe": "{}"}
    index, values = torch.tensor([0, 99], dtype=torch.int32), torch.ones(2)
    for metadata, message in [
        ({}, "no bmft file"),
        (base | {"format": "9"}, "newer bmft"),
        (base, "damaged"),
        (base | {"totals": "not json"}, "damaged"),
        (base | {"totals": '{"w": 4}'}, "outside the tensor"),
        (base | {"totals": "[1]"}, "damaged"),
        (base | {"totals": '{"w": 1e999}'}, "damaged"),
    ]:
        save_file({"w:index": index, "w:before": values, "w:after": values + 1}, path, metadata=metadata)
        with pytest.raises(MismatchError, match=message):
            WeightPatch.load(path)


def test_a_patch_with_altered_values_does_not_apply(tmp_path):
    before, after = states()
    patch = WeightPatch.between(before, after)
    patch.changes["conv.weight"].after[0] += 1
    with pytest.raises(MismatchError, match="damaged"):
        patch.apply(before)
