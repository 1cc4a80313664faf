"""A manifest's table as columns: labels, groups, patients and splits; no pixels and no torch."""

from bmft.tables.attributes import Attribute, encode_attribute, product
from bmft.tables.labels import encode_labels
from bmft.tables.reading import Ints, Texts, column, read_table
from bmft.tables.rows import ALONE, Manifest, cluster_names, read_manifest, rows_of_splits

__all__ = [
    "ALONE",
    "Attribute",
    "Ints",
    "Manifest",
    "Texts",
    "cluster_names",
    "column",
    "encode_attribute",
    "encode_labels",
    "product",
    "read_manifest",
    "read_table",
    "rows_of_splits",
]
