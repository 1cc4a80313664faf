"""A manifest's table as columns: labels, groups, patients and splits; no pixels and no torch."""

from bmft.tables.attributes import (
    Attribute as Attribute,
    encode_attribute as encode_attribute,
    encode_attributes as encode_attributes,
    product as product,
)
from bmft.tables.inputs import (
    InputColumn as InputColumn,
    encode_inputs as encode_inputs,
    input_columns as input_columns,
    inputs_in_words as inputs_in_words,
    said_columns as said_columns,
)
from bmft.tables.joining import join as join
from bmft.tables.labels import (
    ClassNames as ClassNames,
    Labels as Labels,
    about_classes as about_classes,
    encode_labels as encode_labels,
    tells_positive as tells_positive,
)
from bmft.tables.reading import Ints as Ints, Texts as Texts, column as column, read_table as read_table
from bmft.tables.rows import (
    ALONE as ALONE,
    Manifest as Manifest,
    cluster_names as cluster_names,
    in_splits as in_splits,
    labelled as labelled,
    read_manifest as read_manifest,
    rows_of_splits as rows_of_splits,
    said_of_clusters as said_of_clusters,
)
from bmft.tables.sheets import read_excel as read_excel
from bmft.tables.splits import (
    ROLES as ROLES,
    no_split as no_split,
    split_names as split_names,
    splits_by_role as splits_by_role,
)
from bmft.tables.unknown import (
    BY_DEFAULT as BY_DEFAULT,
    DOUBTFUL as DOUBTFUL,
    UNCERTAIN as UNCERTAIN,
    UNKNOWN as UNKNOWN,
    Unknown as Unknown,
    is_code as is_code,
)
