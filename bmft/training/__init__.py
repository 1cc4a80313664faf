"""Move only the weights of a mask: the step rule, the loss, the loop, the choice of the epoch."""

from bmft.auditing import Limits as Limits
from bmft.training.choice import Gap as Gap, figures_of as figures_of
from bmft.training.conditions import Conditions as Conditions
from bmft.training.loop import tune as tune
from bmft.training.loss import Loss as Loss, PooledLoss as PooledLoss, mean_of_known as mean_of_known
from bmft.training.masked_step import SelectedWeights as SelectedWeights, masked as masked
from bmft.training.passes import logits_of as logits_of
from bmft.training.resume import Journal as Journal
from bmft.training.selection import Selection as Selection
from bmft.training.settings import Step as Step
from bmft.training.state import EpochKeeper as EpochKeeper, TrainingState as TrainingState
