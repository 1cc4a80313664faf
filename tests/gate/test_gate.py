"""The gate: what passes, fails and stays open in every kind of check, and how rarely it errs."""

import json
import warnings
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

import bmft
from bmft.auditing import DIRECTION, AuditReport, Column, Predictions, Sample, gather, group_metrics
from bmft.data import from_arrays
from bmft.errors import ConfigError, PolicyError
from bmft.gate import Verdict, check, parse_policy, plan, starting_policy
from bmft.gate.sample_size import pass_probability
from bmft.inference import audit, predict
from bmft.stats import intervals
from bmft.tables import Attribute
from bmft.testing import assert_fair
from tests.tiers import in_ci

SEX = Attribute("sex", ("female", "male"))
EVERY_METRIC = (*DIRECTION, "predicted_positive_ratio")


def policy(*checks, gate="", more=""):
    """A policy from ``(metric, bound, limit)`` on sex, or whole tables as text."""
    tables = [
        c if isinstance(c, str) else f'[[check]]\nmetric = "{c[0]}"\nsensitive = ["sex"]\n{c[1]} = {c[2]}'
        for c in checks
    ]
    return parse_policy("\n".join([f"[gate]\nresamples = 400\n{gate}", *tables, more]))


def counted(*groups, attribute=SEX):
    """Predictions of groups given as (true positives, positives, false positives, negatives)."""
    scores, targets, ids = [], [], []
    for g, (tp, p, fp, n) in enumerate(groups):
        called = np.repeat([1, 0, 1, 0], [tp, p - tp, fp, n - fp])
        targets.append(np.repeat([1, 0], [p, n]))
        scores.append(np.where(called == 1, 0.9, 0.1))
        ids.append(np.full(p + n, g))
    return Predictions(*(np.concatenate(part) for part in (scores, targets, ids)), (attribute,))


def random_predictions(seed=0, n=900, attributes=(SEX,), clusters=None, drift=0.0):
    """Scores that tell the label with some noise; a little worse in the last group."""
    rng = np.random.default_rng(seed)
    groups = np.stack([rng.integers(0, len(a.groups), n) for a in attributes], axis=1)
    targets = rng.random(n) < 0.45
    latent = rng.normal(size=n) + (1.8 - drift * groups[:, 0]) * (targets - 0.5)
    return Predictions(1 / (1 + np.exp(-1.5 * latent)), targets, groups, attributes, clusters=clusters)


def decide(predictions, rules, baseline=None, **options):
    base = None if baseline is None else audit(baseline, intervals=False)
    return check(audit(predictions, intervals=False), rules, base, **options)


def only(verdict):
    (result,) = verdict.checks
    return result


# The decision


@pytest.mark.parametrize(
    ("first", "second", "decision"),
    [
        ((320, 400, 0, 50), (316, 400, 0, 50), "pass"),
        ((340, 400, 0, 50), (260, 400, 0, 50), "fail"),
        ((80, 100, 0, 50), (76, 100, 0, 50), "inconclusive"),
        ((90, 100, 0, 50), (31, 33, 0, 50), "inconclusive"),
        ((400, 400, 0, 50), (300, 300, 0, 50), "pass"),
    ],
)
def test_a_difference_is_decided_by_its_interval(first, second, decision):
    verdict = decide(counted(first, second), policy(("true_positive_rate", "max_difference", 0.1)))
    result = only(verdict)
    assert verdict.decision == result.decision == decision
    x1, n1, x2, n2 = *first[:2], *second[:2]
    low, high = intervals.miettinen_nurminen(x1, n1, x2, n2, 0.9)
    assert result.findings[0].interval == pytest.approx((float(low), float(high)))
    assert result.estimate == pytest.approx(abs(x1 / n1 - x2 / n2))
    assert (max(abs(low), abs(high)) <= 0.1) == (decision == "pass")


def test_a_fail_is_corrected_for_the_pairs_and_a_pass_is_not():
    four = Attribute("sex", ("a", "b", "c", "d"))
    fair, odd = (240, 300, 0, 40), (196, 300, 0, 40)
    rules = policy(("true_positive_rate", "max_difference", 0.08))
    # Just beyond as the only pair; not beyond as one of six.
    assert decide(counted(fair, odd), rules).decision == "fail"
    assert decide(counted(fair, odd, fair, fair, attribute=four), rules).decision == "inconclusive"
    close = (236, 300, 0, 40)
    tight = policy(("true_positive_rate", "max_difference", 0.07))
    # Corrected for six pairs its interval would be too wide.
    low, _ = intervals.miettinen_nurminen(236, 300, 240, 300, 1 - 2 * 0.05 / 6)
    assert low < -0.07
    assert decide(counted(fair, close), tight).decision == "pass"
    assert decide(counted(fair, close, fair, fair, attribute=four), tight).decision == "pass"


