"""The house's rules, read off the imports."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = (
    ("errors", "files"),
    ("copies", "tables", "metrics"),
    ("data", "devices", "processes", "models", "fairness", "intervals", "bootstrap", "mask"),
    ("evidence",),
    ("checkpoint", "datasets", "audit", "importance", "finetune", "patch"),
    ("report", "goals", "leakage", "pixels", "plan", "scores", "verdict"),
    ("gate",),
    ("methods", "starter", "testing"),
    ("fairtune", "compare"),
)
# Modules that one room is made of; nobody else imports them. (A room may also be a package.)
INSIDE = {
    "data": ("arrays", "grouped", "images", "manifest", "strata"),
    "compare": ("comparison", "references", "trials"),
    "audit": ("predictions", "uncertainty"),
    "fairtune": ("finals", "space"),
    "finetune": ("activations", "course", "pooled", "stepping"),
    "methods": ("baselines", "journal", "lora", "run", "selection", "settings"),
    "models": ("architectures", "blocks", "heads"),
    "checkpoint": ("containers", "entries", "storage"),
    "gate": ("contrasts", "judgement", "policy", "sides", "tasks"),
}
ROOM = {module: room for room, modules in INSIDE.items() for module in modules}
ROW = {module: number for number, row in enumerate(ROWS) for module in row}
LIBRARY = sorted((ROOT / "bmft").rglob("*.py"))
EVERYTHING = [*LIBRARY, *sorted((ROOT / "cli").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; ``from bmft import data`` is bmft.data."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not (node.level and path in LIBRARY), f"{path.name}: the library imports by full name"
            module = node.module or ""
            yield from (f"bmft.{name.name}" for name in node.names) if module == "bmft" else (module,)


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "bmft").with_suffix("").parts[0]


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("bmft.")}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", LIBRARY, ids=names(LIBRARY))
def test_every_module_has_a_place_in_the_house(path):
    module = module_of(path)
    assert module == "__init__" or module in ROW or module in ROOM


@pytest.mark.parametrize("path", LIBRARY[1:], ids=names(LIBRARY[1:]))
def test_imports_go_upwards_only(path):
    module = module_of(path)
    room = ROOM.get(module, module)
    for imported in ours(path) - {module}:
        if ROOM.get(imported, imported) == room:
            assert module == room or imported != room, f"{module} imports the room it is part of"
        else:
            assert imported in ROW, f"{module} imports {imported}, a part of {ROOM.get(imported)}"
            assert ROW[imported] < ROW[room], f"{module} imports {imported}, which is not above it"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("captum", {"importance.py", "pixels.py"}),
        ("optuna", {"fairtune.py", "search_speed.py"}),
        ("click", {path.name for path in EVERYTHING if path.parent.name == "cli"}),
        ("pydicom", {"images.py"}),
        ("timm", {"models.py", "make_architecture_index.py", "precision.py", "vit_search.py"}),
        ("jinja2", {"page.py"}),
        ("matplotlib", {"comparison_page.py", "figures.py", "svg.py"}),
    ],
)
def test_a_package_is_imported_where_its_idea_lives(package, allowed):
    users = {path.name for path in EVERYTHING if any(name.split(".")[0] == package for name in imports(path))}
    assert users <= allowed


@pytest.mark.parametrize("path", LIBRARY, ids=names(LIBRARY))
def test_the_library_prints_nothing_and_reads_no_environment(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "input"}, f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"environ", "getenv", "argv"}, f"line {node.lineno}"


@pytest.mark.parametrize("path", LIBRARY, ids=names(LIBRARY))
def test_the_library_catches_nothing_broadly_and_asserts_nothing(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = "everything" if node.type is None else ast.unparse(node.type)
            assert caught not in {"everything", "Exception", "BaseException"}, f"line {node.lineno}"
        assert not isinstance(node, ast.Assert), f"line {getattr(node, 'lineno', 0)}"


def test_the_command_line_uses_no_inner_module():
    for path in EVERYTHING:
        if path not in LIBRARY:
            assert not ours(path) & set(ROOM), path


def test_the_rules_themselves_can_fail(tmp_path, monkeypatch):
    wrong = tmp_path / "bmft" / "mask.py"
    wrong.parent.mkdir()
    wrong.write_text("from bmft.methods import debias\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="not above"):
        test_imports_go_upwards_only(wrong)
