"""Folds: their models choose and are measured on what they did not learn from, one more learns from every row."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import bmft
from bmft.data import from_arrays
from bmft.errors import ConfigError, ConstantPredictorError, DataError
from bmft.inference import predict
from bmft.methods import cross_fit, debias, folds_of
from bmft.methods.cross_fitting import crossable
from bmft.methods.table import METHODS, settings_for
from bmft.models import mark, reading_of
from tests.tiers import in_ci
from tests.training.test_resume import Killed, same

# `whole` is made once, by whichever test comes first.
pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"strengths": [1.0, 4.0], "epochs": [2, 1], "batch_size": 16, "fraction": 0.3, "depth": 1.0}
LOOSE = {"max_auc_drop": 0.3, "max_group_auc_drop": 0.5, "max_calibration_rise": 1.0}


def patients(n=300, agreement=0.5, seed=1):
    """A label that some features show, and a group that others show plainly; they agree as often as told."""
    generator = torch.Generator().manual_seed(seed)
    groups = (torch.rand(n, generator=generator) < 0.5).long()
    targets = torch.where(torch.rand(n, generator=generator) < agreement, groups, 1 - groups)
    inputs = torch.randn(n, 6, generator=generator)
    inputs[:, :3] += (2 * targets[:, None] - 1) * 0.6
    inputs[:, 3:] = inputs[:, 3:] * 0.3 + 2 * groups[:, None] - 1
    return from_arrays(inputs, targets, groups)


@cache
def trained():
    """A network that learned where group and label nearly always agree, and takes the one for the other."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 1))
    batch = patients(600, agreement=0.85, seed=2).take(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(batch.inputs)[:, 0], batch.targets.float()).backward()
        optimizer.step()
    return model


def network():
    return copy.deepcopy(trained())


def run(model=None, data=None, *, config=(), die_at=None, seen=None, **options):
    seen = [] if seen is None else seen

    def progress(now):
        seen.append(now)
        if len(seen) == die_at:
            raise Killed

    options = {"device": "cpu", "intervals": False, "folds": 3, **LOOSE, **options}
    return cross_fit(
        network() if model is None else model,
        patients(300) if data is None else data,
        config=QUICK | dict(config),
        progress=progress,
        **options,
    )


@cache
def whole():
    """The outcome of `run` as it is, and what it reported on the way."""
    seen = []
    return run(seen=seen), seen