@pytest.mark.parametrize("clusters", [None, "patients"])
@pytest.mark.parametrize("bound", ["max_difference", "min_ratio", "min_group", "max_group"])
@pytest.mark.parametrize("metric", [*EVERY_METRIC, "equalized_odds"])
def test_every_metric_can_be_bounded_and_the_interval_decides(metric, bound, clusters):
    better = DIRECTION.get(metric, 0)
    if (metric == "equalized_odds" and bound != "max_difference") or (bound, better) in (
        ("min_group", -1),
        ("max_group", 1),
    ):
        pytest.skip("refused by the policy")
    ids = None if clusters is None else np.repeat(np.arange(300), 3)
    predictions = random_predictions(clusters=ids)
    for limit in (0.02, 0.3, 0.6, 0.95):
        result = only(decide(predictions, policy((metric, bound, limit))))
        low, high = result.interval
        assert low <= result.estimate <= high
        holds, broken = (high <= limit, low > limit) if bound.startswith("max") else (low >= limit, high < limit)
        assert result.decision == ("pass" if holds else "fail" if broken else "inconclusive")


@pytest.mark.parametrize("metric", EVERY_METRIC)
def test_estimates_are_the_audits(metric):
    predictions = random_predictions(drift=0.5)
    by_group = audit(predictions, intervals=False).by_group["sex"]
    if metric in DIRECTION:
        values = [by_group[group][metric] for group in SEX.groups]
    else:
        called, positive = predictions.decisions()[:, 0], predictions.targets[:, 0]
        values = [called[own].sum() / positive[own].sum() for own in (predictions.groups[:, 0] == g for g in (0, 1))]
    result = only(decide(predictions, policy((metric, "max_difference", 0.5))))
    assert result.estimate == pytest.approx(abs(values[0] - values[1]))
    ratio = only(decide(predictions, policy((metric, "min_ratio", 0.5))))
    assert ratio.estimate == pytest.approx(min(values) / max(values))


def test_equalized_odds_is_both_rates():
    predictions = counted((80, 100, 30, 300), (78, 100, 100, 300))
    result = only(decide(predictions, policy(("equalized_odds", "max_difference", 0.1))))
    assert result.estimate == pytest.approx(70 / 300)
    assert result.decision == "fail"
    assert [one.name.split(":")[0] for one in result.findings] == ["true_positive_rate", "false_positive_rate"]
    alike = counted((800, 1000, 300, 1000), (800, 1000, 300, 1000))
    assert decide(alike, policy(("equalized_odds", "max_difference", 0.1))).decision == "pass"


def test_neither_the_order_of_rows_nor_the_names_of_groups_matter():
    one = random_predictions(clusters=np.repeat(np.arange(300), 3))
    rules = policy(*((metric, "max_difference", 0.1) for metric in ("true_positive_rate", "roc_auc", "brier_score")))
    order = np.random.default_rng(1).permutation(len(one))
    parts = (part[order] for part in (one.scores, one.targets, one.groups))
    shuffled = Predictions(*parts, one.attributes, clusters=one.clusters[order])
    renamed = replace(one, attributes=(Attribute("sex", ("f", "m")),))
    first, second, third = (decide(each, rules).checks for each in (one, shuffled, renamed))
    for a, b, c in zip(first, second, third, strict=True):
        assert a.interval == pytest.approx(b.interval, abs=1e-12)
        assert a.interval == c.interval
        assert a.decision == b.decision == c.decision


def test_rows_of_unknown_group_are_left_out():
    one = counted((320, 400, 0, 50), (316, 400, 0, 50))
    more = Predictions(
        np.append(one.scores, np.full(200, 0.1)),
        np.append(one.targets, np.ones(200, int)),
        np.append(one.groups, np.full(200, -1)),
        one.attributes,
    )
    rules = policy(("true_positive_rate", "max_difference", 0.1))
    assert only(decide(more, rules)).interval == only(decide(one, rules)).interval
    assert decide(more, rules).facts["unknown"] == {"sex": 200}


def test_what_the_data_certify_is_the_tightest_bound_that_passes():
    predictions = random_predictions(drift=0.4)
    for metric, bound, tighter in (
        ("roc_auc", "max_difference", -1),
        ("roc_auc", "min_group", 1),
        ("brier_score", "max_group", -1),
    ):
        certified = only(decide(predictions, policy((metric, bound, 0.5)))).certifies
        for step, decision in ((-tighter, "pass"), (tighter, "inconclusive")):
            assert decide(predictions, policy((metric, bound, certified + step * 1e-6))).decision == decision


