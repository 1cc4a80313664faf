"""What a command imports, and so what the first answer costs."""

import ast
import subprocess
import sys

import pytest

from benchmarks.first_use import BASES, BOUNDS, commands
from tests.tiers import in_ci

# Makes packages unimportable, then is what `python ARGUMENTS` would have been.
WITHOUT = """
import runpy, sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {banned}:
            raise AssertionError(name + " is imported")
sys.meta_path.insert(0, Missing())
sys.argv = ["bmft", *{arguments!r}]
runpy.run_module("bmft_cli", run_name="__main__", alter_sys=True)
"""
MEASURING = [what for what, (base, _) in BOUNDS.items() if base == "pandas, scipy.stats"]
QUICK = "bmft audit --predictions --report"  # what the others import, too


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_use")
    return folder, commands(folder)


def run_without(banned, arguments, folder):
    assert arguments[:2] == ("-m", "bmft_cli")
    code = WITHOUT.format(banned=banned, arguments=list(arguments[2:]))
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("what", [QUICK, *in_ci(*(what for what in MEASURING if what != QUICK))])
def test_what_only_measures_runs_where_torch_cannot_be_imported(files, what):
    folder, runs = files
    done = run_without(["torch", "torchvision", "captum", "sklearn", "fairlearn"], runs[what], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.ci
def test_inspect_imports_nothing_that_only_a_debiasing_or_a_report_needs(files):
    folder, runs = files
    # Not hidden as above: torch itself asks whether some of them are installed.
    code = (
        "import sys\nfrom bmft_cli.main import main\n"
        f"print(main({list(runs['bmft inspect'][2:])!r}), sorted({{n.split('.')[0] for n in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    code, loaded = done.stdout.splitlines()[-1].split(" ", 1)
    assert code == "0", done.stderr
    assert "torch" in loaded
    assert not {"captum", "sklearn", "matplotlib", "jinja2", "fairlearn", "optuna"} & set(ast.literal_eval(loaded))


def test_the_finder_that_hides_packages_hides_them(files):
    folder, runs = files
    assert "torch is imported" in run_without(["torch"], runs["bmft inspect"], folder).stderr


def test_importing_the_library_imports_no_other_package(files):
    code = "import sys; before = set(sys.modules); import bmft; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['bmft']"


@pytest.mark.ci
@pytest.mark.parametrize("what", ["bmft patch show", "bmft audit --predictions"])
def test_measuring_costs_no_more_than_the_packages_it_rests_on(files, what):
    import resource

    folder, runs = files

    def seconds(arguments):
        # Of the processor, which what else the machine does changes least.
        start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=True)
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start

    base, most = BOUNDS[what]
    least = {arguments: seconds(arguments) for arguments in (BASES[base], runs[what])}
    if least[runs[what]] > most * least[BASES[base]]:  # once more: what else the machine does may have delayed it
        least = {arguments: min(spent, seconds(arguments)) for arguments, spent in least.items()}
    assert least[runs[what]] <= most * least[BASES[base]]
