import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from sklearn.metrics import roc_auc_score
from torch import nn

import bmft
from bmft.auditing import GOALS, Epoch, Violation
from bmft.errors import ConfigError, NonFiniteError
from bmft.fairtune import search_space
from bmft.fairtune.prior import different, first_points, importance_of_blocks
from bmft.fairtune.searching import _Search
from bmft.fairtune.space import Space
from bmft.methods import Progress, installed_methods, settings_for
from bmft.report.search_page import search_section
from bmft.settings import Settings
from bmft.training import Conditions
from tests.tiers import in_ci
from tests.upright import upright

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("few_steps")
FAST = {"epochs": [2, 1], "path": [1.0], "bias_weight": [1.0, 0.4]}
LOOSE = {"max_auc_drop": 0.3, "max_group_auc_drop": 0.4, "max_calibration_rise": 1.0}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 1),
    ).eval()


def parts(n=160, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets, groups = torch.arange(n) % 2, torch.arange(n) // 2 % 2
    inputs = torch.randn(n, 1, 8, 8, generator=generator) + (targets + 0.7 * groups)[:, None, None, None]
    return bmft.from_arrays(inputs, targets, groups).split(0.4, 0.4, 0.2)


def centred(model, select):
    with torch.no_grad():
        model[-1].bias -= model(select.inputs(slice(0, len(select)))).median()
    return model


def made():
    fit, select, test = parts()
    return centred(upright(network(), select), select), fit, select, test


@pytest.fixture
def task():
    return made()


def search(task, **options):
    model, fit, select, test = task
    config = bmft.METHODS[options.get("method", "bmft")].reading(FAST)
    defaults = {"trials": 3, "goal": "average_odds", "config": config, **LOOSE}
    return bmft.search(model, fit, select, test=test, **{**defaults, **options})


def kept(found):
    """Which of the runs at the end is the result."""
    return next(final["name"] for final in found.summary["finals"] if final["kept"])


def states(model):
    return model.state_dict()


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: torchvision.models.resnet18(num_classes=1), {"layer1.0/norm", "layer1.0/conv", "layer2.0/shortcut"}),
        (
            lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=1),
            {f"encoder.layers.encoder_layer_{i}/{part}" for i in (0, 1) for part in ("norm", "attention", "mlp")},
        ),
    ],
)
def test_the_space_has_a_switch_for_each_block_and_component_and_none_for_the_stem(build, expected):
    space = search_space(build().eval(), torch.zeros(2, 3, 32, 32), Settings())
    assert expected <= set(space.switches)
    assert not any("stem" in switch or "conv1/" in switch for switch in space.switches)
    names = [name for group in space.switches.values() for name in group]
    assert len(names) == len(set(names))


def test_by_layer_every_norm_of_a_block_has_its_own_switch():
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=1).eval()
    space = search_space(model, torch.zeros(2, 3, 32, 32), Settings(), detail="layer")
    assert {switch.rpartition("/")[2] for switch in space.switches} >= {"norm1", "norm2", "attention", "mlp"}


def test_a_timm_transformer_has_a_space():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=1).eval()
    space = search_space(model, torch.zeros(2, 3, 32, 32), Settings())
    assert {switch.rpartition("/")[2] for switch in space.switches} == {"norm", "attention", "mlp"}


def test_the_blocks_that_carry_the_gap_come_first_and_then_the_fixed_methods(task):
    model, fit, *_ = task
    found = search(task, trials=8)
    named = [trial["fixed"] for trial in found.summary["trials"]]
    base = settings_for("bmft", FAST)
    space = search_space(model, fit.inputs(slice(0, 2)), base)
    importance = importance_of_blocks(model, fit, space, base, Conditions(device="cpu"))
    prior = [name for name, _ in different(first_points(importance, space, base))]
    fixed = [name for name, _ in different([*first_points(importance, space, base), *space.fixed_points(base)])]
    assert named[: len(fixed)] == fixed
    assert fixed[: len(prior)] == prior
    assert {"head only", "norms only", "convolutions only"} < set(fixed)
    assert named[len(fixed) :] == [None] * (8 - len(fixed))


