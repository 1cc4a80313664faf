"""A model and data in: predictions, an audit of them, what the model looked at and what its features tell."""

from bmft.inference.leakage import Leakage, attribute_leakage, compared_leakage
from bmft.inference.pixels import TILE, ChangedCase, Explanation, changed_cases, explain_cases
from bmft.inference.predicting import audit, predict

__all__ = [
    "TILE",
    "ChangedCase",
    "Explanation",
    "Leakage",
    "attribute_leakage",
    "audit",
    "changed_cases",
    "compared_leakage",
    "explain_cases",
    "predict",
]
