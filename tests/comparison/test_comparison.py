import json
import math
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bmft.comparison import Budget, Comparison, World, compare, write_comparison
from bmft.comparison.references import REFERENCES, ReferenceInput
from bmft.comparison.runner import trials_of
from bmft.comparison.trials import Trial, counted_passes, known_methods, run_trial, trial_key
from bmft.data import from_arrays
from bmft.errors import ConfigError, WorkerError
from bmft.inference import audit, predict
from bmft.models import Activations
from bmft.report import page
from bmft.report.comparison_page import comparison_page
from bmft.training import Conditions, Limits

QUICK = Budget(epochs=(1, 1), path=(1.0,), tuning=1, seeds=2)
FEW = ["bmft", "dfr", "threshold"]


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bmft.methods.losses.ENOUGH", 1)
        patch.setattr("bmft.comparison.trials.RESAMPLES", 20)
        yield


def sets():
    generator = torch.Generator().manual_seed(0)
    label, group = (torch.randint(2, (300,), generator=generator) for _ in range(2))
    x = torch.randn(300, 4, generator=generator)
    x[:, 0] += 1.5 * label + 0.9 * group
    return from_arrays(x, label, group, clusters=torch.arange(300) // 2).split(0.4, 0.3, 0.3, seed=0)


@pytest.fixture(scope="module")
def world():
    fit, select, test = sets()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(50):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(fit.inputs(slice(None)))[:, 0], fit.targets.float())
        loss.backward()
        optimizer.step()
    return World(model.eval(), fit, select, test, {"clinic": select})


@pytest.fixture(scope="module")
def comparison(world):
    return compare(world, methods=[*FEW, "threshold_optimizer"], budget=QUICK)


def result(method, seed, gap, auc=0.9, trial=0, select=None, before=0.2, kept=True, harm=()):
    def figures(gap, auc):
        values = {
            "gap": gap,
            "roc_auc": auc,
            "worst_group_roc_auc": auc,
            "balanced_accuracy": 0.8,
            "equalized_odds_difference": gap,
        }
        return {name: {"value": value, "interval": [value - 0.05, value + 0.05]} for name, value in values.items()}

    return {
        "method": method,
        "seed": seed,
        "trial": trial,
        "accepted": kept,
        "harm": list(harm),
        "before": figures(before, 0.9),
        "after": figures(gap, auc),
        "change": figures(gap - before, auc - 0.9),
        "moved": 0.05,
        "image_passes": 100,
        "seconds": 1.0,
        "wall_seconds": 1.0,
        "leakage": {"sex": {"before": 0.7, "after": 0.6}},
        "evaluations": {},
        "select": {"gap": gap if select is None else select},
        "evaluated_on": "test",
        "n": 50,
    }


def made_up(*results):
    budget = {"epochs": (5, 5), "tuning": 2, "seeds": 2, "path": (1.0,)}
    return Comparison(results, budget, Limits(), {"oxonfair": "not installed"}, {"bmft": "0.1"}, ("sex",))


def test_every_method_is_measured_on_the_same_rows_against_the_same_original(world, comparison):
    assert {row.method for row in comparison.rows} == {*FEW, "threshold_optimizer"}
    before = audit(world.model, world.test, intervals=False)
    untouched = comparison.untouched.figures
    assert untouched["roc_auc"]["mean"] == pytest.approx(before.overall["roc_auc"])
    assert untouched["gap"]["mean"] == pytest.approx(before.gaps["group"]["average_odds_difference"])
    assert untouched["equalized_odds_difference"]["mean"] == pytest.approx(
        before.gaps["group"]["equalized_odds_difference"]
    )
    low, high = untouched["gap"]["on_data"]
    assert low < untouched["gap"]["mean"] < high


def test_a_site_is_measured_too_and_the_leakage(comparison):
    row = next(row for row in comparison.rows if row.method == "dfr")
    assert 0 <= row.evaluations["clinic"]["gap"]["mean"] <= 1
    assert 0 <= row.leakage["group"] <= 1