def test_a_blocks_importance_is_its_share_of_the_squared_gradient_of_the_gap(task):
    model, fit, *_ = task
    space = search_space(model, fit.inputs(slice(0, 2)), Settings())
    found = importance_of_blocks(model, fit, space, Settings(batch_size=7), Conditions(device="cpu"))
    logits = model(fit.inputs(slice(None))).double()
    gap = bmft.fairness.equalized_odds_gap(torch.sigmoid(logits), fit.targets[:, None], fit.groups[:, 0])
    gap.backward()
    squares = {name: float(parameter.grad.double().square().sum()) for name, parameter in model.named_parameters()}
    totals = {"0": 0.0, "3": 0.0}
    for switch, names in space.switches.items():
        totals[switch.rpartition("/")[0]] += sum(squares[name] for name in names)
    assert found == pytest.approx({block: total / sum(totals.values()) for block, total in totals.items()}, rel=1e-4)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.1, 0.6, 0.1, 0.2), [{"b"}, {"b"}, {"b", "c", "d"}]),
        ((0.1, 0.2, 0.4, 0.3), [{"c"}, {"c", "d"}, {"c", "d"}]),
        ((0.4, 0.0, 0.3, 0.3), [{"a"}, {"a", "c"}, {"a", "b", "c", "d"}]),
        ((0.0, 0.0, 0.0, 1.0), [{"d"}, {"d"}, {"d"}]),
        ((0.0, 0.0, 0.0, 0.0), []),
    ],
)
def test_first_are_the_most_important_block_those_with_half_of_the_importance_and_all_from_there_up(shares, expected):
    space = Space({f"{block}/conv": (f"{block}.weight",) for block in "abcd"}, ("trust", 0.02, 1.0))
    points = first_points(dict(zip("abcd", shares, strict=True)), space, Settings())
    switched = [{switch[0] for switch in space.switches if point[switch]} for _, point in points]
    assert switched == expected
    assert all(point["trust"] == Settings().trust for _, point in points)


def test_the_blocks_that_a_method_moves_by_itself_are_a_point_of_the_space(task):
    _, fit, select, _ = task
    torch.manual_seed(0)
    blocks = [m for i in range(6) for m in (nn.Conv2d(4 if i else 1, 4, 3, padding=1), nn.ReLU())]
    model = centred(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).eval(), select)
    base = settings_for("bmft", FAST)
    space = search_space(model, fit.inputs(slice(0, 2)), base)
    (name, point), *_ = space.fixed_points(base)
    assert (name, sum(point[switch] for switch in space.switches), len(space.switches)) == (
        "the method's own blocks",
        5,
        6,
    )
    runs = [
        bmft.debias(model, fit, select, config=config, keep="last", device="cpu")
        for config in (FAST, {**FAST, **space.settings(point, base)})
    ]
    assert runs[0].accepted
    for key, tensor in states(runs[0].model).items():
        assert torch.equal(tensor, states(runs[1].model)[key]), key


@pytest.mark.parametrize("seed", [0, *in_ci(1, 2)])
def test_a_search_ends_no_worse_than_the_method_by_itself(task, seed):
    model, fit, select, _ = task
    found = search(task, trials=1, seed=seed, config={"patience": 0})
    alone = bmft.debias(model, fit, select, config={"patience": 0}, seed=seed, device="cpu", **LOOSE)
    ends = {final["name"]: final for final in found.summary["finals"]}
    assert ends["bmft by itself"]["value"] == GOALS["average_odds"].of(alone.after)
    assert found.summary["select"] == min(final["value"] for final in ends.values() if final["harmless"])
    assert [final["kept"] for final in ends.values()].count(True) == 1


def test_a_run_at_the_end_that_does_harm_is_not_kept(task, monkeypatch):
    harm = Violation("the ROC AUC", 0.9, 0.5, 0.01)
    broken = iter([(), (harm,), (harm,), (harm,)])
    monkeypatch.setattr("bmft.fairtune.finals.violations", lambda *_: next(broken))
    finals = search(task, trials=2, config={"patience": 0}).summary["finals"]
    assert [final["harmless"] for final in finals] == [True, *[False] * (len(finals) - 1)]
    assert [final["kept"] for final in finals] == [True, *[False] * (len(finals) - 1)]


