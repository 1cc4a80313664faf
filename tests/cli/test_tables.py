import numpy as np
import pytest

from bmft.auditing import AuditReport, Predictions
from bmft.inference import audit
from bmft.tables import Attribute
from bmft_cli.tables import audit_table, with_interval


@pytest.fixture
def report() -> AuditReport:
    rng = np.random.default_rng(0)
    targets, groups = rng.integers(0, 2, 200), rng.integers(-1, 2, 200)
    scores = np.clip(0.3 * targets + 0.6 * rng.random(200), 0, 1)
    attributes = (Attribute("sex", ("female", "male")),)
    return audit(Predictions(scores, targets, groups, attributes), threshold=0.45)


def test_a_single_audit_has_a_line_per_group_and_one_for_the_gaps(report):
    lines = audit_table({"": report}).splitlines()
    assert [line.split()[0] for line in lines] == [
        "sex",
        "female",
        "male",
        "gap",
        "equalized",
        str(report.unknown["sex"]),
        "Classes:",
    ]
    female = report.by_group["sex"]["female"]
    assert lines[1].split()[1:4] == [str(female["n"]), str(female["n_positive"]), f"{female['roc_auc']:.3f}"]
    low, high = report.intervals["by_group"]["sex"]["female"]["true_positive_rate"]
    assert f"{female['true_positive_rate']:.3f} [{low:.3f}, {high:.3f}]" in lines[1]
    assert f"{report.gaps['sex']['equalized_odds_difference']:.3f}" in lines[4]


def test_two_audits_stand_under_each_other_and_counts_are_written_once(report):
    lines = audit_table({"before": report, "after": report}).splitlines()
    assert [line.split()[0] for line in lines[:7]] == ["sex", "female", "after", "male", "after", "gap", "after"]
    assert str(report.by_group["sex"]["male"]["n"]) in lines[3].split()
    assert lines[7].startswith("equalized odds difference: before ")
    assert len({len(line) for line in lines[1:7]}) == 1


def test_what_could_not_be_measured_is_a_dash_and_never_a_zero():
    assert with_interval(float("nan"), (0.1, 0.2)) == "-"
    assert with_interval(None, None) == "-"
    assert with_interval(0.25, (float("nan"), 0.3)) == "0.250"
    assert with_interval(0.0, (0.0, 0.1)) == "0.000 [0.000, 0.100]"
