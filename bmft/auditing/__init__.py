"""Measure predictions: rates of every group, gaps between groups, an interval beside each."""

from bmft.auditing.audit import CONSTANT, AuditReport, audit_predictions
from bmft.auditing.evidence import Claim, weigh
from bmft.auditing.goals import GOALS, Goal
from bmft.auditing.group_intervals import GroupStatistics, Sample, gather
from bmft.auditing.harm import Limits, Split, Violation, fall_in_words, split_auc, violations
from bmft.auditing.metrics import DIRECTION, Column, Counts, count, group_metrics
from bmft.auditing.predictions import Predictions, pick_threshold
from bmft.auditing.predictions_file import read_predictions

__all__ = [
    "CONSTANT",
    "DIRECTION",
    "GOALS",
    "AuditReport",
    "Claim",
    "Column",
    "Counts",
    "Goal",
    "GroupStatistics",
    "Limits",
    "Predictions",
    "Sample",
    "Split",
    "Violation",
    "audit_predictions",
    "count",
    "fall_in_words",
    "gather",
    "group_metrics",
    "pick_threshold",
    "read_predictions",
    "split_auc",
    "violations",
    "weigh",
]