@pytest.mark.parametrize("limit", [0.1, 0.05, 0.14])
def test_as_many_samples_as_are_asked_for_settle_it(limit):
    first, second = (80, 100, 10, 100), (71, 100, 10, 100)
    rules = policy(("true_positive_rate", "max_difference", limit))
    result = only(decide(counted(first, second), rules))
    assert result.decision == "inconclusive"
    times = -(-result.needed // 100)
    more = decide(counted(*(tuple(times * x for x in group) for group in (first, second))), rules)
    assert more.decision == ("fail" if limit < 0.09 else "pass")
    assert f"{result.needed:,} positives per group" in result.reason


def test_an_estimate_on_the_bound_is_settled_by_no_number():
    result = only(
        decide(counted((80, 100, 0, 40), (70, 100, 0, 40)), policy(("true_positive_rate", "max_difference", 0.1)))
    )
    assert result.needed is None
    assert "No number of samples" in result.reason


# Never a pass on missing numbers


@pytest.mark.parametrize(
    ("groups", "metric", "words"),
    [
        (((400, 400, 0, 50), (29, 29, 0, 50)), "true_positive_rate", "male has 29 positives, fewer than 30"),
        (((400, 400, 0, 50), (0, 0, 0, 500)), "true_positive_rate", "male has 0 positives"),
        (((400, 400, 5, 50), (400, 400, 0, 0)), "false_positive_rate", "male has 0 negatives"),
        (((400, 400, 5, 50), (400, 400, 0, 3)), "roc_auc", "male has 3 positives or negatives"),
        (((400, 500, 5, 500), (0, 0, 0, 0)), "accuracy", "male has no samples"),
        (((500, 500, 500, 500), (400, 400, 400, 400)), "true_positive_rate", "constant predictor"),
        (((0, 500, 0, 500), (0, 400, 0, 400)), "roc_auc", "constant predictor"),
        (((0, 500, 0, 500), (0, 400, 0, 400)), "selection_rate", "constant predictor"),
    ],
)
def test_missing_numbers_are_inconclusive_and_say_why(groups, metric, words):
    for bound, limit in (("max_difference", 0.9), ("min_ratio", 0.01)):
        verdict = decide(counted(*groups), policy((metric, bound, limit)))
        assert verdict.decision == "inconclusive"
        assert words in only(verdict).reason
        assert verdict.exit_code == 3


def test_a_bootstrap_in_which_nothing_varies_gives_no_interval():
    predictions = counted((200, 400, 0, 400), (0, 400, 0, 400))
    verdict = decide(predictions, policy(("predicted_positive_ratio", "max_difference", 0.9)))
    assert verdict.decision == "inconclusive"
    assert "there is no interval" in only(verdict).reason


def test_a_violation_is_a_fail_also_beside_a_group_too_small_to_judge():
    three = Attribute("sex", ("a", "b", "c"))
    predictions = counted((380, 400, 0, 40), (200, 400, 0, 40), (3, 4, 0, 40), attribute=three)
    result = only(decide(predictions, policy(("true_positive_rate", "max_difference", 0.1))))
    assert result.decision == "fail"
    assert {one.decision for one in result.findings} == {"fail", "inconclusive"}
    # How large the largest may be is unknown: the small group may have it.
    assert np.isnan(result.interval[1])


def test_one_group_has_nothing_to_be_compared_with():
    alone = counted((80, 100, 0, 40), attribute=Attribute("sex", ("only",)))
    assert "fewer than two groups" in only(decide(alone, policy(("true_positive_rate", "max_difference", 0.5)))).reason


# Baselines

LIKE_IT = '[[non_inferiority]]\nmetric = "{}"\nmargin = {}\nper_group = true\nsensitive = ["sex"]\n'


@pytest.mark.parametrize("clusters", [None, np.repeat(np.arange(400), 3)], ids=["rows", "patients"])
@pytest.mark.parametrize("metric", ["roc_auc", "true_positive_rate", "false_positive_rate", "brier_score", "f1"])
def test_a_model_made_worse_fails_and_one_made_better_passes(metric, clusters):
    good, bad = (random_predictions(1, 1200, drift=drift, clusters=clusters) for drift in (0.0, 1.6))
    rules = policy(LIKE_IT.format(metric, 0.05))
    worse, better = decide(bad, rules, good), decide(good, rules, bad)
    assert [one.id for one in worse.checks] == [f"{metric}/baseline", f"{metric}/baseline/sex"]
    # Only the men were made worse.
    men = worse.checks[1].findings[1]
    assert (men.name, men.decision) == ("male", "fail")
    assert worse.checks[1].findings[0].estimate == 0
    assert worse.decision == "fail"
    assert better.decision == "pass"
    assert better.checks[1].estimate == pytest.approx(-max(0, -0.0))


def test_paired_intervals_are_those_of_the_same_rows():
    good, bad = (random_predictions(1, 1200, drift=drift) for drift in (0.0, 0.8))
    result = decide(bad, policy(LIKE_IT.format("roc_auc", 0.05)), good).checks[0]
    paired = intervals.delong_paired(bad.scores[:, 0], good.scores[:, 0], good.targets[:, 0], 0.9)
    assert (result.estimate, *result.findings[0].interval) == pytest.approx((paired.value, paired.low, paired.high))
    rate = decide(bad, policy(LIKE_IT.format("false_positive_rate", 0.05)), good).checks[0]
    negative = good.targets[:, 0] == 0
    own, theirs = (p.decisions()[negative, 0] == 1 for p in (bad, good))
    low, high = intervals.tango((own & ~theirs).sum(), (theirs & ~own).sum(), negative.sum(), 0.9)
    # More false positives are worse, so below 0.
    assert rate.findings[0].interval == pytest.approx((-high, -low))


def test_a_model_compared_with_itself_shows_nothing():
    predictions = random_predictions()
    verdict = decide(predictions, policy(LIKE_IT.format("roc_auc", 0.1)), predictions)
    assert verdict.decision == "inconclusive"
    assert "compared with itself" in verdict.checks[0].reason


def test_a_baseline_is_needed_and_has_to_be_of_the_same_rows():
    rules, own = policy(LIKE_IT.format("roc_auc", 0.1)), random_predictions()
    with pytest.raises(ConfigError, match="--baseline"):
        decide(own, rules)
    with pytest.raises(ConfigError, match="other rows"):
        decide(own, rules, random_predictions(seed=5))
    unused = decide(own, policy(("roc_auc", "max_difference", 0.2)), random_predictions(drift=0.1))
    assert "a baseline was given" in unused.warnings[0]


# Attributes, classes, clusters

AGE = Attribute("age", ("<60", "60+"))


def test_attributes_are_crossed_if_the_policy_says_so():
    table = '[[check]]\nmetric = "roc_auc"\nsensitive = ["sex", "age:60"]\nintersect = true\nmin_group = 0.6'
    result = only(decide(random_predictions(attributes=(SEX, AGE)), policy(table)))
    assert result.id == "roc_auc/sex*age"
    assert [one.name for one in result.findings] == ["female*<60", "female*60+", "male*<60", "male*60+"]


def several(task, n=1200):
    rng = np.random.default_rng(0)
    names, latent = ("akiec", "mel", "nv"), rng.normal(size=(n, 3))
    targets = rng.integers(0, 3, n) if task == "multiclass" else (rng.random((n, 3)) < 0.4).astype(int)
    latent += 2.5 * (np.eye(3)[targets] if task == "multiclass" else targets - 0.5)
    weights = np.exp(latent)
    scores = weights / weights.sum(1, keepdims=True) if task == "multiclass" else weights / (1 + weights)
    return Predictions(scores, targets, rng.integers(0, 2, n), (SEX,), task=task, classes=names)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_every_class_and_label_is_checked(task):
    rules = policy(("roc_auc", "max_difference", 0.1), ("accuracy", "min_group", 0.5))
    verdict = decide(several(task), rules)
    ids = [one.id for one in verdict.checks]
    accuracy = ["accuracy/sex"] if task == "multiclass" else [f"accuracy/sex/{c}" for c in ("akiec", "mel", "nv")]
    assert ids == ["roc_auc/sex/akiec", "roc_auc/sex/mel", "roc_auc/sex/nv", *accuracy]
    assert verdict.decision == "pass"
    if task == "multiclass":
        report = audit(several(task), intervals=False).by_group["sex"]
        assert verdict.checks[-1].estimate == pytest.approx(min(report[g]["accuracy"] for g in SEX.groups))


def test_only_the_named_classes_are_checked():
    table = '[[check]]\nmetric = "roc_auc"\nsensitive = ["sex"]\nclasses = ["mel"]\nmax_difference = 0.1\n'
    table += "min_group = 0.6"
    verdict = decide(several("multiclass"), policy(table))
    assert [one.id for one in verdict.checks] == ["roc_auc/sex/mel:max_difference", "roc_auc/sex/mel:min_group"]
    with pytest.raises(PolicyError, match=r"no class 'mell'\. Did you mean 'mel'"):
        decide(several("multiclass"), policy(table.replace("mel", "mell")))


@pytest.mark.parametrize("metric", ["true_positive_rate", "roc_auc", "brier_score"])
def test_copies_of_a_patient_count_as_one(metric):
    one = random_predictions(n=400)
    copies = Predictions(
        *(np.repeat(part, 4, axis=0) for part in (one.scores, one.targets, one.groups)),
        one.attributes,
        clusters=np.repeat(np.arange(400), 4),
    )
    rules = policy((metric, "max_difference", 0.5))
    width = [
        np.ptp(only(decide(each, rules)).findings[0].interval) for each in (one, copies, replace(copies, clusters=None))
    ]
    assert width[1] == pytest.approx(width[0], rel=0.12)
    assert width[2] == pytest.approx(width[0] / 2, rel=0.12)


def test_patients_in_both_groups_make_the_groups_alike():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(300), 2)  # an image of each group
    latent = np.repeat(rng.normal(size=300), 2) + 0.3 * rng.normal(size=600)
    targets = np.repeat(rng.random(300) < 0.5, 2)
    scores = norm.cdf(latent + 1.5 * (targets - 0.5))
    both = Predictions(scores, targets, np.tile([0, 1], 300), (SEX,), clusters=patient)
    apart = replace(both, clusters=np.arange(600))
    rules = policy(("true_positive_rate", "max_difference", 0.5))
    widths = [np.ptp(only(decide(each, rules)).findings[0].interval) for each in (both, apart)]
    assert widths[0] < 0.75 * widths[1]


