"""Move only the weights of a mask: the step rule, the loss, the loop, the choice of the epoch."""

from bmft.auditing import Limits
from bmft.training.choice import Gap, weigh_candidates
from bmft.training.conditions import Conditions
from bmft.training.loop import tune
from bmft.training.loss import Loss, PooledLoss
from bmft.training.masked_step import SelectedWeights, masked
from bmft.training.resume import Journal
from bmft.training.selection import Selection
from bmft.training.settings import Step
from bmft.training.state import EpochKeeper, TrainingState

__all__ = [
    "Conditions",
    "EpochKeeper",
    "Gap",
    "Journal",
    "Limits",
    "Loss",
    "PooledLoss",
    "SelectedWeights",
    "Selection",
    "Step",
    "TrainingState",
    "masked",
    "tune",
    "weigh_candidates",
]
