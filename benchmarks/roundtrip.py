"""One form of checkpoint through the commands and back, measured by the loader of the library that made it."""

import csv
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmft.checkpoints import build_from, read_checkpoint
from bmft.models import forward_logits

SIZE, ROWS = 32, 96
COLUMNS = ("inspect", "audit", "debias", "loaded again by its own library")


@dataclass(frozen=True)
class Form:
    """One way to keep a classifier.

    Attributes:
        name: of the row.
        needs: the packages that make it and load it again.
        make: writes one into a folder and gives its path.
        load: the library's own loader: path -> images to logits.
        options: what the command line has to be told; ``{folder}`` is where it was made.
        data: what audit and debias have to be told besides.
        channels: of the images.
        size: what they are resized to.
        seed: of its weights; chance makes a few such networks answer significantly the wrong way round.
        ours: bmft's model and images to what `load` gives.
    """

    name: str
    needs: tuple[str, ...]
    make: Callable[[Path], Path]
    load: Callable[[Path], Callable[[Tensor], Any]]
    options: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    channels: int = 3
    size: int = SIZE
    seed: int = 0
    ours: Callable[[nn.Module, Tensor], Tensor] = forward_logits

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def write_data(folder: Path, channels: int = 3, size: int = SIZE) -> list[str]:
    """Noise as images in an npz with their table; the options that name them."""
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, ROWS), rng.integers(0, 2, ROWS)
    images = rng.integers(0, 200, (ROWS, SIZE, SIZE, channels), dtype=np.uint8)
    np.savez(folder / "study.npz", images=images if channels == 3 else images[..., 0])
    with (folder / "study.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ill", "sex", "patient", "split"])
        names = np.repeat(["fit", "select", "test"], ROWS // 3)
        rows.writerows(zip(labels, groups, range(ROWS), names, strict=True))
    data = ["--data", folder / "study.npz", "--label", "ill", "--sensitive", "sex", "--cluster", "patient"]
    more = ["--normalize", "0.5/0.25"] if channels == 1 else []
    data += ["--split-column", "split", "--image-size", size, "--threshold-from", "select"]
    return [*map(str, data), *more]


def run(*arguments: str) -> tuple[int, str]:
    """A command's exit code, and the last line it said."""
    from bmft_cli.main import main

    shown = io.StringIO()
    with redirect_stdout(shown), redirect_stderr(shown):
        code = main(list(arguments))
    return code, shown.getvalue().strip().rpartition("\n")[2]


def through(form: Form, folder: Path) -> dict[str, str]:
    """What became of one form in each column: ``yes``, or what was said."""
    torch.manual_seed(form.seed)
    with quiet():
        path = form.make(folder)
    data, out = write_data(folder, form.channels, form.size), path.with_name(f"fair{path.suffix}")
    options = [*(option.format(folder=folder) for option in form.options), "--quiet"]
    own = [*data, *form.data, "--device", "cpu"]
    commands = {
        "inspect": ["inspect", str(path), *options],
        "audit": ["audit", str(path), *own, *options, "--json", str(folder / "audit.json")],
        "debias": ["debias", str(path), *own, *options, "--out", str(out), "--epochs", "1", "--keep", "last"],
    }
    found = {}
    for name, command in commands.items():
        code, said = run(*command)
        found[name] = "yes" if code == 0 else f"{code}: {said}"
    found[COLUMNS[-1]] = again(form, folder, path, out) if out.exists() else "nothing was written"
    return found


def again(form: Form, folder: Path, path: Path, out: Path) -> str:
    """Whether the library's loader makes of the result what bmft makes of it, and no longer what it was."""
    images = torch.rand(4, form.channels, form.size, form.size)
    trusted = "--trust-pickle" in form.options
    arch = form.options[form.options.index("--arch") + 1].format(folder=folder) if "--arch" in form.options else None
    answers, kept = [], []
    for one in (path, out):
        checkpoint = read_checkpoint(one, trust_pickle=trusted)
        with quiet(), torch.no_grad():
            theirs, ours = form.load(one)(images), form.ours(build_from(checkpoint, arch=arch), images)
        if not torch.allclose(theirs, ours, atol=1e-5):
            return f"bmft makes another model of {one.name}: {float((theirs - ours).abs().max()):.2g} apart"
        answers.append(theirs)
        kept.append(checkpoint)
    if list(kept[0].state) != list(kept[1].state) or kept[0].container != kept[1].container:
        return "its names or its container are others"
    return "yes" if not torch.equal(*answers) else "it answers as before"


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, libraries' remarks and progress bars go nowhere."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
