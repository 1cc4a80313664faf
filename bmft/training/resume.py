"""Where a run has got to, kept in a folder, so that one that was killed goes on and ends with the same bytes."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bmft._common import in_order, put, short
from bmft.auditing import Epoch
from bmft.errors import ConfigError, DataError
from bmft.training.selection import Selection

_EPOCH = "epoch.safetensors"
_ENTRIES = {"run": dict, "stage": int, "history": list, "chosen": int, "remarks": list}


class Journal:
    """What each finished stage of one run changed, and the latest epoch of the stage under way.

    A stage is a part of a method that starts from weights and a generator which the method sets up alike every time:
    the extractor's training, or the heads at one point of the path. Going on, the method is run from its beginning, and
    a stage that is found here is put back instead of trained.

    Args:
        folder: made when there is something to keep.
        run: what decides the result; a journal of another run is refused.
        resume: go on with what the folder holds; otherwise it is forgotten.

    Raises:
        ConfigError: the folder holds another run.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, resume: bool) -> None:
        self.folder, self.run, self.stage = folder, json.loads(json.dumps(run)), 0
        if not resume:
            self.forget()
        elif found := sorted(folder.rglob("[se]*.safetensors")):
            self._check(self._read(found[0])[1]["run"])

    def within(self, name: str) -> "Journal":
        """A journal of one of several trainings that this run consists of."""
        return Journal(self.folder / name, self.run, resume=True)

    def forget(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=not self.folder.exists())

    def begin_stage(self) -> int:
        """The number of the stage that begins now."""
        self.stage += 1
        return self.stage

    def stage_done(self, number: int, selection: Selection) -> dict[str, Tensor] | None:
        """What `record_stage` was given for this stage, if it was; `selection` is then as it was at its end."""
        path = self._stage_file(number)
        return self._put_back(path, selection)[0] if path.exists() else None

    def record_stage(self, number: int, selection: Selection, tensors: Mapping[str, Tensor]) -> None:
        """Keep what a stage changed, and whom the selection prefers by now."""
        self._keep(self._stage_file(number), number, selection, tensors)
        (self.folder / _EPOCH).unlink(missing_ok=True)

    def epoch_done(self, number: int, selection: Selection) -> dict[str, Tensor] | None:
        """What `record_epoch` was last given in this stage, if anything."""
        path = self.folder / _EPOCH
        if not path.exists() or self._read(path)[1]["stage"] != number:
            return None
        return self._put_back(path, selection)[0]

    def record_epoch(self, number: int, selection: Selection, tensors: Mapping[str, Tensor]) -> None:
        """Keep where a stage's training is; the epoch before is forgotten."""
        self._keep(self.folder / _EPOCH, number, selection, tensors)

    def _stage_file(self, number: int) -> Path:
        return self.folder / f"stage-{number}.safetensors"

    def _best_file(self, chosen: int) -> Path:
        return self.folder / f"best-{chosen}.safetensors"

    def _candidate_file(self, place: int) -> Path:
        return self.folder / f"candidate-{place}.safetensors"

    def _keep(self, path: Path, number: int, selection: Selection, tensors: Mapping[str, Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        best = self._best_file(selection.chosen)
        where = {"run": self.run, "stage": number, "history": [entry.to_dict() for entry in selection.history]}
        where |= {"chosen": selection.chosen, "remarks": selection.remarks}
        named = {"journal": json.dumps(where)}
        # First the weights, then the file that names them, then the others go: a kill in between does no harm.
        if selection.chosen and not best.exists():
            put(in_order(save(_plain(selection.state), named)), best)
        for place, (predictions, state) in selection.candidates.items() if selection.few else ():
            if place and not self._candidate_file(place).exists():
                found = {"scores": predictions.scores, "others": predictions.others}
                tensors_of = {name: torch.from_numpy(value) for name, value in found.items() if value is not None}
                put(in_order(save(_plain({**state, **tensors_of}), named)), self._candidate_file(place))
        put(in_order(save(_plain(tensors), named)), path)
        for other in self.folder.glob("best-*.safetensors"):
            if other != best:
                other.unlink()

    def _put_back(self, path: Path, selection: Selection) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, where = self._read(path)
        best = self._best_file(where["chosen"])
        # Of a stage that is not the last one, the weights it preferred may be gone: those of a later one will do.
        state = self._read(best)[0] if where["chosen"] and best.exists() else {}
        candidates = {}
        for place in range(1, len(where["history"]) if selection.few else 0):
            kept = self._read(self._candidate_file(place))[0]
            others = kept.pop("others").numpy() if "others" in kept else None
            scores = kept.pop("scores").numpy()
            candidates[place] = replace(selection.candidates[0][0], scores=scores, others=others), kept
        history = [Epoch.from_dict(entry) for entry in where["history"]]
        selection.load_state(history, where["chosen"], state, where["remarks"], candidates)
        return tensors, where

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                where = json.loads((file.metadata() or {})["journal"])
                if not isinstance(where, dict) or {n: type(v) for n, v in where.items()} != _ENTRIES:
                    raise ValueError("other entries than a journal's")
                if not 0 <= where["chosen"] < len(where["history"]):
                    raise ValueError("its choice is not in its history")
                return tensors, where
        except (SafetensorError, OSError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: not a journal of a run ({short(error)}); remove {self.folder} to start over"
            ) from error

    def _check(self, other: Mapping[str, Any]) -> None:
        differing = [name for name in {**self.run, **other} if self.run.get(name) != other.get(name)]
        if differing:
            name = differing[0]
            raise ConfigError(
                f"{self.folder} holds an unfinished run with another {name} ({_short(other.get(name))}, now "
                f"{_short(self.run.get(name))}): give the same options, or leave out --resume to start over"
            )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A copy of each: safetensors refuses tensors that share memory or lie in it in another order.
    layout = torch.contiguous_format
    return {name: tensor.detach().cpu().clone(memory_format=layout) for name, tensor in tensors.items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
