"""Every form of checkpoint that bmft knows, made small by its own library, through the commands and back."""

import pytest

from benchmarks.forms import FORMS
from benchmarks.roundtrip import COLUMNS, through


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_goes_through_every_command_and_loads_again_by_its_own_library(form, tmp_path):
    if form.missing:
        pytest.skip(f"not installed: {', '.join(form.missing)}")
    assert through(form, tmp_path) == dict.fromkeys(COLUMNS, "yes")
