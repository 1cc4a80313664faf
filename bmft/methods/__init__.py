"""The named methods, and the one call that runs them without doing harm."""

from bmft.methods.debias import Outcome, debias, remeasured
from bmft.methods.losses import gap_measure
from bmft.methods.run import Progress
from bmft.methods.table import METHODS, installed_methods, settings_for

__all__ = ["METHODS", "Outcome", "Progress", "debias", "gap_measure", "installed_methods", "remeasured", "settings_for"]
