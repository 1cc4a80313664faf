import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "own-loop.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize(("number", "needs"), [(1, "torch"), (2, "lightning"), (3, "transformers")])
@pytest.mark.filterwarnings("ignore")  # what Lightning and Transformers warn of is theirs
def test_a_worked_loop_moves_only_the_weights_of_the_mask(number, needs):
    pytest.importorskip(needs)
    names: dict = {}
    exec(BLOCKS[0], names)
    exec(BLOCKS[number], names)
    model, mask, before = names["model"], names["mask"], names["before"]
    moved = {name: (p.detach() != before[name]) for name, p in model.named_parameters()}
    assert sum(int(m.sum()) for m in moved.values()) > 0
    assert all(not (moved[name] & ~mask.tensors[name]).any() for name in moved)
    assert all(torch.isfinite(p).all() for p in model.parameters())
