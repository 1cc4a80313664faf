"""A model and its parts: architecture, head, blocks, weights, activations, and the logits in its answer."""

from bmft.models.activations import Activations, Tail, tail_above
from bmft.models.answers import (
    Reading,
    as_head_of,
    forward_logits,
    forward_outputs,
    kept_mark,
    mark,
    read_as,
    reading_of,
)
from bmft.models.architectures import Fit, fit_of, shapes_of
from bmft.models.blocks import blocks, components, upper
from bmft.models.building import build_model, index_entry, infer_architecture, outline, readings
from bmft.models.features import penultimate_features
from bmft.models.head import Head, find_head, reset_head
from bmft.models.modes import evaluating, trainable
from bmft.models.settle import ROWS, settle, sizes_for
from bmft.models.weights import (
    changes,
    check_tunable,
    check_values,
    copied,
    differing,
    in_own_precision,
    put_back,
    state_hash,
    tensors_of,
    working_copy,
)

__all__ = [
    "ROWS",
    "Activations",
    "Fit",
    "Head",
    "Reading",
    "Tail",
    "as_head_of",
    "blocks",
    "build_model",
    "changes",
    "check_tunable",
    "check_values",
    "components",
    "copied",
    "differing",
    "evaluating",
    "find_head",
    "fit_of",
    "forward_logits",
    "forward_outputs",
    "in_own_precision",
    "index_entry",
    "infer_architecture",
    "kept_mark",
    "mark",
    "outline",
    "penultimate_features",
    "put_back",
    "read_as",
    "reading_of",
    "readings",
    "reset_head",
    "settle",
    "shapes_of",
    "sizes_for",
    "state_hash",
    "tail_above",
    "tensors_of",
    "trainable",
    "upper",
    "working_copy",
]