def test_asking_for_one_metric_gives_the_same_interval_as_asking_for_all():
    predictions = random_predictions(clusters=np.repeat(np.arange(300), 3))
    column = Column(predictions.scores[:, 0], predictions.decisions()[:, 0] == 1, predictions.targets[:, 0] == 1)
    sample = Sample(predictions.groups[:, 0], 2, predictions.clusters, 300, 0)
    values = group_metrics(column, sample.groups, 2)
    (everything,) = gather([column], [values], sample)
    for metric in DIRECTION:
        (one,) = gather([column], [values], sample, only={metric})
        np.testing.assert_array_equal(one.interval(metric, 0.9), everything.at(0.9)[metric])


# What is refused


def test_all_that_does_not_fit_the_data_is_in_one_message():
    text = '[[check]]\nmetric = "roc_auc"\nsensitive = ["sexe", "sex"]\nmax_difference = 0.1'
    with pytest.raises(PolicyError) as caught:
        decide(random_predictions(), policy(text, gate='cluster = "patient_id"'))
    assert "no sensitive attribute 'sexe'. Did you mean 'sex'?" in str(caught.value)
    assert "cluster is 'patient_id'" in str(caught.value)


def test_a_gate_on_the_debiasing_set_is_refused():
    own = replace(random_predictions(), content_hash="abc123")
    rules = policy(("roc_auc", "max_difference", 0.3))
    with pytest.raises(ConfigError, match="the set this model was debiased on"):
        decide(own, rules, debiased_on={"abc123"})
    assert decide(own, rules, debiased_on={"def456"}).decision == "pass"