@pytest.mark.parametrize("error", [NonFiniteError, ConfigError])
def test_a_run_at_the_end_that_fails_is_told_and_the_others_stay(task, monkeypatch, error):
    real, alone = bmft.methods.debias, {"patience": 0}

    def diverging(*args, **options):
        if list(options["config"].epochs) != [4, 3]:
            raise error("the loss is nan")
        return real(*args, **options)

    monkeypatch.setattr("bmft.fairtune.finals.debias", diverging)
    summary = search(task, trials=1, config=alone).summary
    assert [final["name"] for final in summary["finals"] if final["kept"]] == ["winner"]
    assert "bmft by itself" in summary["finals_failed"]
    page = str(search_section(summary))
    assert "failed: the loss is nan" in page


def test_a_search_whose_every_run_at_the_end_diverges_says_so(task, monkeypatch, tmp_path):
    def diverging(*_, **__):
        raise NonFiniteError("the loss is nan")

    search(task, trials=1, storage=tmp_path / "study.log")
    monkeypatch.setattr("bmft.fairtune.finals.debias", diverging)
    with pytest.raises(NonFiniteError, match=r"no run at the search's end .* nan"):
        search(task, trials=1, storage=tmp_path / "study.log")  # whose trial is an earlier search's


def test_a_winner_of_this_search_is_not_run_again_and_is_the_same(task, tmp_path):
    options = {"storage": tmp_path / "study.log", "config": {"epochs": [2, 2]}}
    found, again = (search(task, **options) for _ in range(2))
    costs = [[final["image_passes"] for final in each.summary["finals"]] for each in (found, again)]
    assert costs[0][0] == 0 < costs[1][0]
    assert costs[0][1:] == costs[1][1:]
    assert found.summary["finals"][0]["value"] == again.summary["finals"][0]["value"]
    for key, tensor in states(found.outcome.model).items():
        assert torch.equal(tensor, states(again.outcome.model)[key]), key


def test_a_search_measures_pooled_predictions(task):
    model, _, select, _ = task
    report = bmft.audit(model, select, intervals=False, batch_size=7)
    scores, groups = bmft.predict(model, select).scores[:, 0], select.groups[:, 0].numpy()
    by_group = [roc_auc_score(select.targets.numpy()[groups == g], scores[groups == g]) for g in (0, 1)]
    assert GOALS["worst_group_auc"].of(report) == pytest.approx(min(by_group))
    losses = nn.functional.binary_cross_entropy(
        torch.from_numpy(scores), select.targets.double(), reduction="none"
    ).numpy()
    expected = max(losses[groups == g].mean() for g in (0, 1))
    assert GOALS["largest_group_loss"].of(report) == pytest.approx(expected, rel=1e-5)
    assert all(math.isfinite(goal.of(report)) for goal in GOALS.values())


def test_the_pruner_hears_of_every_epoch(task, tmp_path):
    found = search(task, trials=1, storage=tmp_path / "study", name="s", pruner="none", seed=2)
    assert kept(found) == "winner"
    study = optuna.load_study(study_name="s", storage=_journal(tmp_path / "study"))
    epochs = len(found.outcome.report.history) - 1
    assert len(study.trials[0].intermediate_values) == epochs > 2


@pytest.mark.parametrize(
    ("value", "harm", "earlier", "heard"),
    [(0.6, (), [], 0.6), (0.9, (), [], 0.9), (0.6, (), [0.7], 0.7), (0.9, ("x",), [], 0.8), (0.6, ("x",), [], 0.6)],
)
def test_the_pruner_hears_of_the_best_epoch_though_the_original_is_better_and_of_no_harm(value, harm, earlier, heard):
    name = "worst_group_auc"
    entry = Epoch(1, 1, 0.5, 0.1, value, value, 0.5, harm=harm, goals={name: value})
    own = SimpleNamespace(goals=(GOALS[name],), original=0.8)
    assert _Search.so_far(own, Progress("step 1", 1, 2, entry), earlier) == heard


