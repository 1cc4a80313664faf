"""What every room needs: how things are said, what was inferred, and files that appear whole or not at all."""

from bmft._common.assumed import Assumption, as_json
from bmft._common.files import in_order, put, read_safetensors, replacing
from bmft._common.text import did_you_mean, listed, one_line, short, shown, unknown_name

__all__ = [
    "Assumption",
    "as_json",
    "did_you_mean",
    "in_order",
    "listed",
    "one_line",
    "put",
    "read_safetensors",
    "replacing",
    "short",
    "shown",
    "unknown_name",
]
