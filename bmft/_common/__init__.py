"""What every room needs: how things are said, what was inferred, and files that appear whole or not at all."""

from bmft._common.assumed import Assumption as Assumption, as_json as as_json, in_words as in_words
from bmft._common.bars import Bar as Bar, watched as watched
from bmft._common.files import (
    in_order as in_order,
    put as put,
    read_safetensors as read_safetensors,
    replacing as replacing,
    with_metadata as with_metadata,
)
from bmft._common.plain_values import plain as plain
from bmft._common.text import (
    MOST as MOST,
    SHOWN as SHOWN,
    did_you_mean as did_you_mean,
    folded as folded,
    html_table as html_table,
    humanise as humanise,
    listed as listed,
    one_line as one_line,
    short as short,
    shown as shown,
    unknown_name as unknown_name,
    with_interval as with_interval,
)
