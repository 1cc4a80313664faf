"""Where in a network the gap sits and what moved there, block by block."""

from typing import Any

from bmft.checkpoints import WeightPatch
from bmft.masks import WeightMask
from bmft.methods.run import Run
from bmft.models import blocks


def by_block(run: Run, mask: WeightMask, patch: WeightPatch) -> dict[str, dict[str, Any]]:
    """Block, from input to output -> ``importance``, ``selected``, ``moved`` and ``total``.

    ``importance`` is the block's share of the gap's importance over all weights that were scored; None where none of
    the block's was. The others count its weights: those in the mask, those that changed, and all.
    """
    scored, found = sum(run.importance.values()), {}
    for block, names in blocks(run.model, run.head).items():
        own = [run.importance[name] for name in names if name in run.importance]
        found[block] = {
            "importance": sum(own) / scored if own and scored > 0 else None,
            "selected": sum(int(mask.tensors[name].count_nonzero()) for name in names),
            "moved": sum(len(patch.changes[name].index) for name in names if name in patch.changes),
            "total": sum(mask.tensors[name].numel() for name in names),
        }
    return found
