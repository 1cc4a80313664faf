"""The workflows in docs/ci.md, and action.yml, run step by step: what a reader copies has to work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiers import in_ci

yaml = pytest.importorskip("yaml", reason="PyYAML reads the workflows")

ROOT = Path(__file__).parents[1]
POLICY = '[[check]]\nmetric = "true_positive_rate"\nsensitive = ["sex"]\nmax_difference = {}\n'


def workflows():
    """Every YAML block of the page, by its top-level name."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(), re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def predictions(path, drop):
    """Where `drop` is 0 both groups are alike; at 0.4 half of the men's positives are missed."""
    rng = np.random.default_rng(0)
    lines = ["y_true,y_score,sex,patient_id"]
    for i in range(1600):
        label, sex = i % 2, i // 2 % 2
        score = np.clip(0.5 + 0.3 * (2 * label - 1) + rng.normal(0, 0.1) - drop * sex * label, 0, 1)
        lines.append(f"{label},{score:.4f},{('female', 'male')[sex]},{i}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def runner(tmp_path):
    """A folder with `bmft` on the path, and a way to run a step's shell lines in it as a CI does."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "bmft").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bmft_cli "$@"\n')
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    ci = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": str(tmp_path / "out"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "sum"),
    }

    def run(lines, **variables):
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **ci, **variables}
        command = ["bash", "-eo", "pipefail", "-c", lines]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def action_variables(given):
    """The environment of the action's gate step, as GitHub fills it in."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    values = {name: given.get(name, rule["default"]) for name, rule in action["inputs"].items()}
    step = next(one for one in action["runs"]["steps"] if one.get("id") == "gate")
    pattern = re.compile(r"\$\{\{ inputs\.([\w-]+) \}\}")
    return step["run"], {key: pattern.sub(lambda m: values[m[1]], text) for key, text in step["env"].items()}


@pytest.mark.parametrize(
    ("drop", "limit", "code", "decision"),
    [(0.4, 0.1, 1, "fail"), *in_ci((0, 0.1, 0, "pass"), (0, 0.001, 3, "inconclusive"))],
)
def test_the_action_hands_on_what_the_gate_decides(runner, tmp_path, drop, limit, code, decision):
    predictions(tmp_path / "predictions.csv", drop)
    (tmp_path / "fairness.toml").write_text(POLICY.format(limit))
    step = next(one for one in workflows()[0]["jobs"]["gate"]["steps"] if one.get("id") == "gate")
    lines, variables = action_variables(step["with"])
    done = runner(lines, **variables)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "out").read_text().strip() == f"decision={decision}"
    assert "## Fairness gate" in (tmp_path / "sum").read_text()
    assert json.loads((tmp_path / "bmft-gate" / "gate.json").read_text())["decision"] == decision
    assert (tmp_path / "bmft-gate" / "gate.xml").is_file()
    assert ("::error" in done.stdout) == (code != 0)


def test_the_actions_inputs_cannot_become_commands(runner, tmp_path):
    lines, variables = action_variables({"predictions": "$(touch broken).csv", "args": "--cluster=`touch broken`"})
    assert runner(lines, **variables).returncode in (2, 4)
    assert not (tmp_path / "broken").exists()
    assert "${{" not in lines


@pytest.mark.ci
def test_the_gitlab_job_runs(runner, tmp_path):
    predictions(tmp_path / "predictions.csv", 0)
    (tmp_path / "fairness.toml").write_text(POLICY.format(0.1))
    job = next(one["fairness"] for one in workflows() if "fairness" in one)
    (line,) = (line for line in job["script"] if line.startswith("bmft"))
    assert runner(line).returncode == 0
    for path in [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]]:
        assert (tmp_path / path).is_file()


@pytest.mark.ci
def test_the_debiasing_workflow_runs_step_by_step(runner, study, tmp_path):
    for name in ("model.pt", "isic.csv", "img"):
        (shutil.copytree if name == "img" else shutil.copy)(study / name, tmp_path / name)
    more = '[[non_inferiority]]\nmetric = "roc_auc"\nmargin = 0.5\n'
    (tmp_path / "fairness.toml").write_text(POLICY.format(0.99).replace("true_positive", "false_positive") + more)
    (tmp_path / "bmft.toml").write_text('image-size = 32\n[debias]\nmethod = "head"\nepochs = 1\nkeep = "last"\n')
    steps = {one["name"]: one["run"] for one in workflows()[1]["jobs"]["debias"]["steps"] if "name" in one}
    assert list(steps) == ["Install", "Debias", "Fairness gate"]
    for name in ("Debias", "Fairness gate"):
        done = runner(steps[name])
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "gate.json").read_text())["decision"] == "pass"
