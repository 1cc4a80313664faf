"""Post-hoc debiasing of trained PyTorch classifiers: measure a gap, move the weights that carry it, prove it."""

from typing import Any

from bmft import fairness
from bmft.audit import AuditReport, Predictions, audit, predict
from bmft.checkpoint import load_checkpoint, read_checkpoint, write_checkpoint
from bmft.data import Attribute, GroupBatch, GroupedData, from_arrays, load_manifest
from bmft.errors import BmftError
from bmft.finetune import masked
from bmft.gate import check
from bmft.importance import Importance, relative, weight_importance, weight_importances
from bmft.mask import WeightMask
from bmft.methods import METHODS, Outcome, Progress, debias
from bmft.patch import WeightPatch
from bmft.policy import load_policy
from bmft.report import write_report
from bmft.settings import Settings
from bmft.testing import assert_fair

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "Attribute",
    "AuditReport",
    "BmftError",
    "GroupBatch",
    "GroupedData",
    "Importance",
    "Outcome",
    "Predictions",
    "Progress",
    "Settings",
    "WeightMask",
    "WeightPatch",
    "__version__",
    "assert_fair",
    "audit",
    "check",
    "debias",
    "fairness",
    "from_arrays",
    "load_checkpoint",
    "load_manifest",
    "load_policy",
    "masked",
    "predict",
    "read_checkpoint",
    "relative",
    "search",
    "weight_importance",
    "weight_importances",
    "write_checkpoint",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # Imported when it is used, since it needs Optuna, which only a search needs.
    if name == "search":
        from bmft.fairtune import search

        return search
    raise AttributeError(f"module 'bmft' has no attribute {name!r}")