def test_the_model_is_not_changed_and_the_extractors_of_heads_alone_leak_alike(world, comparison):
    leak = comparison.untouched.leakage["group"]
    head_only = [row.leakage["group"] for row in comparison.rows if row.method in ("dfr", "threshold")]
    assert head_only == [leak, leak]
    assert not world.model._forward_hooks


def test_a_second_run_reads_what_the_first_has_finished(world, tmp_path, monkeypatch):
    first = compare(world, methods=FEW, budget=QUICK, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(first.results) == 6
    monkeypatch.setattr("bmft.comparison.runner.run_trial", lambda *_: pytest.fail("run again"))
    assert compare(world, methods=FEW, budget=QUICK, folder=tmp_path).to_dict() == first.to_dict()


def test_an_interrupted_comparison_goes_on_with_what_is_missing(world, tmp_path, monkeypatch):
    seen = []

    def stop_at_third(world, trial):
        seen.append(trial)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return run_trial(world, trial)

    monkeypatch.setattr("bmft.comparison.runner.run_trial", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        compare(world, methods=FEW, budget=QUICK, folder=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.iterdir())) == 2
    compare(world, methods=FEW, budget=QUICK, folder=tmp_path)
    assert len(seen) == 3 + 4


def test_half_a_file_is_run_again(world, tmp_path):
    budget = Budget(epochs=(1, 1), path=(1.0,), tuning=1, seeds=1)
    compare(world, methods=["threshold"], budget=budget, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    compare(world, methods=["threshold"], budget=budget, folder=tmp_path)
    assert json.loads(path.read_text())["after"] == whole["after"]


def test_other_data_conditions_settings_and_seeds_are_other_results(world):
    trial = Trial("bmft", 0, 0, QUICK.config("bmft", 0, {}))
    other_world = World(world.model, world.fit, world.test, world.select)
    keys = {
        trial_key(world.fingerprint(), trial),
        trial_key(other_world.fingerprint(), trial),
        trial_key(
            World(
                world.model, world.fit, world.select, world.test, world.sites, Conditions(threshold=0.4)
            ).fingerprint(),
            trial,
        ),
        trial_key(world.fingerprint(), Trial("bmft", 1, 0, trial.config)),
        trial_key(world.fingerprint(), Trial("bmft", 0, 0, {**trial.config, "fraction": 0.2})),
    }
    assert len(keys) == 5


def test_every_method_gets_the_same_number_of_tuning_trials_and_passes():
    budget = Budget(epochs=(5, 5), path=(0.5, 1.0), tuning=2, seeds=1)
    trials = trials_of(["bmft", "rw", "head", "dfr"], budget, {})
    assert [trial.method for trial in trials] == ["bmft", "bmft", "rw", "rw", "head", "head", "dfr"]
    assert trials[2].config["epochs"] == (8, 0)
    assert trials[1].config["lr"] == tuple(3 * rate for rate in trials[0].config["lr"])


def test_an_unknown_method_is_named():
    with pytest.raises(ConfigError, match="did you mean 'dfr'"):
        trials_of(["dfrr"], QUICK, {})


def test_passes_of_a_copy_are_counted():
    model = nn.Linear(2, 1)
    with counted_passes(model) as passes:
        model(torch.zeros(7, 2))
        assert passes() == 7
    model(torch.zeros(7, 2))
    assert passes() == 7


def test_image_passes_are_what_a_method_costs(comparison, world):
    passes = {row.method: row.image_passes for row in comparison.rows}
    # dfr reads the fit features once and looks at select once per strength.
    # The rest are the few rows on which the answer is settled and looked into.
    assert passes["dfr"] == pytest.approx(len(world.fit) + 7 * len(world.select), abs=150)
    assert passes["threshold"] < 3 * len(world.select)


@pytest.mark.ci
def test_two_processes_give_what_one_gives(world):
    budget = Budget(epochs=(1, 1), path=(1.0,), tuning=1, seeds=1)
    options = {"methods": ["head", "bmft"], "budget": budget}
    one, two = compare(world, **options), compare(world, jobs=2, **options)
    for a, b in zip(one.results, two.results, strict=True):
        for name in ("method", "select", "moved", "reason", "image_passes", "config"):
            assert a[name] == b[name]


def test_trials_share_what_they_have_in_common_and_each_is_what_it_is_by_itself(world):
    trials = [
        Trial("bmft", 0, 0, QUICK.config("bmft", 0, {})),
        Trial("swift", 0, 0, QUICK.config("swift", 0, {})),
        Trial("bmft", 1, 1, QUICK.config("bmft", 1, {})),
        Trial("head", 0, 0, QUICK.config("head", 0, {})),
        Trial("threshold", 0, 0, QUICK.config("threshold", 0, {})),
    ]
    together = replace(world, activations=Activations())
    shared = [run_trial(together, trial) for trial in trials]
    assert together.activations.spared > 0
    for trial, found in zip(trials, shared, strict=True):
        alone = run_trial(replace(world, activations=Activations()), trial)
        for name in alone.keys() - {"seconds", "wall_seconds"}:
            assert found[name] == alone[name], (trial.method, name)


def test_a_method_that_refuses_is_listed_with_its_reason(world):
    x = world.fit.inputs(slice(None))
    labels = torch.arange(len(x)) % 3
    data = from_arrays(x, labels, world.fit.groups)
    torch.manual_seed(0)
    several = World(nn.Linear(4, 3), data, data, None)
    found = compare(several, allow_shared_rows=True, methods=["threshold", "threshold_optimizer"], budget=QUICK)
    assert "binary label" in found.problems["threshold"]
    assert "binary label" in found.problems["threshold_optimizer"]
    assert found.verdict() == ["No method gave a result, so there is nothing to compare."]
    assert "binary label" in page.markdown(comparison_page(found.to_dict()))


@pytest.mark.ci
@pytest.mark.parametrize("name", ["oxonfair", "oxonfair_inferred"])
def test_oxonfair_is_a_reference_marked_by_what_it_needs(world, name):
    pytest.importorskip("oxonfair")
    found = compare(world, methods=["threshold", name], budget=QUICK)
    row = found.rows[-1]
    assert row.method == name, "references come last"
    assert row.kind == {"oxonfair": "attribute at inference", "oxonfair_inferred": "extra head"}[name]
    assert row.figures["gap"]["mean"] < found.untouched.figures["gap"]["mean"]
    assert row.figures["balanced_accuracy"]["mean"] > 0.55
    assert "roc_auc" not in row.figures, "decisions rank nothing"
    assert row.kind in page.markdown(comparison_page(found.to_dict()))
    assert any("of every new case" in line for line in found.verdict())


def test_with_the_attribute_rows_of_unknown_group_keep_the_models_own_decision(world):
    pytest.importorskip("oxonfair")
    unknown = world.test.groups.clone()
    unknown[::3] = -1
    test = from_arrays(world.test.inputs(slice(None)), world.test.targets, unknown, attributes=world.test.attributes)
    before, select = predict(world.model, test), predict(world.model, world.select)
    case = ReferenceInput(world.model, None, world.fit, world.select, test, select, before)
    own = before.decisions(0.5)[::3]
    for name in ("oxonfair", "threshold_optimizer"):
        assert (REFERENCES[name].decide(case).scores[::3] == own).all()
    guessed = REFERENCES["oxonfair_inferred"].decide(case).scores
    assert guessed.shape == before.scores.shape
    assert set(np.unique(guessed)) <= {0.0, 1.0}


def test_references_refuse_what_they_cannot_do_by_name(world, monkeypatch):
    groups = torch.arange(len(world.fit)) % 5
    data = from_arrays(world.fit.inputs(slice(None)), world.fit.targets, groups)
    several = World(world.model, data, data, None)
    found = compare(several, allow_shared_rows=True, methods=["oxonfair", "oxonfair_inferred"], budget=QUICK)
    assert "at most 4 groups, not 5" in found.problems["oxonfair"]
    assert "at most 3 groups, not 5" in found.problems["oxonfair_inferred"]
    monkeypatch.setattr("bmft.comparison.references.find_spec", lambda _: None)
    assert not {"oxonfair", "oxonfair_inferred"} & set(known_methods())
    with pytest.raises(ConfigError, match=r"bmft\[references\]"):
        compare(world, methods=["oxonfair"], budget=QUICK)


def test_figures_of_the_rows_that_chose_say_so():
    chosen = {**result("rw", 0, 0.1), "evaluated_on": "select"}
    assert "expect somewhat less on new data" in page.markdown(comparison_page(made_up(chosen).to_dict()))
    assert "expect" not in made_up(result("rw", 0, 0.1)).where


def test_the_tuning_trial_with_the_smaller_gap_on_select_counts_for_its_seed():
    found = made_up(result("bmft", 0, 0.1, select=0.15), result("bmft", 0, 0.05, trial=1, select=0.12))
    (row,) = found.rows
    assert row.figures["gap"]["mean"] == pytest.approx(0.05)
    assert row.trials == 2
    assert row.seeds == 1
    assert row.figures["gap"]["over_seeds"] is None


def test_the_interval_over_seeds_is_students():
    found = made_up(*(result("bmft", seed, gap) for seed, gap in enumerate((0.10, 0.12, 0.14))))
    low, high = found.rows[0].figures["gap"]["over_seeds"]
    assert (low + high) / 2 == pytest.approx(0.12)
    assert (high - low) / 2 == pytest.approx(4.3027 * 0.02 / math.sqrt(3), rel=1e-3)


def test_the_verdict_names_the_smallest_gap_that_keeps_the_auc_and_what_it_cannot_tell_apart():
    found = made_up(
        *(result("bmft", seed, 0.05 + 0.001 * seed) for seed in range(3)),
        *(result("rw", seed, 0.15 + 0.001 * seed) for seed in range(3)),
        *(result("head", seed, gap) for seed, gap in enumerate((0.02, 0.2, 0.01))),
        *(
            result("reg", seed, 0.01, harm=["ROC AUC of sex=male 0.900 -> 0.800 (limit 0.02)"] * (seed > 0))
            for seed in range(3)
        ),
    )
    first, *others = found.verdict()
    assert "bmft leaves the smallest gap: 0.051 against 0.200 untouched" in first
    assert others == [
        "Over the seeds its gap is smaller than that of rw (paired 95 % interval).",
        "These seeds do not tell it from head: take the one that moves or costs least.",
    ]


def test_a_verdict_without_a_winner_says_so():
    assert made_up(result("rw", 0, 0.3), result("rw", 1, 0.2)).verdict()[0].startswith("No method made")
    assert (
        made_up(result("rw", 0, 0.1, harm=["lower"]), result("rw", 1, 0.01)).verdict()[0].startswith("No method made")
    )


def test_the_three_files_hold_the_same_and_the_page_needs_no_network(comparison, tmp_path):
    html_file = write_comparison(comparison, tmp_path / "out")
    assert {path.name for path in html_file.parent.iterdir()} == {"compare.html", "compare.json", "compare.md"}
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["schema"] == 1
    assert [row["method"] for row in written["methods"]] == [row.method for row in comparison.rows]
    html, markdown = html_file.read_text(), Path(html_file.with_name("compare.md")).read_text()
    for text in (html, markdown):
        assert "threshold_optimizer" in text
        assert "attribute at inference" in text
        assert "clinic" in text
    assert "<svg" in html
    assert 'src="http' not in html
    assert "<script" not in html


def test_a_method_that_could_not_be_measured_is_a_dash():
    nothing = result("bmft", 0, 0.1)
    nothing["after"]["worst_group_roc_auc"] = {"value": None, "interval": None}
    assert "–" in page.html(comparison_page(made_up(nothing).to_dict()))
    assert np.isnan(made_up(nothing).rows[0].figures["worst_group_roc_auc"]["mean"])


def test_a_worker_that_dies_is_one_clear_line(world, monkeypatch):
    def submit(self, *_):
        future = Future()
        future.set_exception(BrokenProcessPool("died"))
        return future

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    budget = Budget(epochs=(1, 1), path=(1.0,), tuning=1, seeds=1)
    with pytest.raises(WorkerError, match="--jobs 1 if memory is short"):
        compare(world, methods=["head", "dfr"], budget=budget, jobs=2)
