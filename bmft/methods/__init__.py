"""The named methods, and the one call that runs them without doing harm."""

from bmft.methods.debias import Outcome, debias, remeasured
from bmft.methods.run import Progress
from bmft.methods.settings import Settings
from bmft.methods.table import METHODS, installed_methods, settings_for

__all__ = ["METHODS", "Outcome", "Progress", "Settings", "debias", "installed_methods", "remeasured", "settings_for"]
