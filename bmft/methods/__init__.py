"""The named methods, and the one call that runs them without doing harm."""

from bmft.methods.calibrating import Calibration as Calibration
from bmft.methods.course import Progress as Progress
from bmft.methods.cross_fitting import (
    check_crossable as check_crossable,
    cross_fit as cross_fit,
    crossable as crossable,
)
from bmft.methods.debiasing import Outcome as Outcome, debias as debias, remeasured as remeasured
from bmft.methods.folds import FOLDS as FOLDS, folds_of as folds_of
from bmft.methods.losses import (
    extractor_loss as extractor_loss,
    gap_measure as gap_measure,
    graded as graded,
    objective_of as objective_of,
)
from bmft.methods.table import METHODS as METHODS, installed_methods as installed_methods, settings_for as settings_for
from bmft.methods.turning import facing as facing, positive_last as positive_last
from bmft.methods.views import known_views as known_views
