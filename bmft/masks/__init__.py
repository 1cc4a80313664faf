"""Which weights carry the gap: importance of every weight, and the mask of those that may move."""

from bmft.masks.importance import (
    Importance as Importance,
    relative as relative,
    weight_importance as weight_importance,
    weight_importances as weight_importances,
)
from bmft.masks.mask import Granularity as Granularity, WeightMask as WeightMask