def test_an_audit_from_a_file_has_no_predictions_to_decide_on():
    report = AuditReport.from_dict(json.loads(json.dumps(audit(random_predictions(), intervals=False).to_dict())))
    with pytest.raises(ConfigError, match="audit the model again"):
        check(report, policy(("roc_auc", "max_difference", 0.3)))


def test_the_policys_threshold_wins_over_the_audits():
    predictions = random_predictions()
    own = only(decide(predictions, policy(("selection_rate", "min_group", 0.1), gate="threshold = 0.9")))
    audited = audit(predictions, threshold=0.9, intervals=False)
    assert own.estimate == only(check(audited, policy(("selection_rate", "min_group", 0.1)))).estimate
    assert own.estimate < only(decide(predictions, policy(("selection_rate", "min_group", 0.1)))).estimate


# Waivers

WAIVER = '[[waiver]]\ncheck = "{}"\nreason = "known | <b>, see #12"\n'


def test_a_waived_check_does_not_stop_the_gate_and_is_shown_everywhere():
    predictions = counted((380, 400, 0, 40), (200, 400, 0, 40))
    rules = policy(("true_positive_rate", "max_difference", 0.1), more=WAIVER.format("true_positive_rate/sex"))
    verdict = decide(predictions, rules)
    result = only(verdict)
    assert (verdict.decision, verdict.exit_code) == ("pass", 0)
    assert (result.decision, result.unwaived) == ("waived", "fail")
    assert "1 waived" in verdict.headline
    assert "known" in verdict.to_text()
    assert "known \\| &lt;b>, see #12" in verdict.to_markdown()
    assert "known | <b>, see #12" in ET.fromstring(verdict.to_junit()).find(".//testcase/system-out").text
    assert "known | <b>, see #12" in "".join(verdict.annotations())
    assert verdict.to_dict()["checks"][0]["waivers"] == ["known | <b>, see #12"]
    # The failure itself stays in view.
    assert "0.450; beyond max_difference 0.1" in verdict.to_markdown()


def test_a_waived_group_leaves_the_others_to_be_judged():
    three = Attribute("sex", ("a", "b", "c"))
    group = WAIVER.format("true_positive_rate/sex") + 'group = "c"\n'
    rules = policy(("true_positive_rate", "max_difference", 0.1), more=group)
    fair, odd = (320, 400, 0, 40), (100, 400, 0, 40)
    waived = decide(counted(fair, fair, odd, attribute=three), rules)
    assert (waived.decision, only(waived).decision) == ("pass", "waived")
    failing = decide(counted(fair, odd, odd, attribute=three), rules)
    assert only(failing).decision == "fail"
    assert only(failing).reason.startswith("a - b:")
    small = decide(counted(fair, fair, (3, 4, 0, 40), attribute=three), rules)
    assert (only(small).decision, only(small).unwaived) == ("waived", "inconclusive")


