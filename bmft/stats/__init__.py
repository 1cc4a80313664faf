"""Intervals and the bootstrap, as plain functions of numpy arrays."""

from bmft.stats.bootstrap import Statistic as Statistic, Units as Units, resampled_rows as resampled_rows
from bmft.stats.curves import reliability_bins as reliability_bins, roc_points as roc_points
from bmft.stats.intervals import (
    Interval as Interval,
    auc_interval as auc_interval,
    delong as delong,
    delong_paired as delong_paired,
    miettinen_nurminen as miettinen_nurminen,
    never_seen as never_seen,
    placements as placements,
    quantile as quantile,
    student_quantile as student_quantile,
    tango as tango,
    wilson as wilson,
)
