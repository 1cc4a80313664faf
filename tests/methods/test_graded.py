"""Step 1 at rising strengths: few candidates at the original's share of positives, and a choice that is owned up to."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn

from bmft.data import from_arrays
from bmft.errors import ConfigError
from bmft.inference import predict
from bmft.methods import METHODS, debias, remeasured, settings_for
from bmft.methods.losses import graded, step_of
from bmft.methods.views import known_views
from bmft.models import penultimate_features
from bmft.training import Conditions
from tests.tiers import in_ci
from tests.training.test_resume import Killed, network, patients, same

QUICK = {"strengths": [1.0, 4.0], "epochs": [2, 1], "batch_size": 8}
LOOSE = {"max_auc_drop": 0.3, "max_group_auc_drop": 0.5, "max_calibration_rise": 1.0}


def run(model=None, *, data=None, folder=None, resume=False, die_at=None, **options):
    fit, select = (data or patients(300)).split(0.5, 0.5, seed=0)
    config, seen = QUICK | options.pop("config", {}), []

    def progress(now):
        seen.append((now.phase, now.done))
        if len(seen) == die_at:
            raise Killed

    options = {"device": "cpu", "intervals": False, "journal": folder, "resume": resume, **LOOSE, **options}
    return debias(model or network(), fit, select, config=config, progress=progress, **options), seen


def test_the_candidates_are_the_ends_of_the_strengths_and_one_trained_head():
    outcome, seen = run()
    entries = outcome.report.history[1:]
    assert [entry.strength for entry in entries if entry.step == 1] == [1.0, 4.0]
    heads = [entry for entry in entries if entry.step == 2]
    assert len(heads) == 1
    assert heads[0].strength in (1.0, 4.0)
    assert [done for phase, done in seen if phase == "step 1"] == list(range(1, len(seen)))


STRENGTHS = {"strengths": [1.0, 2.0, 3.0, 4.0], "epochs": [4, 1]}
NONE = {"max_auc_drop": 0.0, "max_group_auc_drop": 0.0, "max_overall_auc_drop": 0.0, "max_calibration_rise": 0.0}


def test_after_two_strengths_in_a_row_that_do_harm_there_is_no_third():
    outcome, _ = run(config=STRENGTHS, **NONE)
    assert [entry.strength for entry in outcome.report.history[1:]] == [1.0, 2.0]
    assert not outcome.accepted
    harmless, _ = run(config=STRENGTHS)
    assert [entry.strength for entry in harmless.report.history if entry.step == 1] == [1.0, 2.0, 3.0, 4.0]
    last, _ = run(config=STRENGTHS, **NONE, keep="last")
    assert last.report.history[-1].strength == 4.0, "the end was asked for, whatever it does"


@pytest.mark.ci
def test_a_path_that_ended_early_is_killed_and_goes_on_to_the_same_bytes(tmp_path):
    whole, seen = run(config=STRENGTHS, **NONE)
    with pytest.raises(Killed):
        run(folder=tmp_path / "j", die_at=len(seen), config=STRENGTHS, **NONE)
    again, _ = run(folder=tmp_path / "j", resume=True, config=STRENGTHS, **NONE)
    same(again, whole)


def positives(model, data):
    return int((predict(model, data, device="cpu").scores >= 0.5).sum())


@pytest.mark.parametrize("outputs", [2, *in_ci(1)])
def test_as_many_of_the_fit_rows_are_positive_as_before_unless_that_is_free(outputs):
    model = network()
    if outputs == 2:
        first = model[-1]
        model[-1] = nn.Linear(12, 2)
        with torch.no_grad():
            model[-1].weight.copy_(torch.cat([torch.zeros(1, 12), first.weight]))
            model[-1].bias.copy_(torch.cat([torch.zeros(1), first.bias]))
    fit, _ = patients(300).split(0.5, 0.5, seed=0)
    kept, _ = run(model, keep="last")
    assert kept.accepted
    assert abs(positives(kept.model, fit) - positives(model, fit)) <= 1
    free, _ = run(model, keep="last", config={"operating_point": "free"})
    assert abs(positives(free.model, fit) - positives(model, fit)) > 1


@cache
def whole_run():
    return run()


@pytest.mark.parametrize("die_at", [38, *in_ci(1, 10, 40, 77, 80)])
def test_killed_at_any_report_it_ends_with_the_same_bytes_and_the_same_claim(tmp_path, die_at):
    whole, seen = whole_run()
    die_at = min(die_at, len(seen))
    with pytest.raises(Killed):
        run(folder=tmp_path / "j", die_at=die_at)
    again, rest = run(folder=tmp_path / "j", resume=True)
    same(again, whole)
    assert again.report.claim == whole.report.claim
    assert len(rest) <= len(seen) - die_at + 2


def test_where_only_the_head_may_move_it_goes_through_the_strengths_itself():
    outcome, _ = run(config={"tune": ["4.*"]})
    assert {entry.step for entry in outcome.report.history} == {0, 1}
    assert {name.split(".")[0] for name in outcome.patch.changes} <= {"4"}


def test_a_choice_by_another_figure_takes_the_best_candidate_as_it_comes():
    outcome, _ = run(config={"choose": "auc"})
    assert outcome.report.claim is None
    assert len(outcome.report.history) <= 4


def test_every_strength_gets_its_share_of_the_epochs_and_enough_steps():
    settings = settings_for("bmft", {"epochs": [13, 5]})
    many, few = graded(settings, 1455), graded(settings, 480)
    assert [many.strengths.count(s) for s in settings.strengths] == [3, 2, 2, 2, 2, 2]
    assert (many.trust, many.average) == (settings.trust, settings.average)
    assert len(few.strengths) > 2 * len(many.strengths)
    assert few.trust < many.trust
    with pytest.raises(ConfigError, match="2 strengths for 3 epochs"):
        replace(step_of(settings, 0), epochs=3, strengths=(1.0, 2.0))


def test_only_rising_strengths_have_their_rate_searched_between_finer_steps():
    settings = settings_for("bmft", {"epochs": [13, 5]})
    steps = (graded(settings, 480), step_of(settings, 0))
    assert [(step.rate_factor, step.rate_between) for step in steps] == [(2.0, True), (3.0, False)]
    with pytest.raises(ConfigError, match=r"rate_factor 1\.0: expected more than 1"):
        replace(steps[0], rate_factor=1.0)


def test_the_old_choice_is_a_preset_and_the_published_method_another():
    assert not settings_for("bmft", {"preset": "path"}).strengths
    assert not settings_for("bmft", {"preset": "paper"}).strengths
    assert settings_for("bmft").strengths
    assert settings_for("swift") == METHODS["swift"].path
    with pytest.raises(ConfigError, match="expected one of default, path, paper"):
        settings_for("bmft", {"preset": "graded"})


def pictures(n=60):
    torch.manual_seed(0)
    return from_arrays(torch.rand(n, 1, 6, 6), torch.arange(n) % 2, (torch.arange(n) // 2) % 2)


class Sees(nn.Module):
    """Looks at the left half (no flip is alike), or at the mean of all (every flip is)."""

    def __init__(self, half):
        super().__init__()
        self.half, self.head = half, nn.Linear(1, 1)

    def forward(self, x):
        seen = x[..., :3, :3] if self.half else x
        return self.head(seen.mean((1, 2, 3))[:, None])


def test_flips_that_a_network_answers_alike_are_found():
    assert known_views(Sees(half=False), pictures(), ["auto"]) == ("hflip", "vflip")
    assert known_views(Sees(half=True), pictures(), ["auto"]) == ()
    assert known_views(Sees(half=True), pictures(), ["hflip"]) == ("hflip",)
    assert known_views(Sees(half=False), pictures(), ["none"]) == ()
    assert known_views(network(), patients(), ["auto"]) == ()


def test_flips_are_looked_for_in_the_precision_of_the_steps():
    net, half = Sees(half=False), []
    net.register_forward_pre_hook(lambda *_: half.append(torch.is_autocast_enabled("cpu")))
    precision = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    assert known_views(net, pictures(), ["auto"], autocast=precision) == ("hflip", "vflip")
    assert half
    assert all(half)


def test_auto_and_none_stand_alone():
    with pytest.raises(ConfigError, match="auto and none stand alone"):
        settings_for("bmft", {"views": ["auto", "hflip"]})


def test_the_report_says_which_views_were_seen():
    fit = pictures()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        model[-1].bias -= model(fit.take(slice(None)).inputs).median()
    outcome, _ = run(model, data=fit, keep="last", config={"views": ["hflip"]})
    assert outcome.report.config["views"] == ["hflip"]
    assert "views" not in outcome.report.before.assumed, "they were asked for"
    assert np.isfinite(outcome.report.history[-1].gap)


def test_flips_that_were_found_are_among_what_was_assumed_also_of_other_rows():
    fit, model = pictures(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1))
    with torch.no_grad():
        model[-1].bias -= model(fit.take(slice(None)).inputs).median()
    outcome, _ = run(model, data=fit, keep="last")
    (said,) = outcome.report.before.assumed["views"]
    assert "hflip, vflip" in said["value"]
    assert (said["option"], said["guess"]) == ("--views", False)
    again = remeasured(outcome, model, fit, "test", Conditions(device="cpu", intervals=False))
    assert again.report.after.assumed["views"] == outcome.report.after.assumed["views"]


def test_step_2_trains_on_what_its_candidate_was_judged_on(monkeypatch):
    computed = []

    def spied(*args, **options):
        computed.append(1)
        return penultimate_features(*args, **options)

    monkeypatch.setattr("bmft.methods.run.penultimate_features", spied)
    outcome, _ = run()
    assert [entry.step for entry in outcome.report.history[1:]] == [1, 1, 2]
    assert len(computed) == 2 * 2, "of fit and of select, at the end of each strength, and no more"