def test_a_waiver_that_nothing_needs_is_a_warning():
    rules = policy(("true_positive_rate", "max_difference", 0.2), more=WAIVER.format("true_positive_rate/sex"))
    verdict = decide(counted((320, 400, 0, 40), (320, 400, 0, 40)), rules)
    assert only(verdict).decision == "pass"
    assert only(verdict).waivers == ()
    assert "was not needed" in verdict.warnings[0]
    assert "::warning" in next(verdict.annotations())
    for text in (verdict.to_markdown(), verdict.to_junit(), verdict.to_text()):
        assert "was not needed" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (WAIVER.format("true_positive_rate/sexe"), "Did you mean 'true_positive_rate/sex'"),
        (WAIVER.format("true_positive_rate/sex") + 'group = "mal"\n', "Did you mean 'male'"),
    ],
)
def test_a_waiver_of_nothing_is_refused(text, words):
    with pytest.raises(PolicyError, match=words):
        decide(
            counted((32, 40, 0, 40), (32, 40, 0, 40)), policy(("true_positive_rate", "max_difference", 0.2), more=text)
        )


# Outputs

RULES = (("true_positive_rate", "max_difference", 0.1), ("roc_auc", "min_group", 0.99), ("accuracy", "min_group", 0.5))


def mixed(**gate):
    """A verdict with a failure, an inconclusive check and a pass."""
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in gate.items())
    rules = policy(
        ("true_positive_rate", "max_difference", 0.1),
        ("accuracy", "min_group", 0.5),
        ("roc_auc", "min_group", 0.85),
        gate=lines,
    )
    return decide(counted((78, 80, 0, 40), (50, 80, 0, 40)), rules)


def test_any_failure_fails_the_gate_and_any_open_check_leaves_it_open():
    fails, passes = ("false_negative_rate", "max_difference", 0.1), ("accuracy", "min_group", 0.5)
    predictions = counted((380, 400, 0, 40), (200, 400, 0, 40))
    opens = ("true_positive_rate", "max_difference", 0.45)
    for rules, decision in (((passes,), "pass"), ((passes, opens), "inconclusive"), ((passes, opens, fails), "fail")):
        assert decide(predictions, policy(*rules)).decision == decision


@pytest.mark.parametrize(("setting", "code"), [("fail", 3), ("warn", 0), ("pass", 0)])
def test_what_an_inconclusive_gate_does_is_the_policys(setting, code):
    rules = policy(("true_positive_rate", "max_difference", 0.1), gate=f'on_inconclusive = "{setting}"')
    verdict = decide(counted((80, 100, 0, 50), (76, 100, 0, 50)), rules)
    assert verdict.to_dict()["decision"] == "inconclusive"
    assert verdict.exit_code == code
    assert next(verdict.annotations()).startswith("::error" if code else "::warning")
    (case,) = ET.fromstring(verdict.to_junit()).iter("testcase")
    assert case[0].tag == ("error" if code else "skipped")


def test_json_has_numbers_and_null():
    verdict = decide(counted((400, 400, 0, 50), (29, 29, 0, 50)), policy(("true_positive_rate", "max_difference", 0.1)))
    content = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert (content["schema"], content["decision"], content["seed"]) == (1, "inconclusive", 0)
    (result,) = content["checks"]
    assert {"id", "decision", "estimate", "interval", "reason"} <= set(result)
    assert result["interval"] == [None, None]
    assert content["hashes"]["policy"]


# What Jenkins, GitLab and GitHub's readers agree on: elements, what they hold, and their attributes.
JUNIT = {
    "testsuites": ({"testsuite"}, {"name"}, {"tests", "failures", "errors", "time"}),
    "testsuite": ({"testcase", "system-out"}, {"name", "tests"}, {"failures", "errors", "skipped", "time"}),
    "testcase": ({"failure", "error", "skipped", "system-out"}, {"name", "classname"}, {"time"}),
    "failure": (set(), {"message", "type"}, set()),
    "error": (set(), {"message", "type"}, set()),
    "skipped": (set(), set(), {"message"}),
    "system-out": (set(), set(), set()),
}


def junit_problems(element):
    children, required, optional = JUNIT[element.tag]
    yield from (f"{element.tag} has no {name}" for name in required - set(element.attrib))
    yield from (f"{element.tag} has {name}" for name in set(element.attrib) - required - optional)
    numbers = {"tests", "failures", "errors", "skipped", "time"} & set(element.attrib)
    yield from (f"{name} is no number" for name in numbers if not element.attrib[name].replace(".", "").isdigit())
    for child in element:
        yield from junit_problems(child) if child.tag in children else [f"{element.tag} holds {child.tag}"]


@pytest.mark.parametrize("setting", ["fail", "warn"])
def test_junit_is_what_ci_systems_read(setting):
    verdict = mixed(on_inconclusive=setting)
    root = ET.fromstring(verdict.to_junit())
    assert list(junit_problems(root)) == []
    suite = root[0]
    cases = list(suite.iter("testcase"))
    assert int(suite.get("tests")) == len(cases) == len(verdict.checks) == 3
    for word, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(word)) == sum(case.find(tag) is not None for case in cases)
    assert len({case.get("name") for case in cases}) == 3


