"""Sweeps: one training with many seeds and settings, and one table of them. Needs the extra ``[ray]``.

A trial is a function of (settings, folder), called in a process of its own. Where that process is lost (killed, out of
memory, a machine that went away) it is called again with the same folder; ``fit`` and ``ResumableRun`` then go on from
their checkpoints.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from jepa_rl.cluster import Parcel, check_address
from jepa_rl.files import lock, plain, unlock, write_atomic
from jepa_rl.trials import Resources, output_to, run_on_ray

Run = Callable[[dict[str, Any], Path], Mapping[str, float]]
Row = dict[str, Any]


def sweep(
    run: Run,
    trials: Sequence[Mapping[str, Any]],
    out: str | Path,
    *,
    address: str | None = None,
    resources: Resources = Resources(),  # noqa: B008  (frozen)
    progress: bool = True,
) -> list[Row]:
    """Runs every trial and writes one table. Called again with the same folder, it runs what is not finished.

    ``out`` holds ``table.csv``; ``trials/<name>/``, the folder that each trial was given; ``output/<name>.txt``, what
    it printed; ``processes/<name>.jsonl``, which processes worked on it; ``finished/<name>.json``, its metrics; and
    ``hparams/``. It is one folder for TensorBoard: ``tensorboard --logdir <out>`` shows the curves of all trials, and
    settings beside metrics in its tab HPARAMS.

    Args:
        run: a function of (settings, folder) that returns metrics, numbers by name. It is sent to other processes: see
            ``jepa_rl.cluster.Parcel``.
        trials: settings by name, of types that JSON knows. They wait for each other where the cores do not suffice.
        out: the folder; on a cluster one that all machines see.
        address: of a Ray cluster (``jepa_rl.cluster.ray_running``); None starts Ray on this machine.
        resources: of each trial.
        progress: show how many are finished.

    Returns:
        The table, a dict for each trial: ``trial`` (its name), settings, metrics, ``seconds`` (of its last process),
        ``processes`` (how many worked on it) and ``error``, empty if it finished. A trial that raised an error is not
        tried again in this call.

    Raises:
        ImportError, ConnectionError: as ``ray_running``.
        TypeError: if ``run`` cannot be sent.
        ValueError: for no trials, equal ones, or a folder that another sweep is writing to.
        RuntimeError: if every trial failed.
    """
    folder = _Folder(Path(out).resolve())
    names = trial_names(trials)
    parcel = Parcel(run, "run")
    if address is not None:
        check_address(address)  # before there is a folder
    with _alone(folder.path):
        missing = [i for i, name in enumerate(names) if not folder.finished(name).exists()]
        tasks = [(names[i], dict(trials[i]), folder) for i in missing]
        outcomes = run_on_ray(
            partial(_trial, parcel), tasks, folder.path / "ray",
            address=address, resources=resources, progress=progress,
        )  # fmt: skip
        errors = {names[i]: outcome.error for i, outcome in zip(missing, outcomes, strict=True)}
        table = [
            folder.row(name, settings, errors.get(name, ""))
            for name, settings in zip(names, trials, strict=True)
        ]
        write_atomic(folder.path / "table.csv", _csv(table))
    if all(row["error"] for row in table):
        raise RuntimeError(
            f"all {len(table)} trials failed, the first with {table[0]['error']}; what they printed is in "
            f"{folder.path / 'output'}"
        )
    return table


def trial_names(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each trial that a folder can have: ``frames=3,seed=0``.

    Raises:
        ValueError: for no trials, equal ones, or a name that is too long.
    """
    if not trials:
        raise ValueError("a sweep needs at least one trial, got none")
    names = [re.sub(r"[^\w.,=+-]+", "_", ",".join(f"{k}={v}" for k, v in trial.items())) for trial in trials]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"trials must differ in their settings, got several of {repeated}")
    if wrong := [name for name in names if not 0 < len(name) <= 200]:
        raise ValueError(
            f"a trial's settings name its folder, in 1 to 200 characters, got {wrong[0]!r}; leave out what all trials "
            "have in common, and set it in the function"
        )
    return names


