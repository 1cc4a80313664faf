"""A model and data in: predictions, an audit of them, what the model looked at and what its features tell."""

from bmft.inference.leakage import (
    Leakage as Leakage,
    attribute_leakage as attribute_leakage,
    compared_leakage as compared_leakage,
)
from bmft.inference.pixels import (
    TILE as TILE,
    ChangedCase as ChangedCase,
    Explanation as Explanation,
    changed_cases as changed_cases,
    explain_cases as explain_cases,
)
from bmft.inference.predicting import audit as audit, predict as predict