def test_the_junit_check_can_fail():
    assert list(junit_problems(ET.fromstring("<testsuite name='a' tests='x'><b/></testsuite>")))


def test_group_names_cannot_break_out_of_an_output():
    nasty = Attribute("sex", ("a|b\n::error::x", "<img src=x>\x07%"))
    verdict = decide(
        counted((380, 400, 0, 40), (200, 400, 0, 40), attribute=nasty),
        policy(("true_positive_rate", "max_difference", 0.1)),
    )
    ET.fromstring(verdict.to_junit())
    assert all(line.count("\n") == 0 for line in verdict.annotations())
    table = verdict.to_markdown()
    assert "<img" not in table
    assert "\n::error" not in table


def test_markdown_has_a_row_for_every_check():
    text = mixed().to_markdown()
    assert text.startswith("## Fairness gate: ❌ FAIL: 1 passed, 1 failed, 1 inconclusive")
    assert text.count("\n| ") == 1 + 3


# In tests


def test_assert_fair_returns_the_verdict_of_what_passes():
    verdict = assert_fair(random_predictions(), None, policy(("roc_auc", "max_difference", 0.3)))
    assert isinstance(verdict, Verdict)


def test_assert_fair_says_what_failed():
    with pytest.raises(AssertionError) as caught:
        assert_fair(
            counted((380, 400, 0, 40), (200, 400, 0, 40)), None, policy(("true_positive_rate", "max_difference", 0.1))
        )
    assert "FAIL: 1 failed" in str(caught.value)
    assert "female - male: 0.450; beyond max_difference 0.1" in str(caught.value)


def test_assert_fair_warns_if_the_policy_only_wants_a_warning():
    predictions, check_ = (counted((80, 100, 0, 50), (76, 100, 0, 50)), ("true_positive_rate", "max_difference", 0.1))
    with pytest.raises(AssertionError, match="inconclusive"):
        assert_fair(predictions, None, policy(check_))
    with pytest.warns(UserWarning, match="INCONCLUSIVE"):
        assert_fair(predictions, None, policy(check_, gate='on_inconclusive = "warn"'))


def test_a_check_takes_predictions_an_audit_or_a_model_with_data(tmp_path):
    rules = policy(("roc_auc", "max_difference", 0.3))
    (tmp_path / "p.toml").write_text(LIKE_IT.format("roc_auc", 0.02))
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(400, 3))).float()
    data = from_arrays(inputs, (inputs[:, 0] > 0).long(), rng.integers(0, 2, 400), attributes={"sex": ("f", "m")})
    model = nn.Linear(3, 1)
    predictions, report = predict(model, data), audit(model, data, intervals=False)
    first, *others = (
        bmft.check(given, rules, **options).to_dict()
        for given, options in ((predictions, {}), (report, {}), (model, {"data": data}), (model, {"data": data}))
    )
    assert all(other == first for other in others)
    twin = bmft.check(model, tmp_path / "p.toml", model, data=data)
    assert twin.to_dict() == bmft.check(predictions, tmp_path / "p.toml", report).to_dict()


@pytest.mark.parametrize("given", ["model.pt", None, 7])
def test_a_check_of_something_else_says_what_it_takes(given):
    for data in (None, [1]):
        with pytest.raises(ConfigError, match="expected an audit, predictions, or a model with data"):
            bmft.check(given, policy(("roc_auc", "max_difference", 0.3)), data=data)


def test_a_check_of_predictions_takes_no_data_and_its_policy_is_one():
    with pytest.raises(ConfigError, match="go with a model"):
        bmft.check(random_predictions(), policy(("roc_auc", "max_difference", 0.3)), data=[1])
    with pytest.raises(ConfigError, match="Predictions was given as the policy"):
        bmft.check(policy(("roc_auc", "max_difference", 0.3)), random_predictions())


def test_assert_fair_takes_a_model_its_baseline_and_a_policy_file(tmp_path):
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(800, 3))).float()
    data = from_arrays(inputs, (inputs[:, 0] > 0).long(), rng.integers(0, 2, 800), attributes={"sex": ("f", "m")})
    model, other = nn.Linear(3, 1), nn.Linear(3, 1)
    with torch.no_grad():
        for one, weight in ((model, [3.0, 0.0, 0.0]), (other, [1.0, 1.0, 0.0])):
            one.weight.copy_(torch.tensor([weight]))
            one.bias.zero_()
    path = tmp_path / "fairness.toml"
    path.write_text(LIKE_IT.format("roc_auc", 0.02))
    assert assert_fair(model, data, path, baseline=other).decision == "pass"
    with pytest.raises(AssertionError, match="roc_auc/baseline/sex"):
        assert_fair(other, data, str(path), baseline=model)


# Starting and planning