def table_text(table: Sequence[Row], columns: Sequence[str]) -> str:
    """Columns of the table, aligned, as text; errors stand at the end of their lines.

    Raises:
        ValueError: for a column that no trial has.
    """
    known = list(dict.fromkeys(name for row in table for name in row))
    if unknown := [name for name in columns if name not in known]:
        raise ValueError(f"no trial has {unknown}; there are {known}")
    lines = [list(columns), *([_shown(row.get(name, "")) for name in columns] for row in table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines
    ]
    errors = ["", *(row["error"] and f"  failed: {row['error']}" for row in table)]
    return "\n".join(text + error for text, error in zip(padded, errors, strict=True))


def over_seeds(table: Sequence[Row], settings: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """One row for each group of finished trials that are equal in ``settings``.

    Returns:
        The settings, ``trials`` (their number), and of each metric its mean, smallest and largest value; ``error`` is
        empty.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in table:
        if not row["error"]:
            groups.setdefault(tuple(str(row[name]) for name in settings), []).append(row)
    found = []
    for rows in groups.values():
        line: Row = {name: rows[0][name] for name in settings} | {"trials": len(rows)}
        for metric in metrics:
            values = [row[metric] for row in rows if metric in row]
            if values:
                line |= {
                    metric: sum(values) / len(values),
                    f"{metric} from": min(values),
                    f"{metric} to": max(values),
                }
        found.append(line | {"error": ""})
    return found


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv(table: Sequence[Row]) -> bytes:
    text = io.StringIO(newline="")
    last = ("seconds", "processes", "error")
    columns = [name for name in dict.fromkeys(name for row in table for name in row) if name not in last]
    writer = csv.DictWriter(text, [*columns, *last], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


@dataclass(frozen=True)
class _Folder:
    """Where everything of a trial is; the driver and the workers both look there."""

    path: Path

    def finished(self, name: str) -> Path:
        return self.path / "finished" / f"{name}.json"

    def processes(self, name: str) -> Path:
        return self.path / "processes" / f"{name}.jsonl"

    def row(self, name: str, settings: Mapping[str, Any], error: str) -> Row:
        mark, log = self.finished(name), self.processes(name)
        found = json.loads(mark.read_text()) if mark.exists() else {"metrics": {}, "seconds": None}
        count = len(log.read_text().splitlines()) if log.exists() else 0
        row = {"trial": name, **settings, **found["metrics"], "seconds": found["seconds"]}
        return row | {"processes": count, "error": error}


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two sweeps in one folder would train the same trials."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a+b") as file:
        if not lock(file):
            raise ValueError(f"another sweep is writing to {out}; wait for it, or choose another folder")
        try:
            yield
        finally:
            unlock(file)


def _trial(run: Parcel, task: tuple[str, dict[str, Any], _Folder]) -> None:
    """One trial, in its worker. Its files are the result: they outlive whoever asked for it."""
    name, settings, out = task
    if not (out.path / ".lock").exists():
        raise FileNotFoundError(
            f"{socket.gethostname()} does not see {out.path}: choose a folder that all machines of the cluster share"
        )
    folder, started = out.path / "trials" / name, time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    out.processes(name).parent.mkdir(exist_ok=True)
    with open(out.processes(name), "a") as file:
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
    with output_to(out.path / "output" / f"{name}.txt"):
        metrics = {metric: float(value) for metric, value in run.open()(settings, folder).items()}
        if clash := metrics.keys() & settings.keys():
            raise ValueError(f"{sorted(clash)} are settings, and cannot be metrics as well")
    shown = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
    with SummaryWriter(str(out.path / "hparams" / name)) as board:
        board.add_hparams(shown, {f"sweep/{key}": value for key, value in metrics.items()}, run_name=".")
    found = {"settings": settings, "metrics": metrics, "seconds": round(time.perf_counter() - started, 2)}
    write_atomic(out.finished(name), json.dumps(found, default=plain).encode())
