"""Measure predictions: rates of every group, gaps between groups, an interval beside each."""

from bmft.auditing.audit import (
    CONSTANT as CONSTANT,
    HEADLINE as HEADLINE,
    AuditReport as AuditReport,
    audit_predictions as audit_predictions,
)
from bmft.auditing.calibration import (
    Rescaling as Rescaling,
    fitted_rescaling as fitted_rescaling,
    log_loss as log_loss,
    rescaled_left_out as rescaled_left_out,
)
from bmft.auditing.evidence import POWER as POWER, Claim as Claim, claim_of as claim_of, weigh as weigh
from bmft.auditing.goals import GOALS as GOALS, Epoch as Epoch, Goal as Goal
from bmft.auditing.group_intervals import GroupStatistics as GroupStatistics, Sample as Sample, gather as gather
from bmft.auditing.harm import (
    Split as Split,
    Violation as Violation,
    auc_splits as auc_splits,
    changes_in_words as changes_in_words,
    moved_others as moved_others,
    split_auc as split_auc,
    violations as violations,
)
from bmft.auditing.metrics import (
    DIRECTION as DIRECTION,
    METRICS as METRICS,
    ODDS as ODDS,
    Column as Column,
    Counts as Counts,
    Metric as Metric,
    count as count,
    group_metrics as group_metrics,
)
from bmft.auditing.others import (
    Drift as Drift,
    drift_of as drift_of,
    drifts_in_words as drifts_in_words,
    other_drifts as other_drifts,
)
from bmft.auditing.predictions import Predictions as Predictions, pick_threshold as pick_threshold
from bmft.auditing.predictions_file import read_predictions as read_predictions
from bmft.auditing.resampled import Resampled as Resampled, resampled_figures as resampled_figures, units_of as units_of
from bmft.auditing.swapped import (
    SWAPPED as SWAPPED,
    TURN as TURN,
    looks_swapped as looks_swapped,
    refuse_swapped as refuse_swapped,
)
from bmft.settings import Limits as Limits
