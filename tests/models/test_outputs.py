"""One of many outputs: found by its name or place, read as a label or a class, and apart from the others."""

import copy

import pytest
import torch
from torch import nn

import bmft
from bmft.data import from_arrays
from bmft.errors import ArchitectureError, BmftError, ConfigError
from bmft.models import (
    Head,
    OutputNames,
    find_head,
    forward_logits,
    forward_with_others,
    reading_of,
    reset_head,
    settle,
)

NAMES = ("Edema", "Pleural_Effusion", "", "Mass", "Mass")


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return from_arrays(torch.randn(40, 6, generator=generator), torch.arange(40) % 2, torch.arange(40) // 20)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Linear(6, 5)


def test_a_label_is_a_sigmoid_of_its_own_and_a_class_the_softmax_of_all(net, data):
    inputs = data.inputs(slice(None))
    logits = net(inputs)
    for kind, expected in (("label", logits.sigmoid()), ("class", logits.softmax(1))):
        scores = bmft.predict(bmft.read_as(net, output=3, output_is=kind), data).scores
        torch.testing.assert_close(torch.from_numpy(scores[:, 0]).float(), expected[:, 3].detach())


def test_the_others_of_a_class_are_the_softmax_without_it(net, data):
    inputs = data.inputs(slice(None))
    bmft.read_as(net, output=1, output_is="class")
    others = forward_with_others(net, inputs)[:, 1:].sigmoid()
    torch.testing.assert_close(others, net(inputs)[:, [0, 2, 3, 4]].softmax(1))


def test_of_two_outputs_one_is_read_as_a_class_unless_said(data):
    net = nn.Linear(6, 2)
    inputs = data.inputs(slice(None))
    for said, expected in ((None, net(inputs).softmax(1)), ("label", net(inputs).sigmoid())):
        found = bmft.predict(bmft.read_as(net, output=0, output_is=said), data)
        torch.testing.assert_close(torch.from_numpy(found.scores[:, 0]).float(), expected[:, 0].detach())
        assert any(one.guess for one in found.assumed) == (said is None)


@pytest.mark.parametrize(("last", "kind"), [(nn.Sigmoid(), "a yes or no"), (nn.Softmax(1), "one class")])
def test_the_last_activation_says_whether_the_outputs_are_labels_or_classes(net, data, last, kind):
    model = bmft.read_as(nn.Sequential(net, last), output=4)
    found = bmft.predict(model, data)
    torch.testing.assert_close(
        torch.from_numpy(found.scores[:, 0]).float(), model(data.inputs(slice(None)))[:, 4].detach()
    )
    (how,) = [one for one in found.assumed if one.option == "--output-is"]
    assert how.value.startswith(f"read as {kind}")
    assert how.source == "the model's last step"


class Squashed(nn.Module):
    """Probabilities that no module makes."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, inputs):
        return self.function(self.net(inputs))


@pytest.mark.parametrize("function", [torch.sigmoid, lambda logits: logits.softmax(1)])
def test_probabilities_are_read_as_they_are_and_their_sums_tell_classes(net, data, function):
    model = bmft.read_as(Squashed(net, function), output=2, answer_is="probabilities")
    expected = model(data.inputs(slice(None)))[:, 2].detach()
    torch.testing.assert_close(torch.from_numpy(bmft.predict(model, data).scores[:, 0]).float(), expected)


@pytest.mark.parametrize("kind", ["label", "class"])
def test_probabilities_that_nobody_spoke_of_are_refused(net, data, kind):
    model = Squashed(net, torch.sigmoid if kind == "label" else lambda logits: logits.softmax(1))
    with pytest.raises(BmftError, match="--answer-is probabilities"):
        bmft.predict(bmft.read_as(model, output=2, output_is=kind), data)


def test_a_kind_that_the_last_step_belies_is_refused(net, data):
    with pytest.raises(ConfigError, match="ends in a Softmax, whose outputs are classes"):
        bmft.predict(bmft.read_as(nn.Sequential(net, nn.Softmax(1)), output=0, output_is="label"), data)


@pytest.mark.parametrize("name", ["Pleural_Effusion", " pleural  effusion", "PLEURAL_EFFUSION", 1, "1"])
def test_a_name_counts_whatever_its_case_and_blanks(net, name):
    assert reading_of(bmft.read_as(net, output=name, names=NAMES)).output == 1


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("mass", "2 outputs are called 'mass': give the place, one of 3, 4"),
        ("", "no output is called"),
        ("Edma", "Did you mean 'Edema'"),
        (-1, "counted from 0"),
        ("-2", "counted from 0"),
    ],
)
def test_a_name_that_means_no_one_output_is_refused(net, output, problem):
    with pytest.raises(ConfigError, match=problem):
        bmft.read_as(net, output=output, names=NAMES)


def test_a_name_that_is_a_number_goes_before_the_place(net, data):
    model = bmft.read_as(net, output="1", names=list("12345"))
    assert reading_of(model).output == 0
    assert any(one.value == "number 0 of 5, from 0 on, 1" for one in bmft.predict(model, data).assumed)


def test_a_place_that_is_not_there_lists_those_that_are(net, data):
    with pytest.raises(ConfigError, match="the model has 5 outputs: 0 Edema, 1 Pleural_Effusion, 2, 3 Mass, 4 Mass"):
        bmft.predict(bmft.read_as(net, output=5, names=NAMES), data)


@pytest.mark.parametrize("count", [4, 6])
def test_names_of_another_number_do_not_tell_which(net, data, count):
    model = bmft.read_as(net, output="a", names=list("abcdef")[:count])
    with pytest.raises(ConfigError, match=f"has {count} names, and the model has 5 outputs"):
        bmft.predict(model, data)


def test_a_live_model_says_its_names_itself(net):
    net.pathologies = list(NAMES)
    assert reading_of(bmft.read_as(net, output="edema")).names == OutputNames(NAMES, "the model's pathologies", "label")


@pytest.mark.parametrize("targets", [torch.arange(40) % 3, torch.ones(40, 2).long()])
def test_an_output_is_about_one_label_of_two_values(net, data, targets):
    several = from_arrays(data.inputs(slice(None)), targets, torch.arange(40) // 20)
    with pytest.raises(ConfigError, match="name the one --label"):
        bmft.predict(bmft.read_as(net, output=1), several)


def test_several_labels_go_on_as_before_without_an_output(net, data):
    targets = torch.randint(0, 2, (40, 5), generator=torch.Generator().manual_seed(1))
    several = from_arrays(data.inputs(slice(None)), targets, torch.arange(40) // 20)
    found = bmft.predict(net, several)
    assert found.scores.shape == (40, 5)
    assert found.others is None


def test_the_output_is_the_positive_classs_also_where_that_is_the_first_of_the_classes(net, data):
    first = from_arrays(
        data.inputs(slice(None)), 1 - data.targets, data.groups, classes=("edema", "none"), positive="edema"
    )
    assert first.outputs_reversed
    bmft.read_as(net, output=2, output_is="label")
    assert (bmft.predict(net, first).scores == bmft.predict(net, data).scores).all()


def test_inside_a_wrapper_the_head_is_found_and_only_the_outputs_row_may_move(net):
    wrapped = bmft.read_as(nn.DataParallel(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), net)), output=1)
    head = find_head(wrapped, torch.zeros(2, 6), name="module.2")
    assert (head.name, head.output) == ("module.2", 1)
    rows = head.rows(wrapped)
    assert rows["module.2.weight"].any(1).tolist() == [False, True, False, False, False]
    assert rows["module.2.bias"].tolist() == [False, True, False, False, False]
    before = copy.deepcopy(net.state_dict())
    reset_head(wrapped, head)
    assert not net.weight[1].any()
    assert torch.equal(net.weight[[0, 2, 3, 4]], before["weight"][[0, 2, 3, 4]])


def test_a_head_without_a_row_for_each_output_is_refused(net):
    with pytest.raises(ArchitectureError, match="without a row for each of the 5 outputs"):
        Head("", ("weight",), 5, output=1).rows(nn.Linear(2, 6))


def test_what_is_noted_survives_a_copy_and_is_settled_once(net, data):
    settle(bmft.read_as(net, output=1, output_is="class"), data)
    again = copy.deepcopy(net)
    assert reading_of(again) == reading_of(net)
    assert torch.equal(forward_logits(again, data.inputs(slice(3))), forward_logits(net, data.inputs(slice(3))))
