"""Numbers over the steps of a run, read from TensorBoard events, ``progress.csv`` and what evaluations leave behind."""

from __future__ import annotations

import csv
import json
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jepa_rl.csv_log import read_csv

EVENTS = "events.out.tfevents.*"


@dataclass(frozen=True)
class Series:
    """One metric.

    Attributes:
        steps: where it was measured: updates of ``fit``, environment steps of an agent.
        values: one for each step; may hold NaN.
    """

    steps: list[float]
    values: list[float]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]


@dataclass
class Events:
    """What the event files of one folder hold.

    Attributes:
        series: scalars by tag.
        pictures: the newest picture of each tag, with its step: PNG or GIF, as bytes.
        alarms: (step, text).
        faults: what could not be read, in words.
    """

    series: dict[str, Series] = field(default_factory=dict)
    pictures: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    alarms: list[tuple[int, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_events(folder: Path) -> Events:
    """All event files of a folder. A file that ends in the middle of a record is read up to there."""
    from tensorboard.backend.event_processing import event_accumulator as tb  # slow to import

    found = Events()
    sizes = {tb.SCALARS: 0, tb.IMAGES: 1, tb.TENSORS: 0}  # 0 keeps all, 1 the newest
    with _caught_log() as messages:
        try:
            events = tb.EventAccumulator(str(folder), sizes).Reload()
        except Exception as error:  # whatever a broken file makes of TensorBoard's parser
            found.faults.append(f"TensorBoard could not read {folder} ({type(error).__name__}: {error})")
            return found
    found.faults += [f"TensorBoard says of {folder}: {message}" for message in dict.fromkeys(messages)]
    for path in sorted(folder.glob(EVENTS)):
        if not _whole(path):
            found.faults.append(
                f"{path} is damaged, or ends in the middle of a record; what can be read of it is shown"
            )
    tags = events.Tags()
    for tag in tags["scalars"]:
        rows = [(float(e.step), float(e.value)) for e in events.Scalars(tag)]
        found.series[tag] = Series(*map(list, zip(*rows, strict=True)))
    for tag in tags["images"]:
        newest = events.Images(tag)[-1]
        found.pictures[tag] = (newest.step, newest.encoded_image_string)
    for tag in tags["tensors"]:
        if tag.startswith("jepa/alarm"):
            texts = [(e.step, e.tensor_proto.string_val) for e in events.Tensors(tag)]
            found.alarms += [(step, text[0].decode(errors="replace")) for step, text in texts if text]
    return found


def _whole(path: Path) -> bool:
    """Whether a file of TensorBoard's records (8 bytes of length, 4 of checksum, content, 4 of checksum) ends with one.

    TensorBoard reads up to the damage, and does not mention it.
    """
    end = path.stat().st_size
    with open(path, "rb") as file:
        while (at := file.tell()) < end:
            head = file.read(12)
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12 or at + 16 + length > end:
                return False
            file.seek(at + 16 + length)
    return True


@contextmanager
def _caught_log() -> Iterator[list[str]]:
    """What TensorBoard logs about damaged files, instead of its printing it."""
    messages: list[str] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                messages.append(record.getMessage().splitlines()[0])

    logger, catch = logging.getLogger("tensorboard"), Catch()
    before = logger.propagate, list(logger.handlers)
    logger.propagate, logger.handlers = False, [catch]
    try:
        yield messages
    finally:
        logger.propagate, logger.handlers = before


def read_progress(path: Path) -> dict[str, Series]:
    """The numbers of a ``progress.csv``, ours or Stable-Baselines3's.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    columns, rows = _rows_of(path)
    steps, found = [float(row[0]) for row in rows], {}
    for number, name in enumerate(columns[1:], 1):
        known = []
        for step, row in zip(steps, rows, strict=True):
            try:
                known.append((step, float(row[number])))
            except (ValueError, IndexError):  # empty, or a text
                continue
        if known:
            found[name] = Series(*map(list, zip(*known, strict=True)))
    return found


def _rows_of(path: Path) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, the step first."""
    with open(path, newline="", errors="replace") as file:
        columns = next(csv.reader(file), [])
        steps = "time/total_timesteps"
        if steps not in columns or columns[0] == "step":
            return read_csv(path)
        at = columns.index(steps)  # Stable-Baselines3's own file, in any order of columns
        rows = [row for row in csv.reader(file) if len(row) > at and row[at]]
    return [steps, *columns], [[row[at], *row] for row in rows]


@dataclass(frozen=True)
class Evaluations:
    """Returns of evaluation episodes.

    Attributes:
        steps: of the training when they were played.
        returns: of each episode; ragged where their number changed.
    """

    steps: list[float]
    returns: list[list[float]]

    @property
    def means(self) -> Series:
        """Mean return at each step."""
        return Series(self.steps, [float(np.mean(found)) for found in self.returns])


def read_evaluations(path: Path) -> Evaluations:
    """``evaluations.json`` of ``EvaluationCallback``, or ``evaluations.npz`` of Stable-Baselines3's ``EvalCallback``.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return Evaluations(
                    file["timesteps"].astype(float).tolist(), file["results"].astype(float).tolist()
                )
        entries = json.loads(path.read_text())
        return Evaluations(
            [float(e["step"]) for e in entries], [list(map(float, e["returns"])) for e in entries]
        )
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or holds no evaluations ({error})") from error


def read_monitor(path: Path) -> Series:
    """Return of each episode of a ``monitor.csv`` (Stable-Baselines3's ``Monitor``), over the environment steps so far.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    lines = [line for line in path.read_text(errors="replace").splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    try:
        steps = np.cumsum([int(row["l"]) for row in rows]).astype(float)
        return Series(steps.tolist(), [float(row["r"]) for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a Monitor's ({error!r})") from error