def test_trials_share_the_untouched_models_predictions(task, monkeypatch):
    seen, predict = [], sys.modules["bmft.methods.run"].predict

    def counted(model, data, **options):
        seen.append(bmft.models.state_hash(model.state_dict()))
        return predict(model, data, **options)

    monkeypatch.setattr(sys.modules["bmft.methods.run"], "predict", counted)
    model, fit, select, _ = task
    bmft.search(model, fit, select, trials=5, goal="average_odds", config=FAST, **LOOSE)
    assert seen.count(bmft.models.state_hash(model.state_dict())) <= 2, "as it came, and as it is laid out for speed"


def _journal(path):
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.storages.JournalStorage(backend)


def test_trials_that_lag_are_stopped(task):
    config = {"epochs": [6, 0], "patience": 0}
    found = search(task, trials=9, method="selective", goal="largest_group_loss", keep="last", config=config)
    trials = found.summary["trials"]
    assert "pruned" in {trial["state"] for trial in trials}
    assert all(trial["image_passes"] for trial in trials), "what is stopped has cost something too"
    assert found.summary["image_passes"] > sum(trial["image_passes"] for trial in trials), "and so has the final run"


@pytest.mark.ci
def test_the_winners_learning_rate_is_carried_over(task, tmp_path):
    found = search(task, trials=6, storage=tmp_path / "study", name="s", pruner="none", seed=1)
    assert kept(found) == "winner"
    study = optuna.load_study(study_name="s", storage=_journal(tmp_path / "study"))
    winner = study.trials[found.summary["winner"]]
    assert found.settings["trust"] == winner.params["trust"]
    given = search(task, trials=2, config={**FAST, "lr": [1e-3, 1e-2]})
    assert given.settings["lr"][0] == pytest.approx(1e-3)
    assert tomllib.loads(found.to_toml())["settings"]["trust"] == winner.params["trust"]


def test_the_search_and_the_final_run_optimise_one_loss(task):
    found = search(task)
    assert {k: found.settings[k] for k in ("task_weight", "weigh", "balance", "objective")} == {
        k: settings_for("bmft", FAST).to_dict()[k] for k in ("task_weight", "weigh", "balance", "objective")
    }
    assert found.outcome.report.config["trust"] == found.settings["trust"]


def test_the_winners_file_gives_the_same_weights_and_the_value_that_won(task):
    model, fit, select, _ = task
    found = search(task, trials=4)
    read = tomllib.loads(found.to_toml())
    again = bmft.debias(model, fit, select, method=read["method"], config=read["settings"], seed=read["seed"], **LOOSE)
    for name, tensor in states(found.outcome.model).items():
        assert torch.equal(tensor, states(again.model)[name]), name
    assert GOALS["average_odds"].of(again.after) == pytest.approx(found.summary["select"], abs=0)


def test_a_trial_keeps_the_epoch_that_is_best_by_the_searchs_own_goal(task, monkeypatch):
    runs, debias = [], bmft.debias

    def watched(*args, **options):
        runs.append(debias(*args, **options))
        return runs[-1]

    monkeypatch.setattr(sys.modules["bmft.fairtune.searching"], "debias", watched)
    found = search(task, trials=1, goal="worst_group_auc")
    (trial,), (run,) = found.summary["trials"], runs
    assert run.report.config["choose"] == "worst_group_auc"
    eligible = [entry.goals["worst_group_auc"] for entry in run.report.history if entry.eligible]
    assert len(eligible) > 1
    assert trial["value"] == max(eligible)


def test_with_two_goals_the_epoch_is_kept_that_is_best_by_the_first(task):
    found = search(task, trials=2, goal="worst_group_accuracy", second_goal="average_odds")
    history = found.outcome.report.history
    chosen = next(entry for entry in history if entry.chosen)
    assert found.settings["choose"] == "worst_group_accuracy"
    assert chosen.goals["worst_group_accuracy"] == max(e.goals["worst_group_accuracy"] for e in history if e.eligible)


@pytest.mark.ci
def test_the_same_seed_searches_the_same_and_what_is_finished_counts(task, tmp_path):
    whole = search(task, trials=7)
    search(task, trials=3, storage=tmp_path / "study")
    resumed = search(task, trials=7, storage=tmp_path / "study")
    assert [t["value"] for t in resumed.summary["trials"]] == [t["value"] for t in whole.summary["trials"]]
    started = []
    search(task, trials=7, storage=tmp_path / "study", progress=started.append)
    assert all(now.inner is None or now.ending for now in started), "no trial is left to do"
    last = 3 if "lora" in installed_methods() else 2
    assert started[-1].ending == f"final run {last} of {last}"


