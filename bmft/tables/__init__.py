"""A manifest's table as columns: labels, groups, patients and splits; no pixels and no torch."""

from bmft.tables.attributes import Attribute, encode_attribute, product
from bmft.tables.labels import encode_labels
from bmft.tables.reading import Ints, Texts, column, read_table
from bmft.tables.rows import Manifest, cluster_ids, read_manifest

__all__ = [
    "Attribute",
    "Ints",
    "Manifest",
    "Texts",
    "cluster_ids",
    "column",
    "encode_attribute",
    "encode_labels",
    "product",
    "read_manifest",
    "read_table",
]
