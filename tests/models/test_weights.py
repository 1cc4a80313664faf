import pytest
import torch
from torch import nn

from bmft.data import from_arrays
from bmft.errors import ArchitectureError
from bmft.inference import predict
from bmft.methods import debias


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_scripted_model_is_refused_with_the_way_out():
    model = torch.jit.trace(nn.Linear(4, 1), torch.zeros(2, 4))
    data = from_arrays(torch.randn(20, 4), torch.arange(20) % 2, torch.arange(20) // 10)
    for call in (lambda: predict(model, data), lambda: debias(model, data, data, allow_shared_rows=True)):
        with pytest.raises(ArchitectureError, match=r"ScriptModule.*load_state_dict"):
            call()
