"""Labelled samples with their groups: a manifest, arrays or a loader in, stratified batches out."""

from bmft.data.apart import apart, shared_with
from bmft.data.arrays import Inputs, map_tensors
from bmft.data.dataset import GroupBatch, GroupedData
from bmft.data.images import LARGEST_IMAGE
from bmft.data.loading import (
    as_grouped,
    assumed_of,
    from_arrays,
    load_manifest,
    skipped_images,
    split_names,
    stratified_batches,
)
from bmft.data.sampling import Balance
from bmft.data.sources import FLIPS, BadImage, DecodedImages, images_from_array
from bmft.data.transforms import Preprocessing

__all__ = [
    "FLIPS",
    "LARGEST_IMAGE",
    "BadImage",
    "Balance",
    "DecodedImages",
    "GroupBatch",
    "GroupedData",
    "Inputs",
    "Preprocessing",
    "apart",
    "as_grouped",
    "assumed_of",
    "from_arrays",
    "images_from_array",
    "load_manifest",
    "map_tensors",
    "shared_with",
    "skipped_images",
    "split_names",
    "stratified_batches",
]
