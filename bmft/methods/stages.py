"""A stage of a run: trained, or put back as an earlier process left it in the journal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bmft.models import changes, put_back, tensors_of
from bmft.training import EpochKeeper, Journal, Selection


def in_a_stage(
    train: Callable[[EpochKeeper | None], None],
    model: nn.Module,
    generator: torch.Generator,
    selection: Selection,
    journal: Journal | None,
) -> None:
    """Change `model` as `train` does, or as it did in an earlier process."""
    if journal is None:
        train(None)
        return
    number = journal.begin_stage()
    found = journal.stage_done(number, selection)
    if found is not None:
        generator.set_state(found.pop("generator"))
        put_back(tensors_of(model), found)
        return
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    train(_Epochs(journal, number, selection))
    changed = changes(before, tensors_of(model)) | {"generator": generator.get_state()}
    journal.record_stage(number, selection, changed)


@dataclass(frozen=True)
class _Epochs:
    """Keeps the epochs of one stage in the journal."""

    journal: Journal
    number: int
    selection: Selection

    def read(self) -> Mapping[str, torch.Tensor] | None:
        return self.journal.epoch_done(self.number, self.selection)

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.journal.record_epoch(self.number, self.selection, tensors)
