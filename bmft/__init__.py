"""Post-hoc debiasing of trained PyTorch classifiers: measure a gap, move the weights that carry it, prove it.

Names are imported when they are first used, so that ``import bmft`` costs next to nothing and measuring never pays
for torch.
"""

# Type checkers take this name for true; typing itself would be half of what an import costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import bmft.fairness as fairness
    from bmft.auditing import AuditReport as AuditReport, Predictions as Predictions
    from bmft.checkpoints import (
        WeightPatch as WeightPatch,
        load_checkpoint as load_checkpoint,
        read_checkpoint as read_checkpoint,
        write_checkpoint as write_checkpoint,
    )
    from bmft.data import (
        GroupBatch as GroupBatch,
        GroupedData as GroupedData,
        from_arrays as from_arrays,
        from_datamodule as from_datamodule,
        from_dataset as from_dataset,
        load_manifest as load_manifest,
    )
    from bmft.errors import BmftError as BmftError
    from bmft.fairtune import search as search
    from bmft.gate import load_policy as load_policy
    from bmft.inference import audit as audit, predict as predict
    from bmft.masks import (
        Importance as Importance,
        WeightMask as WeightMask,
        relative as relative,
        weight_importance as weight_importance,
        weight_importances as weight_importances,
    )
    from bmft.methods import (
        METHODS as METHODS,
        Outcome as Outcome,
        Progress as Progress,
        cross_fit as cross_fit,
        debias as debias,
    )
    from bmft.models import read_as as read_as
    from bmft.report import log_to as log_to, write_report as write_report
    from bmft.settings import Settings as Settings
    from bmft.tables import Attribute as Attribute
    from bmft.testing import assert_fair as assert_fair, check as check
    from bmft.training import Conditions as Conditions, Limits as Limits, masked as masked

__version__ = "0.1.0"
_PLACES = {
    "auditing": ("AuditReport", "Predictions"),
    "checkpoints": ("WeightPatch", "load_checkpoint", "read_checkpoint", "write_checkpoint"),
    "data": ("GroupBatch", "GroupedData", "from_arrays", "from_datamodule", "from_dataset", "load_manifest"),
    "errors": ("BmftError",),
    "fairtune": ("search",),
    "gate": ("load_policy",),
    "inference": ("audit", "predict"),
    "masks": ("Importance", "WeightMask", "relative", "weight_importance", "weight_importances"),
    "methods": ("METHODS", "Outcome", "Progress", "cross_fit", "debias"),
    "models": ("read_as",),
    "report": ("log_to", "write_report"),
    "settings": ("Settings",),
    "tables": ("Attribute",),
    "testing": ("assert_fair", "check"),
    "training": ("Conditions", "Limits", "masked"),
}
_PLACE = {name: place for place, names in _PLACES.items() for name in names}

__all__ = ["__version__", "fairness", *sorted(_PLACE)]


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name == "fairness":
        return import_module("bmft.fairness")
    if name not in _PLACE:
        raise AttributeError(f"module 'bmft' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"bmft.{_PLACE[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