def test_no_trial_sees_the_test_set_and_the_optimism_is_told(task):
    model, fit, select, _ = task
    blind = bmft.search(model, fit, select, trials=3, goal="average_odds", config=FAST, **LOOSE)
    seen = search(task)
    assert [t["value"] for t in blind.summary["trials"]] == [t["value"] for t in seen.summary["trials"]]
    assert blind.summary["test"] is None
    assert seen.summary["test"] == GOALS["average_odds"].of(seen.outcome.after)
    assert seen.outcome.report.evaluated_on == "test"


def test_the_winner_does_no_harm(task):
    loose = {"max_auc_drop": 0.1, "max_group_auc_drop": 0.2, "max_calibration_rise": 1.0}
    found = search(task, trials=6, goal="equalized_odds", keep="last", method="selective", **loose)
    before, after = (found.outcome.before, found.outcome.after)
    history = found.outcome.report.history
    kept = next(entry for entry in history if entry.chosen)
    assert kept.harm == ()
    assert before.n == after.n


def test_when_every_trial_does_harm_it_says_what_to_do(task, monkeypatch):
    harm = Violation("the ROC AUC", 0.9, 0.5, 0.01)
    monkeypatch.setattr(sys.modules["bmft.fairtune.searching"], "violations", lambda *_: (harm,))
    with pytest.raises(ConfigError, match="max-auc-drop"):
        search(task, trials=1)


def test_two_goals_make_a_front(task):
    found = search(task, trials=6, second_goal="auc")
    front = [(p["gap"], p["roc_auc"]) for p in found.summary["pareto"]]
    assert not any(a[0] < b[0] and a[1] > b[1] for a in front for b in front)


def test_select_can_be_cross_validated(task):
    found = search(task, trials=2, folds=2)
    assert all(math.isfinite(trial["value"]) for trial in found.summary["trials"] if trial["state"] == "complete")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "worst_group_acu"}, "worst_group_auc"),
        ({"pruner": "halfing"}, "halving"),
        ({"trials": 0}, "trials"),
        ({"also": ["fractoin"]}, "fraction"),
        ({"storage": "/no/such/folder/study"}, "no folder"),
    ],
)
def test_what_cannot_be_is_refused_by_name(task, options, message):
    with pytest.raises(ConfigError, match=message):
        search(task, **options)


SEVEN = {"trials": 7, "pruner": "none"}


@cache
def seven():
    return search(made(), **SEVEN)


