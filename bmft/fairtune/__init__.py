"""FairTune: an outer search over what a method fine-tunes (Dutt et al. 2024). Needs Optuna."""

from bmft.fairtune.searching import SearchProgress as SearchProgress, search as search
from bmft.fairtune.space import search_space as search_space
