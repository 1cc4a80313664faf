"""Intervals and the bootstrap, as plain functions of numpy arrays."""

from bmft.stats.bootstrap import Statistic, Units, resampled_rows
from bmft.stats.intervals import (
    Interval,
    delong,
    delong_paired,
    miettinen_nurminen,
    never_seen,
    placements,
    quantile,
    student_quantile,
    tango,
    wilson,
)

__all__ = [
    "Interval",
    "Statistic",
    "Units",
    "delong",
    "delong_paired",
    "miettinen_nurminen",
    "never_seen",
    "placements",
    "quantile",
    "resampled_rows",
    "student_quantile",
    "tango",
    "wilson",
]
