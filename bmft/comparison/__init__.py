"""Every method and baseline on the same rows, under one budget."""

from bmft.comparison.results import Comparison as Comparison, MethodRow as MethodRow
from bmft.comparison.runner import compare as compare, write_comparison as write_comparison
from bmft.comparison.trials import Budget as Budget, World as World
