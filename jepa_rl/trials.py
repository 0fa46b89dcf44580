"""One function for many cases, each in a process of its own, as trials of Ray Tune. Needs the extra ``[ray]``."""

from __future__ import annotations

import logging
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jepa_rl.cluster import Parcel, ray_running
from jepa_rl.progress import Progress

TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # nobody reads its logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends it at once
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of the trials stay those of the caller
}


@dataclass(frozen=True)
class Resources:
    """What a trial takes, and how often it may lose its process.

    Attributes:
        cpus: cores of a trial, which has as many threads.
        gpus: accelerators of a trial; below 1 several share one.
        losses: how many processes a trial may lose; the next one ends it.
    """

    cpus: int = 1
    gpus: float = 0.0
    losses: int = 3

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.gpus < 0 or self.losses < 0:
            raise ValueError(f"a trial takes at least one core, and nothing negative, got {self}")


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        value: that it returned.
        error: why it did not, in one line; empty if it did.
        seconds: of the call that returned.
        losses: how many processes were lost.
    """

    value: Any = None
    error: str = ""
    seconds: float = 0.0
    losses: int = 0


def run_on_ray(
    call: Callable[[Any], Any],
    cases: Sequence[Any],
    scratch: str | Path,
    *,
    address: str | None = None,
    resources: Resources = Resources(),
    progress: bool = True,
) -> list[Outcome]:
    """``call(case)`` for every case, each in a process of its own; again where the process is lost.

    An error that it raises, ``SystemExit`` included, ends this case alone and is not tried again.

    Args:
        call: sent to the other processes; it returns what JSON knows.
        cases: of the calls.
        scratch: a folder of Ray Tune's while it runs; deleted afterwards.
        address: of a Ray cluster (``jepa_rl.cluster.ray_running``); None starts Ray on this machine.
        resources: of each call.
        progress: show how many are finished.

    Returns:
        An outcome for each case.

    Raises:
        ImportError, ConnectionError: as ``ray_running``.
        TypeError: if ``call`` or a case cannot be sent.
        ValueError: if no machine has the resources of a single trial.
    """
    if not cases:
        return []
    parcel, sent = Parcel(call, "call"), [Parcel(case, "a case") for case in cases]
    scratch = Path(scratch).resolve()
    for name, value in TUNE.items():
        os.environ.setdefault(name, value)
    with ray_running(address) as ray, Progress("Sweep", len(cases), "trial", shown=progress) as bar:
        _check_room(ray, resources)
        losses = [0] * len(cases)
        log, level = logging.getLogger("ray.tune"), logging.getLogger("ray.tune").level
        log.setLevel(logging.CRITICAL)  # what is lost stands in the outcomes
        try:
            grid = _tuner(parcel, sent, scratch, resources, _callback(losses, bar)).fit()
        finally:
            log.setLevel(level)
            shutil.rmtree(scratch, ignore_errors=True)
    found: list[Outcome] = [Outcome(error="it was not run")] * len(cases)
    for result in grid:
        number = result.config["number"]
        if result.error is not None:
            words = f"it lost {losses[number]} processes: killed, out of memory, or their machine went away"
            found[number] = Outcome(error=words, losses=losses[number])
        else:
            returned = result.metrics
            found[number] = Outcome(returned["value"], returned["error"], returned["seconds"], losses[number])
    return found


def _check_room(ray: Any, resources: Resources) -> None:
    """Ray itself would wait for ever."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {"CPU": resources.cpus, "GPU": resources.gpus}
    if not any(all(node.get(name, 0) >= count for name, count in asked.items()) for node in there):
        most = {name: max(node.get(name, 0) for node in there) for name in asked}
        raise ValueError(f"a trial takes {asked}, and no machine has more than {most}: ask for less")


def _tuner(parcel: Parcel, cases: list[Parcel], scratch: Path, resources: Resources, callback: Any) -> Any:
    from ray import tune

    def trial(config: dict[str, Any]) -> dict[str, Any]:
        return _call(parcel, cases[config["number"]], resources.cpus)

    return tune.Tuner(
        tune.with_resources(trial, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space={"number": tune.grid_search(list(range(len(cases))))},
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent),
            failure_config=tune.FailureConfig(max_failures=resources.losses),
            callbacks=[callback],
            verbose=0,
        ),
    )


def _callback(losses: list[int], bar: Progress) -> Any:
    from ray import tune

    class Count(tune.Callback):
        def __init__(self, losses: list[int], bar: Progress) -> None:
            self.losses, self.bar = losses, bar

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune saves its callbacks, and a terminal cannot be saved

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.bar.update()

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.losses[trial.config["number"]] += 1
            self.bar.update()

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.losses[trial.config["number"]] += 1

    return Count(losses, bar)


def _call(parcel: Parcel, case: Parcel, cpus: int) -> dict[str, Any]:
    """In the worker."""
    torch.set_num_threads(cpus)
    value, error, started = None, "", time.perf_counter()
    try:
        value = parcel.open()(case.open())
    except (Exception, SystemExit) as raised:  # a lost process is tried again, an error is not
        error = " ".join(f"{type(raised).__name__}: {raised}".split())
    return {"value": value, "error": error, "seconds": time.perf_counter() - started}


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Context manager: what is printed inside is added to a file, the traceback of an error included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        try:
            yield
        except (Exception, SystemExit):
            traceback.print_exc()
            raise
