"""Labelled samples with their groups: a manifest, arrays or a loader in, stratified batches out."""

from bmft.data.arrays import (
    Inputs as Inputs,
    images_of as images_of,
    leaves as leaves,
    map_images as map_images,
    map_tensors as map_tensors,
)
from bmft.data.columns import drawn_columns as drawn_columns, input_names as input_names
from bmft.data.dataset import GroupBatch as GroupBatch, GroupedData as GroupedData
from bmft.data.foreign import from_datamodule as from_datamodule, from_dataset as from_dataset
from bmft.data.loading import (
    as_grouped as as_grouped,
    from_arrays as from_arrays,
    load_manifest as load_manifest,
    skipped_images as skipped_images,
    split_names as split_names,
    stratified_batches as stratified_batches,
)
from bmft.data.preprocessing import Preprocessing as Preprocessing
from bmft.data.sampling import label_strata as label_strata
from bmft.data.shared_rows import apart as apart, shared_with as shared_with
from bmft.data.sources import FLIPS as FLIPS, DecodedImages as DecodedImages, images_from_array as images_from_array
from bmft.data.transforms import parse_normalization as parse_normalization
