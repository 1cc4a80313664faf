import pytest
import torch
from torch import nn

from bmft.data import from_arrays
from bmft.errors import ArchitectureError, ConfigError
from bmft.inference import predict
from bmft.methods import debias


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_scripted_model_is_refused_with_the_way_out():
    model = torch.jit.trace(nn.Linear(4, 1), torch.zeros(2, 4))
    data = from_arrays(torch.randn(20, 4), torch.arange(20) % 2, torch.arange(20) // 10)
    for call in (lambda: predict(model, data), lambda: debias(model, data, data, allow_shared_rows=True)):
        with pytest.raises(ArchitectureError, match=r"ScriptModule.*load_state_dict"):
            call()


@pytest.mark.parametrize("given", ["model.pt", {}, None])
def test_what_is_no_module_is_refused_with_the_way_from_a_file(given):
    data = from_arrays(torch.randn(8, 2), [0, 1] * 4, [0, 0, 1, 1] * 2)
    for use in (predict, lambda one, rows: debias(one, rows, rows)):
        with pytest.raises(ConfigError, match=r"expected a torch\.nn\.Module; of a file bmft\.load_checkpoint"):
            use(given, data)
