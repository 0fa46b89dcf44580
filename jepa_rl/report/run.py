"""A run folder, read: what is there, whether it has ended, and what could not be read."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from jepa_rl.csv_log import NAME as PROGRESS
from jepa_rl.report.series import (
    EVENTS,
    Evaluations,
    Events,
    Series,
    read_evaluations,
    read_events,
    read_monitor,
    read_progress,
)
from jepa_rl.types import JSON

T = TypeVar("T")

RECENT = 600.0  # seconds since the last write within which a run without an end counts as going on
PICTURES = (".png", ".jpg", ".jpeg")
FILMS = (".gif", ".mp4")
SKIPPED = {
    "episodes",
    "saved",
    "__pycache__",
}  # columns of pictures and checkpoints of agents: nothing to draw


@dataclass
class Part:
    """One folder with metrics: the run itself, or a phase or agent of it.

    Attributes:
        name: its path below the run, ``"."`` for the run itself.
        events: what TensorBoard's files hold, with the numbers of ``progress.csv`` added.
        evaluations: returns of evaluation episodes.
        monitors: returns of training episodes, by file name.
        done, total: updates or steps so far and in all, from the checkpoint; None if there is none.
        settings: of the model and the training, from the checkpoint.
    """

    name: str
    events: Events = field(default_factory=Events)
    evaluations: Evaluations | None = None
    monitors: dict[str, Series] = field(default_factory=dict)
    done: int | None = None
    total: int | None = None
    settings: JSON = field(default_factory=dict)
    resumable: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not (self.events.series or self.events.pictures or self.evaluations or self.monitors)


@dataclass
class Run:
    """All of a run folder.

    Attributes:
        folder: where it is.
        parts: folders with metrics or checkpoints, the run's own first.
        settings: ``args.json``; None if there is none.
        results: ``results.json`` by the folder that it is in, the run's own (``"."``) first.
        pictures, films: files, the newest first.
        faults: what could not be read, in words.
        written: seconds since the epoch when a file was last written.
        status: whether the run has ended, in words.
        finished: None if nothing says so.
    """

    folder: Path
    parts: list[Part] = field(default_factory=list)
    settings: JSON | None = None
    results: dict[str, Any] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    films: list[Path] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    written: float = 0.0
    status: str = ""
    finished: bool | None = None

    @property
    def alarms(self) -> list[tuple[str, int | None, str]]:
        """(part, step, text), without repetitions."""
        found: list[tuple[str, int | None, str]]
        found = [(part.name, step, text) for part in self.parts for step, text in part.events.alarms]
        texts = {text for _, _, text in found}
        for where, results in self.results.items():
            text = results.get("alarm") if isinstance(results, dict) else None
            if text and text not in texts:
                found.append((where, None, str(text)))
        return list(dict.fromkeys(found))

    @property
    def evaluated(self) -> bool:
        """Whether anything looked for a collapse."""
        return bool(self.checked) or any(
            isinstance(found, dict) and "alarm" in found for found in self.results.values()
        )

    @property
    def checked(self) -> dict[str, int]:
        """The step at which ``world_model_evaluation`` last looked for a collapse, by part."""
        looked = {part.name: part.events.series.get("model/action_gap") for part in self.parts}
        return {name: int(series.steps[-1]) for name, series in looked.items() if series is not None}

    @property
    def cleared(self) -> list[tuple[str, int]]:
        """(part, step) of the last check, where it found nothing any more."""
        last = {name: step for name, step, _ in self.alarms if step is not None}
        return [(name, step) for name, step in self.checked.items() if step > last.get(name, step)]


def read_run(folder: str | Path) -> Run:
    """Reads a run folder; what is damaged is left out and named in ``faults``.

    Args:
        folder: what was passed as ``out`` to ``fit`` or an example, as ``tensorboard_log`` to ``JEPAMPC``, or as
            ``log_path`` to Stable-Baselines3's ``EvalCallback``.

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: it is a file.
        ValueError: it holds no run, or several.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}{_others(folder)}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give the folder of the run, such as {folder.parent}")
    run = Run(folder)
    for place, files in _folders(folder):
        _read_folder(run, place, files)
    if not run.parts and not run.results and run.settings is None:
        raise ValueError(
            f"{folder} holds no run: no TensorBoard events, {PROGRESS}, results.json, evaluations.json, "
            "evaluations.npz, monitor.csv or checkpoint. Give the folder that was passed as out, or "
            f"tensorboard_log{_others(folder)}"
        )
    _check_single(run)
    _drop_repetitions(run)
    run.pictures.sort(key=lambda path: -path.stat().st_mtime)
    run.films.sort(key=lambda path: -path.stat().st_mtime)
    run.finished, run.status = _status(run)
    return run


def _folders(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder with its files, the run's own first."""
    for place, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name not in SKIPPED and not name.startswith("."))
        yield Path(place), [Path(place) / name for name in sorted(files) if not name.startswith(".")]


