"""Every method and baseline on the same rows, under one budget."""

from bmft.comparison.results import Comparison
from bmft.comparison.runner import compare, write_comparison
from bmft.comparison.trials import Budget, World

__all__ = ["Budget", "Comparison", "World", "compare", "write_comparison"]
