"""Which kind of figure a report shows, and what may be claimed, in every form that a report has."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from bmft.data import from_arrays
from bmft.methods import debias
from bmft.report import to_html, to_markdown
from tests.training.test_resume import network, patients

FORMS = (to_markdown, to_html)
CONFIG = {"views": "none", "operating_point": "free"}
LOOSE = {"max_auc_drop": 0.2, "max_group_auc_drop": 0.5, "max_calibration_rise": 1.0}


@cache
def outcome(**options):
    fit, select, test = patients(600).split(0.4, 0.3, 0.3, seed=0)
    where = {"test": test} if options.pop("tested", False) else {}
    options = {"device": "cpu", "intervals": False, **LOOSE, **options}
    return debias(network(), fit, select, config=CONFIG, **where, **options)


def test_on_the_rows_that_chose_the_corrected_figures_are_the_results():
    report = outcome().report
    claim = report.claim
    assert claim["word"] in ("shown", "likely")
    assert report.kind == "corrected"
    (gap,) = (one for one in claim["figures"] if one["figure"] == "equalized_odds_difference")
    for form in FORMS:
        text = form(report)
        assert f"from {gap['before']:.3f} to {gap['after']:.3f}, corrected for the choice" in text
        assert f"Evidence of a smaller gap: {claim['word']}" in text
        assert "rows that chose, and corrected for the choice" in text
    assert f"{gap['after']:.3f}" in report.summary
    assert f"evidence {claim['word']}" in report.summary


def test_on_held_out_rows_the_audits_are_the_results_and_the_evidence_is_still_said():
    report = outcome(tested=True).report
    assert report.kind == "held out"
    for form in FORMS:
        assert "neither trained nor chose" in form(report)
        assert "Evidence of a smaller gap" in form(report)


def test_json_has_the_word_the_kind_and_no_uncorrected_reduction():
    found = outcome().report.to_dict()
    assert found["evidence"] == found["claim"]["word"]
    assert found["kind"] == "corrected"
    assert "apparent" not in found["claim"]
    assert found["claim"]["low"] < found["claim"]["reduction"] < found["claim"]["high"]


def test_the_model_card_has_the_corrected_figures_and_says_so():
    report = outcome().report
    card = to_markdown(report).split("---")[1]
    (gap,) = (one for one in report.claim["figures"] if one["figure"] == "equalized_odds_difference")
    assert f"value: {round(gap['after'], 6)}" in card
    assert f'bmft-evidence: "{report.claim["word"]}"' in card
    assert "corrected for the choice" in card


def test_where_too_many_were_tried_the_figures_are_said_to_be_uncorrected():
    fit, select = patients(600).split(0.5, 0.5, seed=0)
    config = {"preset": "path", "epochs": (3, 1)}
    report = debias(network(), fit, select, config=config, device="cpu", intervals=False, **LOOSE).report
    assert report.claim is None
    assert report.kind == "uncorrected"
    assert report.to_dict()["evidence"] is None
    assert "not corrected for the choice: expect somewhat less" in to_markdown(report)


def test_what_is_only_likely_is_kept_out_where_proof_is_asked_for_and_says_how_many_rows_it_takes():
    report = outcome().report
    likely = {**report.claim, "word": "likely", "rows": {"group": {"0": 1234, "1": 567}}}
    text = to_markdown(replace(report, claim=likely))
    assert "567 of group = 1" in text
    sure = outcome(accept="shown", confidence=0.999999999)
    assert not sure.accepted
    assert sure.report.claim["word"] == "likely"
    assert sure.report.claim["rows"]["group"].keys() == {"0", "1"}
    assert "is not shown" in sure.reason
    assert sure.report.kind == "original"


def test_a_gap_that_no_candidate_makes_smaller_is_no_evidence_and_the_original_is_kept():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(5)
    targets, groups = torch.arange(400) % 2, (torch.arange(400) // 2) % 2
    inputs = torch.randn(400, 3, generator=generator) + targets[:, None]
    fit, select = from_arrays(inputs, targets, groups).split(0.5, 0.5, seed=1)
    model = nn.Sequential(nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(-1.5)
    found = debias(model, fit, select, device="cpu", config={"views": "none", "epochs": 6}, intervals=False)
    if not found.accepted:
        assert found.report.claim["word"] == "none"
        assert "the original is kept" in found.reason
    assert np.isfinite(found.report.claim["reduction"])


@pytest.mark.parametrize("keep", ["last"])
def test_the_last_candidate_is_no_choice_and_needs_no_correction(keep):
    report = outcome(keep=keep).report
    assert report.history[-1].chosen
    before, after = report.history[0].gap, report.history[-1].gap
    assert report.claim["reduction"] == pytest.approx(before - after, abs=1e-6)
