"""The house's rules, read off the imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room is a package or a file of bmft/. It imports from earlier rows only.
ROWS = (
    "errors",
    "_common stats",
    "tables settings",
    "auditing",
    "gate report",  # no torch up to here
    "compute fairness",
    "data",
    "datasets models",
    "checkpoints inference masks",
    "training",
    "methods",
    "fairtune comparison testing",
)
TORCHLESS = 5
ROW = {room: number for number, row in enumerate(ROWS) for room in row.split()}
LIBRARY = sorted((ROOT / "bmft").rglob("*.py"))
COMMANDS = sorted((ROOT / "cli").rglob("*.py"))
EVERYTHING = [*LIBRARY, *COMMANDS, *sorted((ROOT / "benchmarks").rglob("*.py"))]


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, anywhere in it; ``from bmft import data`` is bmft.data."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not (node.level and path in LIBRARY), f"{path.name}: the library imports by full name"
            module = node.module or ""
            yield from (f"bmft.{name.name}" for name in node.names) if module == "bmft" else (module,)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "bmft").with_suffix("").parts[0]


def ours(path: Path) -> list[list[str]]:
    """The modules of bmft that a file imports, as lists of their parts after ``bmft``."""
    return [name.split(".")[1:] for name in imports(path) if name.startswith("bmft.")]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", LIBRARY, ids=names(LIBRARY))
def test_imports_go_upwards_only(path):
    room = room_of(path)
    if room == "__init__":
        return
    for imported, *_ in ours(path):
        assert imported in ROW, f"{room} imports {imported}, which has no row"
        assert imported == room or ROW[imported] < ROW[room], f"{room} imports {imported}, which is not above it"


@pytest.mark.parametrize("path", EVERYTHING, ids=names(EVERYTHING))
def test_a_package_is_imported_by_its_name(path):
    for imported, *inside in ours(path):
        own = path in LIBRARY and imported == room_of(path)
        assert own or not inside, f"{path.name} imports bmft.{imported}.{'.'.join(inside)}, an inner file"


@pytest.mark.parametrize("package", sorted((ROOT / "bmft").glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_the_files_of_a_package_import_each_other_in_no_circle(package):
    inner = {path.stem: path for path in package.parent.glob("*.py") if path != package}
    needs = {
        stem: {parts[1] for parts in ours(path) if len(parts) > 1 and parts[0] == package.parent.name}
        for stem, path in inner.items()
    }
    while free := [stem for stem, wanted in needs.items() if not wanted & set(needs)]:
        for stem in free:
            del needs[stem]
    assert not needs


@pytest.mark.parametrize("package", sorted((ROOT / "bmft").glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_no_module_has_the_name_of_a_function_that_its_package_exports(package):
    own, tree = f"bmft.{package.parent.name}", ast.parse(package.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != own]
    exported = {alias.asname or alias.name for node in nodes for alias in node.names}
    assert not exported & {path.stem for path in package.parent.glob("*.py")}


def test_every_room_has_its_row_and_the_house_stays_small():
    rooms = {room_of(path) for path in LIBRARY} - {"__init__"}
    assert rooms == set(ROW)
    assert len([*rooms, "__init__", "cli", "benchmarks"]) <= 24


@pytest.mark.parametrize("half", [" ".join(ROWS[:TORCHLESS]).split()], ids=["measuring"])
def test_the_measuring_half_runs_where_torch_cannot_be_imported(half):
    code = (
        "import sys\nclass NoTorch:\n    def find_spec(self, name, *_):\n        assert name.split('.')[0] != 'torch'\n"
        f"sys.meta_path.insert(0, NoTorch())\nimport {', '.join(f'bmft.{room}' for room in half)}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("captum", {"attribution.py", "importance.py", "pixels.py"}),
        ("optuna", {"searching.py", "study.py", "search_speed.py"}),
        ("click", {path.name for path in COMMANDS}),
        ("pydicom", {"dicom.py", "images.py"}),
        ("transformers", {"forms.py", "huggingface.py", "processors.py"}),
        (
            "timm",
            {
                "building.py",
                "forms.py",
                "processors.py",
                "make_architecture_index.py",
                "precision.py",
                "vit_search.py",
                "checkpointing.py",
            },
        ),
        ("jinja2", {"page.py"}),
        ("matplotlib", {"charts.py", "figures.py"}),
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


def test_a_name_means_one_class():
    places: dict[str, list[str]] = {}
    for path in [*LIBRARY, *COMMANDS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_rules_themselves_can_fail(tmp_path, monkeypatch):
    wrong = tmp_path / "bmft" / "masks" / "mask.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("from bmft.methods.debiasing import debias\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "LIBRARY", [wrong])
    with pytest.raises(AssertionError, match="not above"):
        test_imports_go_upwards_only(wrong)
    with pytest.raises(AssertionError, match="inner file"):
        test_a_package_is_imported_by_its_name(wrong)
