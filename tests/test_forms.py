"""Every form of checkpoint that bmft knows, made small by its own library, through the commands and back."""

import pytest

from benchmarks.forms import FORMS
from benchmarks.roundtrip import COLUMNS, through

# Large for what they add: three other MONAI networks are recognised, and another one is named.
SLOW = ("MONAI SEResNet", "MONAI DenseNet121, named")
# One of each kind of library.
QUICK = ("torchvision, its reference training's checkpoint", "Hugging Face ViT")


def mark(name):
    """Forms of a library whose others are run, too, are left to `make test-ci`."""
    return pytest.mark.slow if name in SLOW else () if name in QUICK else pytest.mark.ci


CASES = [pytest.param(form, marks=mark(form.name), id=form.name) for form in FORMS]


@pytest.mark.usefixtures("few_steps")  # what is made of a form does not depend on how well it was tuned
@pytest.mark.parametrize("form", CASES)
def test_a_form_goes_through_every_command_and_loads_again_by_its_own_library(form, tmp_path):
    if form.missing:
        pytest.skip(f"not installed: {', '.join(form.missing)}")
    assert through(form, tmp_path) == dict.fromkeys(COLUMNS, "yes")