def test_a_starting_policy_is_a_policy_with_what_was_measured(tmp_path):
    report = audit(random_predictions(attributes=(SEX, AGE), clusters=np.repeat(np.arange(300), 3)), intervals=False)
    text = starting_policy(report, ["sex", "age:60"], cluster="patient_id")
    rules = parse_policy(text)
    assert rules.sensitive == ("sex", "age:60")
    assert rules.cluster == "patient_id"
    assert len(rules.checks) == 6
    assert text.count("# true_positive_rate/") == 2
    assert "these data can certify" in text


@pytest.mark.parametrize(("tolerance", "about"), [(0.1, 300), (0.05, 1200)])
def test_sample_sizes_are_those_of_the_published_order(tolerance, about):
    assert plan(tolerance, 0.8).per_group == pytest.approx(about, rel=0.1)


@pytest.mark.ci
def test_the_planned_power_is_the_gates():
    size = plan(0.1, 0.8, groups=3, power=0.7).per_group
    rng, three = np.random.default_rng(0), Attribute("sex", ("a", "b", "c"))
    rules = policy(("true_positive_rate", "max_difference", 0.1))
    passed = [
        decide(counted(*((x, size, 0, 1) for x in rng.binomial(size, 0.8, 3)), attribute=three), rules).decision
        == "pass"
        for _ in range(200)
    ]
    assert np.mean(passed) == pytest.approx(0.7, abs=3 * np.sqrt(0.7 * 0.3 / 200))


def test_a_gate_passes_more_often_the_larger_it_is_and_the_fewer_groups_it_has():
    assert pass_probability(200, 0.1, 0.8) < pass_probability(400, 0.1, 0.8) < 1
    assert pass_probability(400, 0.1, 0.8, groups=6) < pass_probability(400, 0.1, 0.8)


def test_images_of_one_patient_are_worth_less():
    one, four = plan(0.1, 0.8), plan(0.1, 0.8, images_per_patient=4, icc=0.5)
    assert four.design_effect == 2.5
    assert four.per_group == pytest.approx(2.5 * one.per_group, abs=1)
    assert four.patients_per_group == -(-four.per_group // 4)


def test_a_plan_says_all_that_is_wrong_with_its_numbers():
    with pytest.raises(ConfigError) as caught:
        plan(0, 1.2, groups=1, power=1.5, icc=-1, images_per_patient=0.5)
    for word in (
        "tolerance is 0",
        "rate is 1.2",
        "groups is 1",
        "power is 1.5",
        "icc is -1",
        "images_per_patient is 0.5",
    ):
        assert word in str(caught.value)
    with pytest.raises(ConfigError, match="widen it"):
        plan(1e-5, 0.5)


# How often it errs


def correlated(rng, n, rate, icc, images=4):
    """`n` right or wrong answers, `images` of each patient, with this mean and intraclass correlation."""
    weight = (1 - icc) / icc
    patients = rng.beta(rate * weight, (1 - rate) * weight, n // images)
    return rng.random(n) < np.repeat(patients, images)


def false_passes(rng, runs, groups, n, icc, *, clustered):
    """How often a gate passes whose largest true gap is its tolerance."""
    attribute = Attribute("sex", tuple("abcd"[:groups]))
    rules, rates = policy(("true_positive_rate", "max_difference", 0.1)), [0.85, *[0.75] * (groups - 1)]
    ids, patients = np.repeat(np.arange(groups), n), np.arange(groups * n) // 4
    decided = []
    for _ in range(runs):
        right = np.concatenate([rng.random(n) < r if icc == 0 else correlated(rng, n, r, icc) for r in rates])
        predictions = Predictions(
            np.where(right, 0.9, 0.1),
            np.ones(groups * n, int),
            ids,
            (attribute,),
            clusters=patients if clustered else None,
        )
        decided.append(decide(predictions, rules).decision == "pass")
    return np.mean(decided)


@pytest.mark.parametrize(("groups", "icc"), [(2, 0.3), *in_ci((2, 0), (4, 0), (2, 0.6), (4, 0.6))])
def test_a_gap_equal_to_the_tolerance_passes_as_rarely_as_alpha(groups, icc):
    runs, n = 200, 600
    found = false_passes(np.random.default_rng(groups), runs, groups, n, icc, clustered=icc > 0)
    assert found <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_without_the_patients_the_same_simulation_finds_too_many():
    found = false_passes(np.random.default_rng(2), 200, 2, 600, 0.6, clustered=False)
    assert found > 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_warnings_are_never_numpys():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed()


def test_predictions_are_checked_as_an_audit_of_them_is_and_a_model_is_refused():
    rules = parse_policy('check = [{metric = "true_positive_rate", sensitive = ["sex"], max_difference = 0.1}]')
    predictions = random_predictions()
    assert check(predictions, rules).to_dict() == decide(predictions, rules).to_dict()
    with pytest.raises(ConfigError, match="a Linear was given to check"):
        check(nn.Linear(2, 1), rules)