def _read_folder(run: Run, place: Path, files: list[Path]) -> None:
    part = Part(place.relative_to(run.folder).as_posix())
    by_name = {path.name: path for path in files}
    report = [path for path in files if path.name == "report.html"]
    run.written = max([run.written, *(path.stat().st_mtime for path in files if path not in report)])

    def attempt(read: Callable[[Path], T], path: Path) -> T | None:
        try:
            return read(path)
        except (OSError, ValueError) as error:
            run.faults.append(str(error))
            return None

    if any(path.match(EVENTS) for path in files):
        part.events = read_events(place)
        run.faults += part.events.faults
    if PROGRESS in by_name and (numbers := attempt(read_progress, by_name[PROGRESS])):
        part.events.series |= numbers
    for path in files:
        if path.name == "checkpoint.safetensors":
            attempt(lambda path: _read_checkpoint(part, path), path)
        elif path.name in ("evaluations.json", "evaluations.npz"):
            part.evaluations = attempt(read_evaluations, path) or part.evaluations
        elif path.name.endswith("monitor.csv") and (episodes := attempt(read_monitor, path)):
            part.monitors[path.name] = episodes
        elif path.name == "results.json" and (found := attempt(_read_json, path)) is not None:
            run.results[part.name] = found
        elif (
            path.name == "args.json" and part.name == "." and (found := attempt(_read_json, path)) is not None
        ):
            run.settings = found
        elif path.suffix.lower() in PICTURES:
            run.pictures.append(path)
        elif path.suffix.lower() in FILMS:
            run.films.append(path)
    part.monitors = {name: found for name, found in part.monitors.items() if found.steps}
    if part.evaluations is not None and not part.evaluations.steps:
        part.evaluations = None
    if not part.empty or part.done is not None or part.events.faults:
        run.parts.append(part)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def _read_checkpoint(part: Part, path: Path) -> None:
    """Progress, settings and alarms of a checkpoint of ``fit`` or ``ResumableRun``; its tensors stay on disk."""
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
        header = json.loads(metadata.get("header", "{}"))
        if metadata.get("kind") == "training":
            part.done, part.total = int(header["step"]), int(header["train"]["steps"])
            part.settings = {"model": header["config"], "training": header["train"]}
            known = {text for _, text in part.events.alarms}
            part.events.alarms += [(int(s), text) for s, text in header["alarms"] if text not in known]
        elif metadata.get("kind") == "jepa_mpc run":
            part.done, part.resumable = int(header["num_timesteps"]), True
            part.total = header.get("total_timesteps")
            part.settings = {"agent": header["settings"]}
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def _check_single(run: Run) -> None:
    """Raises ValueError for a folder of runs, such as ``runs``: their curves have nothing to do with each other."""
    if run.settings is not None or "." in run.results or any(part.name == "." for part in run.parts):
        return
    runs = sorted(path.parent for path in run.folder.glob("*/args.json"))
    if len(runs) > 1:
        shown = ", ".join(map(str, runs[:8]))
        raise ValueError(f"{run.folder} holds several runs, name one of them: {shown}")


def _drop_repetitions(run: Run) -> None:
    """The ``progress.csv`` of a ``ResumableRun`` repeats what its TensorBoard folders beside it hold, in one piece."""
    for kept in [part for part in run.parts if part.resumable and part.events.series]:
        parent = Path(kept.name).parent
        for part in run.parts:
            if part is not kept and Path(part.name).parent == parent and re.search(r"_\d+$", part.name):
                part.events.series = {
                    tag: series for tag, series in part.events.series.items() if tag not in kept.events.series
                }


def _status(run: Run) -> tuple[bool | None, str]:
    known = [part for part in run.parts if part.done is not None and part.total is not None]
    behind = [part for part in known if (part.done or 0) < (part.total or 0)]
    there = {path.name for path in run.folder.glob("*") if path.is_file()}
    if behind:
        where = "; ".join(f"{_named(p)}{p.done:,} of {p.total:,} done at its last checkpoint" for p in behind)
    elif run.settings is not None and "." not in run.results:
        where = "results.json is not there yet"
    elif known or "." in run.results or there & {"model.safetensors", "agent.zip"}:
        return True, "This run has ended."
    elif any(part.monitors or part.evaluations for part in run.parts):
        return None, "Nothing in this folder says whether the run has ended."
    else:
        where = "there is no checkpoint and no model yet"
    age = max(0.0, time.time() - run.written)
    if age < RECENT:
        return (
            False,
            f"This run seems to be still going on: {where}; last written {_ago(age)}. Shown is what is there.",
        )
    return False, f"This run has not ended: {where}; last written {_ago(age)}. Shown is what is there."


def _named(part: Part) -> str:
    return "" if part.name == "." else f"{part.name}: "


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


def _others(folder: Path) -> str:
    """Folders of runs below or near a wrong name, as the end of a message."""
    for place in (folder, folder.parent, Path("runs")):
        if place.is_dir():
            runs = sorted(str(path.parent) for path in place.glob("*/args.json"))
            if runs:
                return f"; runs are in {', '.join(runs[:8])}"
    return ""
