"""Networks named with options, and functions named by package or by file."""

import pytest

from bmft.errors import ArchitectureError
from bmft.models import build_model, shapes_of

CODE = """
from torch import nn
from beside import WIDTH

class Net(nn.Module):
    def __init__(self, depth, sizes=(8,), num_classes=None, *, name="x"):
        super().__init__()
        self.said = (depth, sizes, name)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, size) for size in sizes)
        self.fc = nn.Linear(WIDTH, num_classes)
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 4")
    (tmp_path / "net.py").write_text(CODE)
    return f"{tmp_path}/net.py:Net"


def test_a_class_in_a_file_is_called_with_literals(net):
    model = build_model(f"{net}(3, sizes=(8, 16), name=wide)", num_outputs=5)
    assert model.said == (3, (8, 16), "wide")
    assert shapes_of(model.state_dict())["fc.weight"] == (5, 4)


def test_options_may_follow_after_commas_too(net):
    assert build_model(f"{net},depth=1,sizes=(8,16),num_classes=2").said == (1, (8, 16), "x")


def test_what_the_checkpoint_says_fills_in_what_the_name_leaves_out(net):
    model = build_model(f"{net}(sizes=(2,))", settings={"depth": 7, "sizes": (9,), "lr": 0.1, "num_classes": 3})
    assert model.said == (7, (2,), "x")
    assert shapes_of(model.state_dict())["fc.weight"] == (3, 4)


@pytest.mark.parametrize("arch", ["{net}(", "{net}(a b)", "{net}(3, *x)", "{net}(**x)", "{net},3"])
def test_what_is_no_call_is_refused_with_an_example(net, arch):
    with pytest.raises(ArchitectureError):
        build_model(arch.format(net=net), num_outputs=2)


def test_a_missing_argument_is_named(net):
    with pytest.raises(ArchitectureError, match="depth"):
        build_model(net, num_outputs=2)


def test_a_file_that_is_not_there_and_one_that_cannot_be_imported_are_named(tmp_path):
    with pytest.raises(ArchitectureError, match=r"no.py does not exist"):
        build_model(f"{tmp_path}/no.py:Net")
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with pytest.raises(ArchitectureError, match=r"bad.py cannot be imported.*nothing_of_this_name"):
        build_model(f"{tmp_path}/bad.py:Net")


def test_an_unknown_class_of_a_file_gets_a_suggestion(net):
    with pytest.raises(ArchitectureError, match="Did you mean 'Net'"):
        build_model(net.replace(":Net", ":Nett"))
