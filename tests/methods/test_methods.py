import copy
import json
import math

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import bmft
from bmft import fairness
from bmft.auditing import GOALS
from bmft.data import FLIPS, GroupBatch, from_arrays
from bmft.errors import ConfigError, ConstantPredictorError, NothingFitsError
from bmft.masks.importance import SCORES
from bmft.methods import METHODS, debias, installed_methods, run as run_module, settings_for
from bmft.models import find_head
from bmft.settings import FACTS, Settings
from bmft.training.settings import OPTIMIZERS
from tests.tiers import in_ci

QUICK = {
    "preset": "path",
    "epochs": (3, 3),
    "fraction": 0.3,
    "batch_size": 32,
    "lr": (0.05, 0.05),
    "path": 1.0,
    "bias_weight": (1.0, 0.4),
}


def patients(seed=0):
    """Breast-cancer rows with a planted group whose readings are shifted towards malignant."""
    features, malignant = load_breast_cancer(return_X_y=True)
    x = torch.tensor(features, dtype=torch.float32)
    x, y = (x - x.mean(0)) / x.std(0), torch.tensor(1 - malignant)
    generator = torch.Generator().manual_seed(seed)
    group = (torch.rand(len(x), generator=generator) < 0.3).long()
    shift = torch.randn(x.shape[1], generator=generator).abs()
    x = x + group[:, None] * shift * 0.8 + 0.6 * torch.randn(x.shape, generator=generator)
    return from_arrays(x, y, group).split(0.5, 0.25, 0.25, seed=seed)


@pytest.fixture(scope="module")
def tabular():
    fit, select, test = patients()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    everyone = torch.arange(len(fit))
    majority = everyone[fit.groups[:, 0] == 0]
    for _ in range(80):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(fit.inputs(majority))[:, 0], fit.targets[majority].float()
        )
        loss.backward()
        optimizer.step()
    return model.eval(), fit, select, test


def run(tabular, **options):
    model, fit, select, test = tabular
    options.setdefault("config", QUICK)
    return debias(model, fit, select, test=test, device="cpu", **options)


def test_the_gap_of_a_tabular_model_falls_without_harm(tabular):
    config = {"fraction": 0.3, "batch_size": 32, "operating_point": "free"}
    outcome = run(tabular, config=config, max_group_auc_drop=0.05)
    assert outcome.accepted, outcome.reason
    chosen = next(entry for entry in outcome.report.history if entry.chosen)
    assert chosen.gap < outcome.report.history[0].gap
    assert chosen.roc_auc >= outcome.report.history[0].roc_auc - 0.01
    gaps = [r.gaps[next(iter(r.gaps))]["average_odds_difference"] for r in (outcome.before, outcome.after)]
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("method", sorted(installed_methods()))
@pytest.mark.parametrize("preset", ["default", *in_ci("paper")])
def test_every_method_moves_only_its_mask_and_keeps_the_original(tabular, method, preset):
    model, before = tabular[0], copy.deepcopy(tabular[0].state_dict())
    changes = {"epochs": (2, 2)} if preset == "paper" else QUICK
    outcome = run(tabular, method=method, keep="last", config=METHODS[method].reading(changes) | {"preset": preset})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, after in outcome.model.state_dict().items():
        outside = outcome.mask.tensors[name] == 0
        assert torch.equal(after[outside], before[name][outside]), name
    assert outcome.patch.moved > 0
    assert outcome.report.history[-1].chosen
    assert type(outcome.model) is type(model)


def test_a_frozen_negative_zero_keeps_its_sign_along_the_path(tabular):
    model = copy.deepcopy(tabular[0])
    with torch.no_grad():
        model[0].bias[:4] = -0.0
    outcome = debias(
        model, *tabular[1:3], keep="last", device="cpu", config=QUICK | {"path": (0.25, 1.0), "tune": "2.*"}
    )
    assert torch.signbit(outcome.model[0].bias[:4]).all()


def test_every_head_starts_from_the_originals_when_it_is_kept(tabular, monkeypatch):
    model, *_ = tabular
    starts, tune = [], run_module.tune

    def watched(module, *args, **options):
        if isinstance(module, nn.Linear):
            starts.append(module.weight.detach().clone())
        tune(module, *args, **options)

    monkeypatch.setattr(run_module, "tune", watched)
    run(tabular, config={"preset": "path", "reset": "keep", "path": [0.5, 1.0], "bias_weight": [1.0, 1.0, 0.1]})
    original = find_head(model, torch.zeros(2, 30))
    assert len(starts) == 4
    assert all(torch.equal(start, model.get_parameter(original.parameters[0])) for start in starts)