def unmoved(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def clustered(n=120, each=4):
    data = patients(n)
    batch = data.take(slice(None))
    return from_arrays(batch.inputs, batch.targets, batch.groups, clusters=np.arange(n) // each)


def test_a_patient_is_in_one_fold_and_every_row_in_exactly_one():
    data = clustered()
    held_out, said = folds_of(data, 5, seed=3)
    assert sorted(torch.cat(held_out).tolist()) == list(range(len(data)))
    people = [set(data.clusters[rows].tolist()) for rows in held_out]
    assert sum(map(len, people)) == len(set.union(*people)) == 30
    assert "5 folds" in said.value
    assert not said.guess


def test_groups_and_labels_are_spread_over_the_folds_alike():
    data = patients(400)
    for rows in folds_of(data, 4)[0]:
        for group in (0, 1):
            for label in (0, 1):
                count = [int(((data.groups[r, 0] == group) & (data.targets[r] == label)).sum()) for r in (rows, ...)]
                assert abs(count[0] - count[1] / 4) <= 2


def test_of_few_patients_there_are_fewer_folds_and_it_is_said():
    held_out, said = folds_of(clustered(12, each=4), 5)
    assert len(held_out) == 3
    assert "3 folds instead of 5, as there are no more patients" in said.value
    with pytest.raises(DataError, match="12 rows of 1 patient"):
        folds_of(clustered(12, each=12), 5)
    with pytest.raises(ConfigError, match="at least 2"):
        folds_of(clustered(), 1)


def test_a_group_of_fewer_patients_than_folds_is_named():
    data = patients(100)
    groups = torch.zeros(100, dtype=torch.long)
    groups[:3] = 1
    targets = torch.arange(100) % 2
    said = folds_of(from_arrays(data.inputs(slice(None)), targets, groups), 5)[1]
    assert "in fewer images than folds: group=1, label 0 (2), group=1, label 1 (1)" in said.value
    assert said.guess


def test_every_figure_is_of_a_model_that_did_not_learn_from_the_row(few_steps):
    """An oracle by hand: a fold's candidate is `debias` on the other folds, ended at that strength."""
    model, data = network(), patients(300)
    outcome = run(model, data, keep="last", folds=3)
    head = outcome.report.history[-1]
    assert head.step == 2
    found = outcome.after.predictions
    for rows in folds_of(data, 3)[0]:
        others = torch.ones(len(data), dtype=torch.bool).index_fill(0, rows, False).nonzero().flatten()
        alone = debias(
            model,
            data.subset(others),
            data.subset(rows),
            config=QUICK,
            keep="last",
            device="cpu",
            intervals=False,
            **LOOSE,
        )
        expected = predict(alone.model, data.subset(rows), device="cpu").scores
        np.testing.assert_allclose(found.scores[rows.numpy()], expected, atol=1e-6)
    original = predict(model, data, device="cpu")
    np.testing.assert_allclose(outcome.before.predictions.scores, original.scores, atol=1e-7)
    assert np.array_equal(found.rows, original.rows)


def test_the_model_that_comes_out_learned_from_every_row_up_to_the_chosen_strength():
    model, data = network(), patients(300)
    outcome = run(model, data, config={"strengths": [1.0, 4.0, 8.0], "epochs": [3, 0]})
    chosen = next(entry for entry in outcome.report.history if entry.chosen)
    assert outcome.accepted
    assert chosen.step == 1
    # By hand: the same training on every row; what is to be said of its candidates is that one's.
    place = [1.0, 4.0, 8.0].index(chosen.strength) + 1
    whole = debias(
        model,
        data,
        data,
        config=QUICK | {"strengths": [1.0, 4.0, 8.0][:place], "epochs": [place, 0]},
        keep="last",
        allow_shared_rows=True,
        device="cpu",
        intervals=False,
        **LOOSE,
    )
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(outcome.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.ci
def test_as_many_of_all_rows_are_positive_as_before():
    model, data = network(), patients(300)
    outcome, _ = whole()
    assert outcome.accepted
    number = [int((predict(one, data, device="cpu").scores >= 0.5).sum()) for one in (model, outcome.model)]
    assert abs(number[0] - number[1]) <= 1


def test_the_outcome_says_what_kind_of_figures_these_are():
    outcome, _ = whole()
    report = outcome.report
    assert report.evaluated_on == report.kind == "out of fold"
    assert outcome.before.n == outcome.after.n == 300
    assert report.config["folds"] == outcome.patch.recipe["folds"] == 3
    assert "out of fold, corrected for the choice" in outcome.reason
    assert "select" not in outcome.reason
    assert report.claim["word"] in ("shown", "likely")
    assert outcome.patch.recipe["evidence"] == report.claim["word"]
    assert outcome.patch.recipe["fit_hash"] == report.hashes["fit"] == patients(300).content_hash
    assert any("3 folds" in one["value"] for one in outcome.before.assumed["splits"])
    html, markdown = bmft.report.to_html(report), bmft.report.to_markdown(report)
    for text in (html, markdown):
        assert "out of fold" in text
        assert "learned from every row" in text
    assert "bmft-folds: 3" in markdown
    assert report.to_dict()["kind"] == "out of fold"


def test_a_test_set_is_what_is_reported_on(few_steps):
    rows = patients(500)
    data, test = rows.split(0.6, 0.4)
    model = network()
    outcome = run(model, data, test=test)
    assert outcome.report.evaluated_on == "test"
    assert outcome.report.kind == "held out"
    np.testing.assert_allclose(
        outcome.after.predictions.scores, predict(outcome.model, test, device="cpu").scores, atol=1e-6
    )
    with pytest.raises(DataError, match="rows are fit rows too"):
        run(model, rows, test=test)


@pytest.mark.ci
def test_a_calibrated_model_still_says_where_it_decides():
    model = network()
    mark(model, replace(reading_of(model), threshold=0.4))
    outcome = run(model)
    assert outcome.accepted
    assert outcome.before.threshold == outcome.after.threshold == outcome.patch.recipe["threshold"] == 0.4
    assert reading_of(outcome.model).threshold == 0.4


@pytest.mark.ci
def test_calibrated_on_what_is_said_out_of_fold_it_decides_the_same_at_another_threshold():
    model, data, new = network(), patients(300), patients(400, seed=9)
    with torch.no_grad():
        model[-1].weight.mul_(3), model[-1].bias.mul_(3).add_(0.5)  # three times as sure as it should be
    plain, found = (run(copy.deepcopy(model), data, calibrate=calibrate) for calibrate in (False, True))
    assert found.report.calibration["rows"] == 300, "every row, by models that had not learned from it"
    cut = found.after.threshold
    assert cut != 0.5 == found.before.threshold
    assert found.patch.recipe["threshold"] == reading_of(found.model).threshold == cut
    old, said = (predict(one.model, new, device="cpu") for one in (plain, found))
    assert (old.decisions(0.5) == said.decisions(cut)).all()
    truth = new.targets.numpy()[:, None]
    assert ((said.scores - truth) ** 2).mean() < ((old.scores - truth) ** 2).mean() - 0.01
    pooled = [one.after.predictions for one in (plain, found)]
    assert (pooled[0].decisions(0.5) == pooled[1].decisions(cut)).mean() > 0.99
    assert found.after.overall["roc_auc"] == pytest.approx(plain.after.overall["roc_auc"])
    assert found.after.overall["brier_score"] < plain.after.overall["brier_score"] - 0.005


@pytest.mark.ci
def test_a_calibration_that_does_not_help_out_of_fold_changes_nothing_and_says_so(monkeypatch):
    from bmft.methods import calibrating

    plain, _ = whole()
    monkeypatch.setattr(calibrating, "log_loss", lambda predictions: 1.0)
    found = run(calibrate=True)
    assert found.report.calibration is None
    assert unmoved(found.model, plain.model)
    assert "--calibrate changed nothing" in found.reason


def test_harm_out_of_fold_keeps_the_original(monkeypatch, few_steps):
    from bmft.training import Selection

    def harm(self, report, leeway):
        return () if report is (self.untouched or report) else ("ROC AUC of x",)

    monkeypatch.setattr(Selection, "_harm", harm)
    model = network()
    outcome = run(model)
    assert not outcome.accepted
    assert unmoved(outcome.model, model)
    assert "the original is kept" in outcome.reason
    assert outcome.before.gaps == outcome.after.gaps


def test_a_model_of_every_row_that_does_harm_there_is_not_taken(monkeypatch):
    from bmft.training import Selection

    weighed = Selection.weighed

    def harmful(self):
        found = weighed(self)
        if self.rows == "on select":
            self.history[-1] = self.history[-1].__class__(**{**vars(self.history[-1]), "harm": ("ROC AUC of x",)})
            return 0, found[1]
        return found

    monkeypatch.setattr(Selection, "weighed", harmful)
    model = network()
    outcome = run(model)
    assert not outcome.accepted
    assert unmoved(outcome.model, model)
    assert "it does harm to the very rows it learned from (ROC AUC of x)" in outcome.reason
    assert outcome.before.gaps == outcome.after.gaps


@pytest.mark.ci
def test_the_last_epoch_is_kept_where_that_is_asked():
    outcome = run(keep="last", config={"epochs": [2, 0]})
    assert outcome.accepted
    assert outcome.report.history[-1].chosen
    assert outcome.report.history[-1].strength == 4.0


def test_without_epochs_the_original_is_kept():
    outcome = run(config={"epochs": [0, 0]})
    assert not outcome.accepted
    assert "no epoch was trained" in outcome.reason


@pytest.mark.parametrize("die_at", [13, *in_ci(1, 8, 20, 26, 30)])
def test_killed_in_any_fold_it_ends_with_the_same_bytes(tmp_path, die_at):
    outcome, seen = whole()
    assert die_at < len(seen)
    with pytest.raises(Killed):
        run(journal=tmp_path / "j", die_at=die_at)
    rest = []
    again = run(journal=tmp_path / "j", resume=True, seen=rest)
    same(again, outcome)
    assert again.report.claim == outcome.report.claim
    assert len(rest) <= len(seen) - die_at + 2


def test_a_journal_of_other_folds_or_of_none_is_refused(tmp_path, few_steps):
    with pytest.raises(Killed):
        run(journal=tmp_path / "j", die_at=6)
    with pytest.raises(ConfigError, match="another folds"):
        run(journal=tmp_path / "j", resume=True, folds=4)
    fit, select = patients(300).split(0.5, 0.5)
    with pytest.raises(ConfigError, match="another"):
        debias(network(), fit, select, config=QUICK, journal=tmp_path / "j", resume=True, device="cpu")


def test_one_bar_goes_through_all_folds_once():
    _, seen = whole()
    places = [now.place for now in seen]
    assert len({total for _, total, _ in places}) == 1
    done = [finished for finished, _, _ in places]
    assert done == sorted(done)
    assert done[-1] == places[0][1]
    phases = list(dict.fromkeys(phase for _, _, phase in places))
    assert phases[0] == "fold 1 of 3, step 1"
    assert "fold 3 of 3, step 2" in phases
    assert phases[-1].startswith("every row")


def written(outcome, folder):
    outcome.patch.save(folder / "patch.safetensors")
    return (folder / "patch.safetensors").read_bytes()


@pytest.mark.ci
def test_folds_in_two_processes_end_with_the_same_bytes_and_one_bar(tmp_path):
    outcome, alone = whole()
    seen = []
    found = run(jobs=2, seen=seen)
    same(found, outcome)
    assert written(found, tmp_path) == written(outcome, tmp_path)
    assert found.report.claim == outcome.report.claim
    assert found.report.seconds.keys() == outcome.report.seconds.keys()
    done = [now.finished for now in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].expected
    assert {now.expected for now in seen} == {now.expected for now in alone}
    told = [sorted((now.phase, now.done, now.total) for now in each) for each in (seen, alone)]
    assert told[0] == told[1]


@pytest.mark.ci
@pytest.mark.parametrize(("die_at", "jobs"), [(8, (2, 1)), (26, (1, 2))])
def test_a_run_that_was_killed_goes_on_with_another_number_of_processes(tmp_path, die_at, jobs):
    outcome, seen = whole()
    with pytest.raises(Killed):
        run(journal=tmp_path / "j", die_at=die_at, jobs=jobs[0])
    rest = []
    again = run(journal=tmp_path / "j", resume=True, seen=rest, jobs=jobs[1])
    same(again, outcome)
    assert written(again, tmp_path) == written(outcome, tmp_path)
    assert len(rest) <= len(seen) - die_at + 2


def test_what_other_processes_cannot_be_given_is_named_with_the_option():
    model = network()
    model.scale = lambda logits: logits
    with pytest.raises(ConfigError, match=r"lambda.*--jobs 1"):
        run(model, jobs=2)


@pytest.mark.parametrize(("jobs", "together"), [(0, 1), (2, 2)])
def test_processes_that_cannot_be_started_are_refused_before_anything_is_lost(tmp_path, monkeypatch, jobs, together):
    (tmp_path / "j").mkdir()
    monkeypatch.setattr("bmft.compute.distributed.count", lambda: together)
    with pytest.raises(ConfigError, match=f"jobs is {jobs}"):
        run(journal=tmp_path / "j", jobs=jobs)
    assert (tmp_path / "j").exists()


@pytest.mark.parametrize("method", ["head", "rw", "swift", "dfr"])
def test_a_method_without_rising_strengths_is_refused(method):
    with pytest.raises(ConfigError, match="folds need candidates"):
        cross_fit(network(), patients(), method=method)


def test_the_default_presets_of_bmft_and_random_mask_have_what_folds_need():
    assert [name for name in METHODS if crossable(name, settings_for(name))] == ["bmft", "random_mask"]


def test_a_network_that_says_one_thing_of_everybody_is_refused():
    model = network()
    with torch.no_grad():
        model[-1].bias.fill_(100.0)
    with pytest.raises(ConstantPredictorError, match="out of fold"):
        run(model)


@pytest.mark.ci
def test_a_fold_without_a_group_is_no_problem():
    data = patients(120)
    groups = torch.zeros(120, dtype=torch.long)
    groups[[0, 5, 9]] = 1
    data = from_arrays(data.inputs(slice(None)), data.targets, groups)
    outcome = run(None, data)
    assert outcome.before.n == 120


@pytest.mark.ci
def test_a_positive_class_that_comes_first_is_turned_and_back():
    model, data = network(), patients(300)
    two = copy.deepcopy(model)
    two[-1] = nn.Linear(12, 2)
    with torch.no_grad():
        two[-1].weight.copy_(torch.cat([model[-1].weight, torch.zeros(1, 12)]))
        two[-1].bias.copy_(torch.cat([model[-1].bias, torch.zeros(1)]))
    from dataclasses import replace

    outcome = run(two, replace(data, outputs_reversed=True))
    assert outcome.model.state_dict().keys() == two.state_dict().keys()
    assert outcome.before.overall["roc_auc"] == pytest.approx(whole()[0].before.overall["roc_auc"])


def test_what_is_said_of_every_fold_is_said_once():
    assert whole()[0].reason.count("no layer that carries the gap is as small") == 1
