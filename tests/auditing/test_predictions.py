"""What a model says, pooled: modes, devices, shapes, and the refusal of probabilities for logits."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.utils.data import DataLoader

from bmft.auditing import Predictions, pick_threshold
from bmft.data import from_arrays
from bmft.errors import ArchitectureError, CheckpointError, ConfigError, DataError, GroupError, NonFiniteError
from bmft.inference import predict
from bmft.methods import debias
from bmft.models import read_as
from bmft.tables import Attribute

SEX = Attribute("sex", ("female", "male"))


def binary(n=30, features=5):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, features, generator=generator)
    return from_arrays(inputs, torch.arange(n) % 2, torch.arange(n) % 3 - 1, attributes=[SEX])


def several(task, n=30):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % 3 if task == "multiclass" else torch.randint(0, 2, (n, 3), generator=generator)
    return from_arrays(torch.randn(n, 5, generator=generator), targets, torch.arange(n) % 2, attributes=[SEX])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_changes_nothing(batch_size):
    model, data = nn.Linear(5, 1), binary()
    whole = torch.sigmoid(model(data.inputs(slice(None))).double()).detach().numpy()
    np.testing.assert_allclose(predict(model, data, batch_size=batch_size).scores, whole, atol=1e-7)


def test_one_output_and_two_outputs_are_the_same_binary_label():
    data, one, two = binary(), nn.Linear(5, 1), nn.Linear(5, 2)
    with torch.no_grad():
        two.weight[0], two.weight[1] = -one.weight[0] / 2, one.weight[0] / 2
        two.bias[0], two.bias[1] = -one.bias[0] / 2, one.bias[0] / 2
    np.testing.assert_allclose(predict(one, data).scores, predict(two, data).scores, atol=1e-6)


def test_several_classes_are_a_softmax_and_labels_sigmoids():
    model = nn.Linear(5, 3)
    classes, labels = (predict(model, several(task)) for task in ("multiclass", "multilabel"))
    np.testing.assert_allclose(classes.scores.sum(1), 1)
    assert classes.decisions().sum(1).tolist() == [1] * 30
    assert classes.targets.sum(1).tolist() == [1] * 30
    assert labels.task == "multilabel"
    np.testing.assert_array_equal(labels.decisions(0.4), labels.scores >= 0.4)


def test_a_loader_of_dict_batches_is_read_through_batch_fn():
    data, model = binary(), nn.Linear(5, 1)
    rows = [{"x": data.inputs(slice(i, i + 1))[0], "y": data.targets[i], "a": data.groups[i, 0]} for i in range(30)]
    loader = DataLoader(rows, batch_size=8)
    found = predict(model, loader, batch_fn=lambda batch: (batch["x"], batch["y"], batch["a"]))
    np.testing.assert_allclose(found.scores, predict(model, data).scores, atol=1e-7)
    np.testing.assert_array_equal(found.groups, data.groups)


class Moody(nn.Module):
    """Dropout and batch normalization, part of it already in evaluation mode; fails when told to."""

    def __init__(self, fail=False):
        super().__init__()
        self.norm, self.drop, self.head, self.fail = nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 1), fail
        self.head.weight.requires_grad_(False)
        self.train()
        self.drop.eval()

    def forward(self, x):
        if self.fail:
            raise RuntimeError("out of order")
        return self.head(self.drop(self.norm(x)))


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_comes_back_as_it_was_also_when_it_fails(fail):
    model = Moody(fail)
    before = copy.deepcopy(model.state_dict())
    identity = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    if fail:
        with pytest.raises(DataError, match="out of order"):
            predict(model, binary())
    else:
        predict(model, binary())
    assert [m.training for m in (model, model.norm, model.drop, model.head)] == [True, True, False, True]
    assert not model.head.weight.requires_grad
    assert model.head.bias.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert identity == {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_evaluation_mode_is_used():
    model = Moody()
    assert predict(model, binary()).scores.tolist() == predict(model, binary()).scores.tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_lent_to_a_device_comes_back_with_its_own_tensors():
    model = Moody()
    pointers = [t.data_ptr() for t in (*model.parameters(), *model.buffers())]
    on_cuda, on_cpu = (predict(model, binary(), device=device).scores for device in ("cuda", "cpu"))
    np.testing.assert_allclose(on_cuda, on_cpu, atol=1e-5)
    assert pointers == [t.data_ptr() for t in (*model.parameters(), *model.buffers())]


def test_autocast_of_the_caller_does_not_round_the_logits():
    model, data = nn.Linear(5, 1), binary()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = predict(model, data).scores
    np.testing.assert_array_equal(inside, predict(model, data).scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_precision_is_computed_in_full_and_left_as_it_is(dtype):
    model = nn.Linear(5, 1).to(dtype)
    full = copy.deepcopy(model).float()
    np.testing.assert_allclose(predict(model, binary()).scores, predict(full, binary()).scores, atol=1e-6)
    assert model.weight.dtype == dtype


class Functional(nn.Module):
    """Ends in a sigmoid or softmax that is no module of its own."""

    def __init__(self, outputs, end):
        super().__init__()
        self.linear, self.end = nn.Linear(5, outputs), end

    def forward(self, x):
        return self.end(self.linear(x))


def calibrated(z, threshold=0.3):
    """What torchxrayvision puts on top: the operating point moves to one half."""
    p = z.sigmoid()
    return torch.where(p < threshold, p / (2 * threshold), 1 - (1 - p) / (2 * (1 - threshold)))


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (lambda: Functional(1, torch.sigmoid), binary),
        (lambda: Functional(1, lambda z: torch.sigmoid(z).squeeze(1)), binary),
        (lambda: Functional(1, lambda z: torch.cat([1 - z.sigmoid(), z.sigmoid()], 1)), binary),
        (lambda: Functional(2, lambda z: z.softmax(1)), binary),
        (lambda: Functional(3, lambda z: z.softmax(1)), lambda: several("multiclass")),
        (lambda: Functional(3, torch.sigmoid), lambda: several("multilabel")),
        (lambda: Functional(1, calibrated), binary),
    ],
)
def test_a_model_that_gives_probabilities_is_refused(model, data):
    with pytest.raises(CheckpointError, match="--answer-is probabilities"):
        predict(model(), data())


def test_the_double_sigmoid_would_have_called_everyone_positive():
    model, data = Functional(1, torch.sigmoid), binary()
    assert (torch.sigmoid(model(data.inputs(slice(None)))) >= 0.5).all()  # the defect
    with pytest.raises(CheckpointError):
        predict(model, data)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (lambda: Functional(1, torch.sigmoid), binary),
        (lambda: Functional(1, lambda z: z.sigmoid().squeeze(1)), binary),
        (lambda: Functional(1, calibrated), binary),
        (lambda: Functional(2, lambda z: z.softmax(1)), binary),
        (lambda: Functional(3, lambda z: z.softmax(1)), lambda: several("multiclass")),
        (lambda: Functional(3, torch.sigmoid), lambda: several("multilabel")),
    ],
)
def test_probabilities_that_are_said_to_be_some_are_the_models_own(model, data):
    network, rows = read_as(model(), answer_is="probabilities"), data()
    own = network(rows.inputs(slice(None))).detach().reshape(len(rows), -1)
    own = own[:, 1:] if own.shape[1] == 2 else own
    np.testing.assert_allclose(predict(network, rows).scores, own, atol=1e-6)


@pytest.mark.parametrize(
    ("end", "outputs", "data"),
    [
        (nn.Sigmoid(), 1, binary),
        (nn.Softmax(1), 2, binary),
        (nn.LogSoftmax(1), 3, lambda: several("multiclass")),
        (nn.LogSigmoid(), 1, binary),
        (nn.Sigmoid(), 3, lambda: several("multilabel")),
    ],
)
def test_a_last_activation_is_stepped_over_and_said(end, outputs, data):
    body, rows = nn.Linear(5, outputs), data()
    found, plain = predict(nn.Sequential(body, end), rows), predict(body, rows)
    np.testing.assert_array_equal(found.scores, plain.scores)
    (said,) = [one for one in found.assumed if one.subject == "answer"]
    assert type(end).__name__ in said.value
    assert said.option == "--answer-is"


@pytest.mark.parametrize(
    ("model", "data", "complaint"),
    [
        (nn.Sequential(nn.Linear(5, 3), nn.Sigmoid()), lambda: several("multiclass"), "--multi-label"),
        (nn.Sequential(nn.Linear(5, 3), nn.Softmax(1)), lambda: several("multilabel"), "leave out --multi-label"),
        (nn.Sequential(nn.Linear(5, 1), nn.Softmax(1)), binary, "same for every input"),
    ],
)
def test_a_last_activation_that_does_not_go_with_the_labels_is_refused(model, data, complaint):
    with pytest.raises(ArchitectureError, match=complaint):
        predict(model, data())


def test_what_is_said_to_be_probabilities_and_is_none_is_refused():
    with pytest.raises(CheckpointError, match="are no probabilities"):
        predict(read_as(nn.Linear(5, 1), answer_is="probabilities"), binary())
    with pytest.raises(CheckpointError, match="not to 1, so they are no classes"):
        predict(read_as(Functional(3, torch.sigmoid), answer_is="probabilities"), several("multiclass"))


@pytest.mark.parametrize("shift", [0.5, -50.0])
def test_logits_that_happen_to_lie_in_a_range_are_no_probabilities(shift):
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.mul_(1e-3)
        model.bias.fill_(shift)
    assert len(predict(model, several("multiclass"))) == 30


def test_logits_can_be_said_to_be_some_where_they_look_otherwise():
    model, rows = Functional(1, lambda z: z.tanh() * 0.1 + 0.5), binary()
    with pytest.raises(CheckpointError, match="every answer is between 0 and 1"):
        predict(model, rows)
    own = torch.sigmoid(model(rows.inputs(slice(None)))).detach()
    np.testing.assert_allclose(predict(read_as(model, answer_is="logits"), rows).scores, own, atol=1e-6)


@pytest.mark.parametrize(
    "answer",
    [
        lambda features, label, other: (features, label),
        lambda features, label, other: {"map": features, "grade": label},
        lambda features, label, other: (features, {"inner": [label]}),
        lambda features, label, other: {"other": other, "logits": label},
    ],
)
def test_the_only_part_of_the_answer_that_fits_is_taken(answer):
    model, rows = Parts(answer), binary()
    assert predict(model, rows).scores.tolist() == predict(model.label, rows).scores.tolist()
    assert not vars(model).keys() - vars(Parts(answer)).keys(), "the model comes back without a note"


def test_of_several_parts_that_fit_one_has_to_be_named():
    model, rows = Parts(lambda features, label, other: (other, label)), binary()
    with pytest.raises(ArchitectureError, match=r"2 parts of .* 0 \(8, 1\), 1 \(8, 1\)\. Name .*--answer"):
        predict(model, rows)
    assert predict(read_as(model, answer="1"), rows).scores.tolist() == predict(model.label, rows).scores.tolist()
    with pytest.raises(ArchitectureError, match=r"no part 'grade': it holds 0 "):
        predict(read_as(model, answer="grade"), rows)


class Parts(nn.Module):
    """Features, a label and another head, handed on as `answer` puts them together."""

    def __init__(self, answer):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.label, self.other, self.answer = nn.Linear(5, 7), nn.Linear(5, 1), nn.Linear(5, 1), answer

    def forward(self, x):
        return self.answer(self.body(x), self.label(x), self.other(x))


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (lambda: Functional(1, lambda z: nn.functional.dropout(z, 0.5)), "answers differently each time"),
        (lambda: nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 1)), "first: '0'"),
        (lambda: Functional(1, lambda z: z - z.mean(0)), "depends on which others are in its batch"),
    ],
)
def test_a_model_whose_answer_is_not_the_rows_own_is_refused(model, complaint):
    network, rows = model(), binary()
    with pytest.raises(ArchitectureError, match=complaint):
        predict(network, rows)
    with pytest.raises(ArchitectureError, match=complaint):
        debias(network, rows, rows, allow_shared_rows=True)


@pytest.mark.parametrize("inner", [nn.Sigmoid(), nn.SiLU(), nn.Softmax(1)])
def test_a_sigmoid_inside_the_model_is_no_reason_to_refuse_it(inner):
    assert len(predict(nn.Sequential(nn.Linear(5, 4), inner, nn.Linear(4, 1)), binary())) == 30


def test_a_zeroed_head_gives_logits_of_zero_and_is_not_refused():
    for outputs, data in ((1, binary()), (2, binary()), (3, several("multiclass"))):
        model = nn.Linear(5, outputs)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        assert np.ptp(predict(model, data).scores) == 0


def test_a_model_that_changes_its_input_in_place_is_heard_too():
    class Careless(nn.Linear):
        def forward(self, x):
            x -= 1
            return super().forward(x)

    data, model = binary(), Careless(5, 1)
    first, second = predict(model, data).scores, predict(model, data).scores
    np.testing.assert_array_equal(first, second)


def test_logits_that_are_not_finite_are_an_error_that_names_rows():
    data = binary()
    inputs = data.inputs(slice(None)).clone()
    inputs[4] = math.nan
    broken = from_arrays(inputs, data.targets, data.groups, attributes=[SEX])
    with pytest.raises(NonFiniteError, match=r"1 of 30 samples are not finite \(first: rows 4\)"):
        predict(nn.Linear(5, 1), broken)


@pytest.mark.parametrize(
    ("outputs", "data", "options", "says"),
    [
        (3, binary, {}, "expected 1 or 2"),
        (2, binary, {"multi_label": True}, "expected 1"),
        (4, lambda: several("multiclass"), {}, "expected 3"),
        (2, lambda: several("multilabel"), {}, "expected 3"),
    ],
)
def test_outputs_that_do_not_fit_the_data_are_an_error(outputs, data, options, says):
    with pytest.raises(DataError, match=says):
        predict(nn.Linear(5, outputs), data(), **options)


def test_a_batch_size_of_nothing_is_an_error():
    with pytest.raises(ConfigError, match="batch_size is 0"):
        predict(nn.Linear(5, 1), binary(), batch_size=0)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"scores": [0.1, 1.2]}, DataError, r"\[0, 1\]"),
        ({"scores": [0.1, math.nan]}, DataError, r"\[0, 1\]"),
        ({"scores": [0.1, 0.2, 0.3], "targets": [0, 1, 0]}, DataError, "3 scores, but another number"),
        ({"targets": [0, 2]}, DataError, "other than 0 and 1"),
        ({"groups": [0, 2]}, GroupError, "'sex' has the group id 2"),
        ({"groups": [[0, 0], [1, 1]]}, DataError, "2 columns of groups"),
        ({"clusters": np.array([1])}, DataError, "another number"),
        ({"scores": np.full((2, 3), 0.1), "targets": [0, 1], "task": "multiclass"}, DataError, "3 columns"),
    ],
)
def test_predictions_that_do_not_fit_together_are_refused(change, error, says):
    with pytest.raises(error, match=says):
        Predictions(**{"scores": [0.1, 0.9], "targets": [0, 1], "groups": [0, 1], "attributes": (SEX,), **change})


@given(seed=st.integers(0, 2**31), n=st.integers(4, 60))
@settings(max_examples=60, deadline=None)
def test_the_threshold_picked_is_as_good_as_the_best_of_all(seed, n):
    random = np.random.default_rng(seed)
    scores, targets = random.integers(0, 20, n) / 20, random.integers(0, 2, n)
    targets[:2] = 0, 1
    predictions = Predictions(scores, targets, np.zeros(n, int), (SEX,))
    picked = pick_threshold(predictions)
    tried = [balanced_accuracy_score(targets, scores >= cut) for cut in np.unique(scores)]
    found = balanced_accuracy_score(targets, scores >= picked)
    # Calling everyone positive, or nobody, is left out: it is worth 0.5.
    assert found == pytest.approx(max(tried[1:], default=0.5))
    assert picked not in scores or len(tried) == 1


def test_a_threshold_is_picked_over_all_labels_and_not_for_classes():
    scores = np.array([[0.1, 0.2], [0.4, 0.3], [0.2, 0.6], [0.9, 0.7]])
    targets = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    options = {"groups": [0, 1, 0, 1], "attributes": (SEX,), "classes": ("a", "b")}
    assert pick_threshold(Predictions(scores, targets, task="multilabel", **options)) == pytest.approx(0.35)
    classes = Predictions(np.full((2, 2), 0.5), np.eye(2), [0, 1], (SEX,), task="multiclass", classes=("a", "b"))
    with pytest.raises(ConfigError, match="largest score decides"):
        pick_threshold(classes)


def test_no_threshold_is_picked_without_both_labels():
    with pytest.raises(DataError, match="only positives or only negatives"):
        pick_threshold(Predictions([0.1, 0.2], [0, 0], [0, 1], (SEX,)))


def test_a_constant_model_has_the_usual_threshold():
    assert pick_threshold(Predictions([0.3, 0.3], [0, 1], [0, 1], (SEX,))) == 0.5