@pytest.mark.ci
@pytest.mark.parametrize("lost", [1, 3, 6])
def test_a_trial_lost_on_the_way_changes_nothing(task, tmp_path, lost):
    whole = seven()

    def stop(now):
        if now.done == lost and now.inner:
            raise KeyboardInterrupt

    kept = {**SEVEN, "storage": tmp_path / "journal", "name": "same"}
    with pytest.raises(KeyboardInterrupt):
        search(task, progress=stop, **kept)
    again = search(task, **kept)
    trials = [sorted((t["value"], str(t["fixed"])) for t in found.summary["trials"]) for found in (whole, again)]
    assert trials[0] == trials[1]
    assert len(trials[0]) == 7
    one, two = (states(found.outcome.model) for found in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


WORKER = """
    import sys, time
    sys.path[:0] = {tests!r}
    import warnings; warnings.simplefilter("ignore")
    import bmft, bmft.fairtune.searching, bmft.methods.losses
    from test_fairtune import FAST, LOOSE, centred, network, parts
    from tests.upright import upright

    bmft.methods.losses.ENOUGH, bmft.fairtune.searching.installed_methods = 1, list  # few steps, and no run of LoRA
    fit, select, test = parts()
    slow = lambda now: time.sleep(0.2) if now.inner else None
    bmft.search(centred(upright(network(), select), select), fit, select, trials=6, goal="average_odds", config=FAST,
                storage={storage!r}, name="shared", pruner="none", progress=slow, **LOOSE)
"""


def start_worker(storage):
    code = textwrap.dedent(WORKER).format(
        tests=[str(Path(__file__).parents[up]) for up in (0, 2)], storage=str(storage)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "2000"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


@pytest.fixture
def postgresql(tmp_path):
    """The URL of a database that this test started on loopback."""
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not servers or os.getuid() != 0 or not shutil.which("runuser"):
        pytest.skip("no PostgreSQL server that this user can start (Debian: apt install postgresql)")
    programs, folder = servers[-1].parent, Path("/tmp") / f"bmft-postgres-{os.getpid()}"
    folder.mkdir()
    shutil.chown(folder, "postgres")
    as_postgres = ["runuser", "-u", "postgres", "--"]
    port = 50_000 + os.getpid() % 10_000
    try:
        for command in (
            [programs / "initdb", "-D", folder / "data", "-A", "trust"],
            [
                programs / "pg_ctl",
                "-D",
                folder / "data",
                "-w",
                "-l",
                folder / "log",
                "-o",
                f"-p {port} -k {folder} -h 127.0.0.1",
                "start",
            ],
        ):
            subprocess.run([*as_postgres, *map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd="/")
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        stop = [*as_postgres, str(programs / "pg_ctl"), "-D", str(folder / "data"), "-m", "immediate", "stop"]
        subprocess.run(stop, check=False, stdout=subprocess.DEVNULL, cwd="/")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["journal", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_two_workers_share_a_study_and_a_killed_ones_trial_is_run_again(kind, tmp_path, request):
    storage = tmp_path / "study" if kind == "journal" else request.getfixturevalue("postgresql")
    place = _journal(storage) if kind == "journal" else optuna.storages.RDBStorage(storage)
    if kind == "postgresql":
        request.addfinalizer(place.engine.dispose)
        request.addfinalizer(place.remove_session)
    first, second = start_worker(storage), None
    try:
        victim = wait_for_running(place)
        second = start_worker(storage)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert second.wait(timeout=120) == 0
    finally:
        for worker in (first, second):
            if worker is not None and worker.poll() is None:
                worker.kill()
                worker.wait()
    trials = optuna.load_study(study_name="shared", storage=place).trials
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == 6
    assert not [trial for trial in trials if trial.state.name == "RUNNING"]
    lost = trials[victim]
    assert lost.state.name == "FAIL"
    again = [trial for trial in complete if trial.user_attrs.get("instead_of") == victim]
    assert len(again) == 1
    assert lost.params.items() <= again[0].params.items()
    fixed = [tuple(sorted(trial.params.items())) for trial in complete]
    assert len(set(fixed)) == 6, "no point was run twice"


def wait_for_running(place):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if "shared" in [summary.study_name for summary in optuna.get_all_study_summaries(place)]:
            trials = optuna.load_study(study_name="shared", storage=place).trials
            # In mid-trial: at least one epoch was reported.
            running = [t.number for t in trials if t.state.name == "RUNNING" and t.intermediate_values]
            if running:
                return running[0]
        time.sleep(0.05)
    raise AssertionError("no trial began")


@pytest.mark.ci
def test_without_optuna_a_search_names_the_extra_and_the_rest_works():
    code = textwrap.dedent("""
        import sys
        sys.modules["optuna"] = None
        import torch
        import bmft
        from bmft.errors import MissingExtraError
        try:
            bmft.search
        except MissingExtraError as error:
            print(error)
        n = torch.arange(64)
        targets, groups = n % 2, n // 2 % 2
        data = bmft.from_arrays(torch.randn(64, 3) + (targets + 0.5 * groups)[:, None], targets, groups)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        config = {"epochs": [1, 1], "path": [1.0]}
        outcome = bmft.debias(model, data, data, config=config, keep="last", device="cpu", allow_shared_rows=True)
        print("debiased", outcome.accepted, bmft.audit(outcome.model, data).n)
        from bmft_cli.main import main
        print("ended", main(["search", "no.pt", "--data", "no.csv", "--label", "y", "--sensitive", "s"]))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'bmft[search]'" in done.stdout
    assert "debiased True 64" in done.stdout
    assert "ended 2" in done.stdout
    assert "pip install 'bmft[search]'" in done.stderr
    assert "Traceback" not in done.stderr
