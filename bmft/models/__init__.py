"""A model and its parts: architecture, head, blocks, weights, activations, and the logits in its answer."""

from bmft.models.activations import Activations as Activations, Tail as Tail, tail_above as tail_above
from bmft.models.answers import (
    Reading as Reading,
    as_head_of as as_head_of,
    forward_logits as forward_logits,
    forward_outputs as forward_outputs,
    forward_with_others as forward_with_others,
    kept_mark as kept_mark,
    mark as mark,
    meant as meant,
    not_its_inputs as not_its_inputs,
    read_as as read_as,
    reading_of as reading_of,
)
from bmft.models.architectures import Fit as Fit, fit_of as fit_of, shapes_of as shapes_of
from bmft.models.block_structure import blocks as blocks, components as components, upper as upper
from bmft.models.building import (
    build_model as build_model,
    index_entry as index_entry,
    outline as outline,
    readings as readings,
)
from bmft.models.features import penultimate_features as penultimate_features
from bmft.models.fitting import Fitted as Fitted, compare as compare, fitted as fitted
from bmft.models.head import Head as Head, find_head as find_head, reset_head as reset_head
from bmft.models.modes import evaluating as evaluating, trainable as trainable
from bmft.models.naming import found_function as found_function
from bmft.models.outputs import (
    Kind as Kind,
    OutputNames as OutputNames,
    kind_of_problem as kind_of_problem,
    listed_outputs as listed_outputs,
)
from bmft.models.purpose import (
    answer_to_an_image as answer_to_an_image,
    check_takes_images as check_takes_images,
    purpose_of as purpose_of,
)
from bmft.models.recognising import infer_architecture as infer_architecture, recognised as recognised
from bmft.models.recomputation import recomputing as recomputing
from bmft.models.seen import unlike_training as unlike_training
from bmft.models.settling import ROWS as ROWS, settle as settle, sizes_for as sizes_for
from bmft.models.turning import (
    positive_first as positive_first,
    turn_head as turn_head,
    turned as turned,
    turned_model as turned_model,
)
from bmft.models.weights import (
    changes as changes,
    check_tunable as check_tunable,
    check_values as check_values,
    copied as copied,
    differing as differing,
    in_own_precision as in_own_precision,
    put_back as put_back,
    state_hash as state_hash,
    tensors_of as tensors_of,
    working_copy as working_copy,
)