def test_a_partial_reset_without_a_mask_of_the_head_is_refused(tabular):
    with pytest.raises(ConfigError, match="swift"):
        run(tabular, config={"reset": "partial"})


def test_the_patch_turns_the_original_into_the_result(tabular):
    outcome = run(tabular, keep="last")
    moved = outcome.patch.apply(tabular[0].state_dict())
    assert all(torch.equal(moved[name], tensor) for name, tensor in outcome.model.state_dict().items())
    assert outcome.patch.recipe["fit_hash"] == tabular[1].content_hash


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tabular):
    one, two, three = (run(tabular, keep="last", seed=seed).model.state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_nothing_that_qualifies_keeps_the_original_and_says_why(tabular):
    ruin = {"lr": (50.0, 50.0), "bias_weight": (100.0, 100.0), "average": 0.0}
    outcome = run(tabular, config=QUICK | ruin, max_auc_drop=0.0, max_group_auc_drop=0.0)
    assert not outcome.accepted
    assert "the original is kept" in outcome.reason
    assert outcome.patch.moved == 0
    assert outcome.before.to_dict() == outcome.after.to_dict()


def test_the_chosen_epoch_is_the_smallest_gap_among_the_eligible(tabular):
    outcome = run(tabular, max_group_auc_drop=0.05)
    eligible = [entry for entry in outcome.report.history if entry.eligible]
    chosen = next(entry for entry in outcome.report.history if entry.chosen)
    assert chosen.gap == min(entry.gap for entry in eligible)


@pytest.mark.parametrize(
    ("goal", "words"),
    [("worst_group_accuracy", "highest worst group accuracy"), ("accuracy_gap", "lowest accuracy gap")],
)
def test_an_epoch_may_be_chosen_by_another_figure_than_the_gap(tabular, goal, words):
    config, limits = QUICK | {"choose": goal, "patience": 0}, {"max_auc_drop": 0.05, "max_group_auc_drop": 0.1}
    outcome = debias(*tabular[:3], config=config, device="cpu", **limits)
    first, *tried = outcome.report.history
    chosen = next(entry for entry in tried if entry.chosen)
    eligible = [entry for entry in outcome.report.history if entry.eligible]
    assert chosen.goals[goal] == GOALS[goal].of(outcome.after)
    assert GOALS[goal].sign * chosen.goals[goal] == min(GOALS[goal].sign * entry.goals[goal] for entry in eligible)
    assert f"has the {words} of the" in outcome.reason
    assert f"{goal.replace('_', ' ')} {first.goals[goal]:.3f} -> {chosen.goals[goal]:.3f}" in outcome.reason


def test_where_no_epoch_is_better_by_the_figure_the_original_is_kept(tabular):
    ruin = {"lr": (50.0, 50.0), "bias_weight": (100.0, 100.0), "average": 0.0, "choose": "auc"}
    outcome = run(tabular, config=QUICK | ruin, max_auc_drop=1.0, max_group_auc_drop=1.0)
    assert not outcome.accepted
    assert "had a higher AUC" in outcome.reason


def test_a_figure_that_is_not_known_is_refused_with_the_nearest(tabular):
    with pytest.raises(ConfigError, match="worst_group_auc"):
        run(tabular, config={"choose": "worst_group_au"})


def test_no_group_may_lose_more_than_its_limit(tabular):
    outcome = run(tabular, max_auc_drop=1.0, max_group_auc_drop=0.0)
    worst = outcome.report.history[0].worst_group_roc_auc
    assert all(entry.worst_group_roc_auc >= worst for entry in outcome.report.history if entry.eligible)


def test_a_constant_predictor_is_refused(tabular):
    model = copy.deepcopy(tabular[0])
    nn.init.constant_(model[4].weight, 0.0)
    nn.init.constant_(model[4].bias, 9.0)
    with pytest.raises(ConstantPredictorError, match="constant predictor"):
        debias(model, *tabular[1:3], device="cpu")


@pytest.mark.parametrize("keyed", [False, True])
def test_any_loader_of_batches_is_data(tabular, keyed):
    model, fit, select, _ = tabular
    loaders = [torch.utils.data.DataLoader(part, batch_size=16) for part in (fit, select)]
    batch_fn = None
    if keyed:
        loaders = [[{"x": b.inputs, "y": b.targets, "a": b.groups} for b in loader] for loader in loaders]
        batch_fn = lambda batch: GroupBatch(batch["x"], batch["y"], batch["a"])  # noqa: E731
    outcome = debias(model, *loaders, keep="last", config=QUICK, device="cpu", batch_fn=batch_fn)
    direct = debias(model, fit, select, keep="last", config=QUICK, device="cpu")
    same = zip(outcome.model.state_dict().values(), direct.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_own_objectives_and_scores_are_plain_callables(tabular):
    def tpr_only(scores, targets, groups):
        return fairness.equal_opportunity_gap(scores, targets, groups)

    changes = {"objective": tpr_only, "score": lambda weight, gradient: gradient.abs()}
    outcome = run(tabular, keep="last", config=QUICK | changes)
    assert outcome.report.config["objective"].endswith("tpr_only")
    json.dumps(outcome.report.config)


@pytest.mark.parametrize("objective", ["equalized_odds", *in_ci(*sorted({*fairness.OBJECTIVES} - {"equalized_odds"}))])
def test_every_named_objective_runs(tabular, objective):
    outcome = run(tabular, keep="last", config=QUICK | {"objective": objective})
    assert all(math.isfinite(entry.gap) for entry in outcome.report.history)


@pytest.mark.parametrize("granularity", ["weight", "channel", "layer", "block"])
def test_every_granularity_runs(tabular, granularity):
    outcome = run(tabular, keep="last", config=QUICK | {"granularity": granularity, "fraction": 0.9})
    assert 0 < outcome.mask.density < 1


def test_by_default_layers_move_whole(tabular):
    moved = run(tabular, keep="last", config={"fraction": 0.3, "epochs": (6, 1)}).mask.by_layer()
    assert {name: layer["fraction"] for name, layer in moved.items()} == {"0": 0, "2": 1, "4": 1}  # 4 is the head


def test_where_every_layer_is_too_large_single_weights_move_and_it_is_said(tabular):
    outcome = run(tabular, keep="last", config={"fraction": 0.05, "epochs": (6, 1)})
    assert 0 < outcome.mask.by_layer()["2"]["fraction"] + outcome.mask.by_layer()["0"]["fraction"] < 1
    assert "no layer that carries the gap is as small as 0.05 of the weights that may move" in outcome.reason


def test_where_every_block_is_too_large_that_is_an_error(tabular):
    with pytest.raises(NothingFitsError, match="raise the fraction or take a finer granularity"):
        run(tabular, config={"fraction": 0.05, "epochs": (6, 1), "granularity": "block"})


def test_name_patterns_choose_what_may_move(tabular):
    outcome = run(tabular, keep="last", config=QUICK | {"tune": "0.*", "freeze": "*.bias"})
    assert {name for name, tensor in outcome.mask.tensors.items() if tensor.any()} == {"0.weight", "4.weight", "4.bias"}


def test_three_classes_and_two_attributes_run():
    generator = torch.Generator().manual_seed(0)
    targets, groups = (torch.arange(240) % 3, torch.stack([torch.arange(240) // 3 % 2, torch.arange(240) // 6 % 4], 1))
    inputs = torch.randn(240, 6, generator=generator) + nn.functional.one_hot(targets, 6) * 2 + 0.4 * groups[:, :1]
    fit, select = from_arrays(inputs, targets, groups).split(0.5, 0.5)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    outcome = debias(model, fit, select, keep="last", config=QUICK | {"combine": "worst"}, device="cpu")
    assert len(outcome.after.gaps) == 2


def test_progress_is_told_after_every_epoch(tabular):
    seen = []
    outcome = run(tabular, progress=seen.append)
    assert len(seen) == len(outcome.report.history) - 1
    assert seen[0].phase == "step 1"


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        ("bmf", {}, "did you mean 'bmft'"),
        ("bmft", {"fractoin": 0.1}, "did you mean 'fraction'"),
        ("bmft", {"fraction": 0}, "fraction is 0"),
        ("bmft", {"fraction": "half"}, "expected a value like"),
        ("bmft", {"objective": "equal_odds"}, "did you mean 'equalized_odds'"),
        ("bmft", {"scale": "layer"}, "scale is 'layer'"),
        ("bmft", {"epochs": (1, 2, 3)}, "two"),
        ("bmft", {"epochs": 1.5}, "whole number"),
        ("bmft", {"lr": float("nan")}, "finite"),
        ("bmft", {"preset": "papr"}, "preset"),
        ("bmft", {"exact": 1}, "expected a value like"),
        ("bmft", {"bias_weight": (-1.0, 1.0)}, "bias_weight"),
        ("bmft", {"path": ()}, "path"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(method, config, message):
    with pytest.raises(ConfigError, match=message):
        settings_for(method, config)


@pytest.mark.parametrize(
    ("method", "config"),
    [("dfr", {"fraction": 0.2}), ("threshold", {"epochs": 3}), ("rw", {"tune": "0.*"}), ("swift", {"rank": "bias"})],
)
def test_a_setting_that_the_method_does_not_read_is_refused_by_name(method, config):
    with pytest.raises(ConfigError, match=f"'{method}' does not read the setting {next(iter(config))}"):
        settings_for(method, config)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_takes_its_own_settings_again(method):
    assert settings_for(method, settings_for(method).to_dict()) == settings_for(method)


def test_the_names_a_setting_can_have_are_those_that_are_there():
    assert FACTS["objective"].choices == tuple(fairness.OBJECTIVES)
    assert FACTS["choose"].choices == ("gap", *GOALS)
    assert FACTS["score"].choices == SCORES
    assert FACTS["optimizer"].choices == tuple(OPTIMIZERS)
    assert FACTS["augment"].choices == tuple(FLIPS)


def test_settings_survive_a_round_trip_through_plain_values():
    for name, method in METHODS.items():
        for settings in (method.defaults, method.paper):
            assert Settings().with_values(settings.to_dict()) == settings, name


def test_the_paper_s_preset_is_the_published_procedure():
    paper = settings_for("bmft", {"preset": "paper"})
    assert (paper.epochs, paper.lr, paper.momentum, paper.weight_decay) == ((10, 10), (1e-4, 1e-3), 0.9, 5e-4)
    assert (paper.bias_weight, paper.task_weight) == ((1.0, 0.1), (0.0, 1.0))
    assert (paper.fraction, paper.rank, paper.scale, paper.floor, paper.exact) == (0.5, "ratio", "tensor", 1e-10, False)


def test_the_public_names_are_all_there():
    assert all(hasattr(bmft, name) for name in bmft.__all__)


def deep(count=6):
    torch.manual_seed(1)
    hidden = [layer for _ in range(count - 1) for layer in (nn.Linear(16, 16), nn.ReLU())]
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), *hidden, nn.Linear(16, 1)).eval()


def moved_by(model, fit, select, **config):
    with torch.no_grad():
        model[-1].bias -= model(fit.inputs(slice(None))).median()
    config = {"epochs": (1, 0), "fraction": 1.0, "lr": (0.05, 0.05), "operating_point": "free"} | config
    outcome = debias(model, fit, select, config=config, keep="last", device="cpu", intervals=False)
    return {name.split(".")[0] for name in outcome.patch.changes} - {"12"}


@pytest.mark.parametrize(
    ("config", "moving"),
    [
        ({}, {"2", "4", "6", "8", "10"}),
        ({"depth": 0.2}, {"8", "10"}),
        ({"depth": 1.0}, {"0", "2", "4", "6", "8", "10"}),
        ({"tune": ["2.*"]}, {"2"}),
        ({"freeze": ["8.*"]}, {"2", "4", "6", "10"}),
        ({"rank": "ratio", "floor": 1e-2}, {"2", "4", "6", "8", "10"}),
    ],
)
def test_only_the_upper_blocks_move_unless_others_are_named(config, moving):
    fit, select, _ = patients()
    assert moved_by(deep(), fit, select, **config) == moving


def test_of_a_shallow_network_every_block_may_move():
    fit, select, _ = patients()
    model = nn.Sequential(*list(deep(4))[:-1], nn.Linear(16, 1))
    assert moved_by(model, fit, select) == {"0", "2", "4", "6"}


@pytest.mark.parametrize("method", ["bmft", "swift", "dfr", *in_ci("head", "rw", "threshold", "fairprune")])
def test_one_bar_fills_once_and_to_the_end(tabular, method):
    seen = []
    config = METHODS[method].reading(QUICK | {"path": (0.5, 1.0)})
    model, fit, select = tabular[:3]
    debias(model, fit, select, method=method, config=config, progress=seen.append, device="cpu", intervals=False)
    finished, expected = [one.finished for one in seen], [one.expected for one in seen]
    assert finished == sorted(finished)
    assert finished[-1] == expected[-1]
    assert set(expected) == {expected[0]}


def test_progress_true_draws_tqdm_s_bar_and_nothing_is_drawn_by_default(tabular, capsys):
    run(tabular, progress=True)
    assert "left" in capsys.readouterr().err
    run(tabular)
    assert capsys.readouterr().err == ""
