"""Which weights carry the gap: importance of every weight, and the mask of those that may move."""

from bmft.masks.importance import Importance, relative, weight_importance, weight_importances
from bmft.masks.mask import Granularity, WeightMask

__all__ = ["Granularity", "Importance", "WeightMask", "relative", "weight_importance", "weight_importances"]
