"""FairTune: an outer search over what a method fine-tunes (Dutt et al. 2024). Needs Optuna."""

from bmft.fairtune.search import SearchProgress, search
from bmft.fairtune.space import search_space

__all__ = ["SearchProgress", "search", "search_space"]
