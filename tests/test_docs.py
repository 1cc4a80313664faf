import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "own-loop.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.ci
@pytest.mark.parametrize(("number", "needs"), [(1, "torch"), (2, "lightning"), (3, "accelerate")])
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


def test_every_test_that_the_page_of_defects_names_exists():
    page = (PAGE.parent / "published-defects.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    defined = set()
    for path in Path(__file__).parent.rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    assert len(named) > 20
    assert not named - defined


def test_the_tree_in_design_names_every_room_and_none_that_is_not_there():
    root = PAGE.parent.parent
    tree = (root / "DESIGN.md").read_text().split("```")[1]
    named = {name.rstrip("/") for name in re.findall(r"(?:^|  )(\w+(?:/|\.py)) ", tree, re.MULTILINE)}
    there = {path.name for path in (root / "bmft").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named == there


def test_every_file_that_readme_and_design_name_exists():
    root = PAGE.parent.parent
    for page in (
        "README.md",
        "DESIGN.md",
        "CONTRIBUTING.md",
        *(f"docs/{path.name}" for path in (root / "docs").glob("*.md")),
    ):
        named = re.findall(r"`((?:bmft|cli|tests|benchmarks|docs)/[\w./]+)`", (root / page).read_text())
        assert all((root / path).exists() for path in named), page
