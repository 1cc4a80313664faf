"""A run told to a tracker as it goes: MLflow, Weights & Biases or TensorBoard, each through its own library.

Figures, settings, the report and the checkpoint are told; images and rows never are.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from bmft._common import one_line, plain, short, unknown_name
from bmft.auditing import AuditReport
from bmft.errors import ConfigError, MissingExtraError, TrackerError
from bmft.report.values import DebiasReport, Report

log = logging.getLogger(__name__)
_PROJECT = "bmft"
_PARTS = ("html", "json", "md")


class Tracker(Protocol):
    """What a library does with a run; `errors` are those of its own that it raises."""

    errors: tuple[type[Exception], ...]

    def config(self, values: Mapping[str, str]) -> None:
        """Settings by name."""

    def figures(self, values: Mapping[str, float], step: int | None) -> None:
        """Figures by name, of one step or of the whole run."""

    def file(self, path: Path) -> None:
        """A file of the run."""

    def close(self, failed: bool) -> None:
        """The run is over."""


class Log:
    """An open run of a tracker, made by `log_to`; give it as ``progress=`` to `debias`, `search` or `compare`.

    What goes wrong at the tracker after it was opened is a remark, once, and ends the telling, never the run.
    """

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name = tracker, name
        self._steps, self._done, self._broken = 0, -1.0, False

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def __call__(self, *now: Any) -> None:
        """What `debias`, `search` and `compare` give their ``progress``: an epoch on select, a trial's end."""
        first = now[0]
        if (inner := getattr(first, "figures", None)) is not None:
            self._steps += 1
            figures = {f"select/{key}": value for key, value in _numbers(inner.to_dict()) if key != "chosen"}
            loss = figures.pop("select/loss", math.nan)
            self.figures({**figures, "train/loss": loss}, self._steps)
        elif getattr(first, "best", None) is not None and first.done > self._done:
            self._done = first.done
            self.figures({"search/best": first.best}, int(first.done))

    def config(self, values: Mapping[str, Any]) -> None:
        """Settings by name; what is unset is left out."""
        said = {key: value for key, value in plain(values).items() if value not in (None, (), [], "")}
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
        self._tell(lambda: self._tracker.config({key: short(text, 500) for key, text in texts.items()}))

    def figures(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Figures by name; those that are not known are left out."""
        known = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
        if known:
            self._tell(lambda: self._tracker.figures(_named(known), step))

    def report(self, report: Report) -> None:
        """An audit's or a debiasing's figures, settings and page; without the pictures of cases in it."""
        if isinstance(report, DebiasReport):
            self.config({"method": report.method, **report.config})
            sides = {"before/": report.before, "after/": report.after}
            self.figures({key: value for start, side in sides.items() for key, value in _of_audit(side, start)})
            self.figures({"accepted": float(report.accepted)})
            report = replace(report, extra={key: value for key, value in report.extra.items() if key != "pixels"})
        else:
            self.figures(dict(_of_audit(report)))
        from bmft.report.reports import write_report

        with tempfile.TemporaryDirectory() as folder:
            write_report(report, folder)
            self.files(Path(folder, f"report.{part}") for part in _PARTS)

    def files(self, paths: Iterable[str | Path]) -> None:
        """Files, such as the checkpoint and its patch; a folder file by file."""
        for path in map(Path, paths):
            for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if one.is_file():
                    self._tell(lambda one=one: self._tracker.file(one))

    def close(self, *, failed: bool = False) -> None:
        """End the run at the tracker."""
        self._tell(lambda: self._tracker.close(failed))
        self._broken = True

    def _tell(self, what: Any) -> None:
        if self._broken:
            return
        errors: tuple[type[Exception], ...] = (*self._tracker.errors, OSError)
        try:
            what()
        except errors as error:
            self._broken = True
            log.warning("%s is told no more of this run: %s", self._name, short(error))


def log_to(where: str, *, name: str | None = None) -> Log:
    """Open a run at a tracker.

    ``with bmft.log_to("mlflow") as log: outcome = bmft.debias(..., progress=log); log.report(outcome.report)``

    Args:
        where: ``mlflow``, ``wandb`` or ``tensorboard``: the place that the library's own environment variables and
            settings say; or with a folder, ``mlflow:DIR`` (an SQLite file and artefacts there), ``wandb:DIR`` (offline,
            for ``wandb sync``), ``tensorboard:DIR``.
        name: of the run; by default the library's choice.

    Raises:
        ConfigError: there is no such tracker.
        MissingExtraError: its library is not installed.
        TrackerError: it cannot be reached, or refuses.
    """
    library, _, folder = where.partition(":")
    if library not in _TRACKERS:
        raise ConfigError(unknown_name("tracker", library, _TRACKERS))
    if where.endswith(":"):
        raise ConfigError(f"--log {where}: expected a folder after the colon, or {library} alone.")
    make, needed = _TRACKERS[library]
    if missing := [one for one in needed if importlib.util.find_spec(one) is None]:
        raise MissingExtraError(f"--log {library} needs {' and '.join(missing)}: pip install 'bmft[{library}]'")
    try:
        return Log(make(Path(folder) if folder else None, name), library)
    except _failures(library) as error:
        raise TrackerError(f"--log {where}: {library} cannot be told of this run: {short(error)}") from error


def _of_audit(report: AuditReport, start: str = "") -> Iterable[tuple[str, float]]:
    """The figures of an audit by name, such as ``sex female/roc_auc``, with the bounds of the gaps' intervals."""
    found = plain(report)
    yield from ((f"{start}overall/{key}", value) for key, value in _numbers(found["overall"]))
    for attribute, groups in found["by_group"].items():
        for group, figures in groups.items():
            yield from ((f"{start}{attribute} {group}/{key}", value) for key, value in _numbers(figures))
    for attribute, gaps in found["gaps"].items():
        yield from ((f"{start}{attribute}/{key}", value) for key, value in _numbers(gaps))
        for key, bounds in ((found.get("intervals") or {}).get("gaps") or {}).get(attribute, {}).items():
            if bounds is not None:
                ends = zip(("low", "high"), bounds, strict=True)
                yield from ((f"{start}{attribute}/{key}_{end}", value) for end, value in ends if value is not None)


def _numbers(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    return [(key, value) for key, value in values.items() if isinstance(value, int | float)]


def _named(values: Mapping[str, float]) -> dict[str, float]:
    """The figures under names that every tracker takes, each by one of its own.

    >>> _named({"age=<40/n": 1, "age=>40/n": 2, "age=(40/n": 3})
    {'age below 40/n': 1, 'age above 40/n': 2, 'age 40/n': 3}
    """
    found: dict[str, float] = {}
    for key, value in values.items():
        spelt = one_line(key).replace("<", " below ").replace(">", " above ").replace("+", " and more")
        name = " ".join(re.sub(r"[^\w\-./ ]", " ", spelt, flags=re.ASCII).split()).replace(" /", "/")
        again = 2
        while name in found:
            name, again = f"{name.rpartition(' no ')[0] or name} no {again}", again + 1
        found[name] = value
    return found


class _MLflow:
    """Experiment ``bmft``, unless ``MLFLOW_EXPERIMENT_NAME`` names another."""

    def __init__(self, folder: Path | None, name: str | None) -> None:
        import mlflow

        self._mlflow = mlflow
        self.errors: tuple[type[Exception], ...] = (mlflow.exceptions.MlflowException,)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
            if mlflow.get_experiment_by_name(_PROJECT) is None:
                mlflow.create_experiment(_PROJECT, (folder.absolute() / "artifacts").as_uri())
            mlflow.set_experiment(_PROJECT)
        # Inside a run of the user's own, it is one of that.
        self._run = mlflow.start_run(run_name=name, nested=mlflow.active_run() is not None)
        self._id = self._run.info.run_id

    def config(self, values: Mapping[str, str]) -> None:
        self._mlflow.log_params(dict(values), run_id=self._id)

    def figures(self, values: Mapping[str, float], step: int | None) -> None:
        self._mlflow.log_metrics(dict(values), step=step, run_id=self._id)

    def file(self, path: Path) -> None:
        self._mlflow.log_artifact(str(path), run_id=self._id)

    def close(self, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class _Wandb:
    """Project ``bmft``, unless ``WANDB_PROJECT`` names another."""

    def __init__(self, folder: Path | None, name: str | None) -> None:
        import wandb

        self.errors: tuple[type[Exception], ...] = (wandb.Error,)
        local: dict[str, Any] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            local = {"dir": str(folder), "mode": "offline"}
        asked = wandb.setup().settings
        # Neither what is printed, which names rows and files, nor code.
        silent = wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True)
        self._run = wandb.init(project=asked.project or _PROJECT, name=name, settings=silent, **local)

    def config(self, values: Mapping[str, str]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)  # type: ignore[no-untyped-call,unused-ignore]

    def figures(self, values: Mapping[str, float], step: int | None) -> None:
        if step is None:
            for key, value in values.items():
                self._run.summary[key] = value
        else:
            self._run.log(dict(values), step=step)

    def file(self, path: Path) -> None:
        # A copy in the run's own folder: what is saved by its place may be gone before it is sent.
        copy = Path(self._run.dir, path.name)
        shutil.copyfile(path, copy)
        self._run.save(str(copy), base_path=self._run.dir, policy="now")

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _TensorBoard:
    """Events in the folder, by default torch's ``runs/``; files beside them."""

    errors: tuple[type[Exception], ...] = ()

    def __init__(self, folder: Path | None, name: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        inside = folder if folder is None or name is None else folder / name
        self._writer = SummaryWriter(None if inside is None else str(inside))

    def config(self, values: Mapping[str, str]) -> None:
        rows = "".join(f"| {key} | {value} |\n" for key, value in values.items())
        self._writer.add_text("config", f"| setting | value |\n|---|---|\n{rows}")

    def figures(self, values: Mapping[str, float], step: int | None) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def file(self, path: Path) -> None:
        folder: str = self._writer.get_logdir()  # type: ignore[no-untyped-call,unused-ignore]
        shutil.copyfile(path, Path(folder, path.name))

    def close(self, failed: bool) -> None:
        self._writer.close()


_TRACKERS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "mlflow": (_MLflow, ("mlflow",)),
    "wandb": (_Wandb, ("wandb",)),
    "tensorboard": (_TensorBoard, ("tensorboard", "torch")),
}
TRACKERS = tuple(_TRACKERS)


def _failures(library: str) -> tuple[type[Exception], ...]:
    """What opening a run can raise."""
    if library == "mlflow":
        from mlflow.exceptions import MlflowException

        return (MlflowException, OSError, ImportError)
    if library == "wandb":
        from wandb import Error

        return (Error, OSError)
    return (OSError, ImportError)
