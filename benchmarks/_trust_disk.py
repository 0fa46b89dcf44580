"""Disks that are full at any write, read-only or slow: an error in words, and nothing half-written is read as whole.

The runs of ``_trust_runs`` play on such a disk until it stops them; then it is mended, the folder must hold what was
acknowledged, and the run must go on to the outcome of one that met no fault. A full disk is a small file system in
memory (as root on Linux), a limit on the length of files, or both; a read-only one is mounted so while the run plays;
on a slow one every write waits, while another process reads the newest checkpoint again and again.
"""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from _trust_kills import start, undisturbed, written
from _trust_runs import KINDS, Kind, warm

PLAYED = ("collect", "fit", "refine_dynamics", "jepa_mpc", "joint_sac")
WORDS = 20  # letters of an error that says something


def run(
    tries: int, folder: Path, known: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Plays ``tries`` faults, in turn of each kind and on each run; ``known`` and ``keep`` as ``_trust_kills.run``."""
    warm()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    faults = [limited, slow] + ([full, read_only] if can_mount(folder) else [])
    found = dict(known)
    for name in PLAYED:
        if name not in found:
            found[name] = storm(name, KINDS[name], faults, -(-tries // len(PLAYED)), folder / name)
            keep(found)
    return {
        "disk_faults": sum(kind["faults"] for kind in found.values()),
        "disk_escaped": sum(kind["escaped"] for kind in found.values()),
        "kinds": found,
    }


def storm(
    name: str, kind: Kind, faults: list[Callable[..., Any]], tries: int, folder: Path
) -> dict[str, Any]:
    """Faults on runs of one kind."""
    rng, outcomes, trouble = random.Random(name), Counter[str](), []
    folder.mkdir(parents=True)
    used, expected = _reference(kind, folder / "reference")
    escaped = 0
    for number in range(tries):
        fault = faults[number % len(faults)]
        place = folder / f"run-{number}"
        place.mkdir()
        why, hit = _try(kind, fault, place, expected, used, rng)
        outcomes[f"{fault.__name__}: {'escaped' if why else 'stopped' if hit else 'not reached'}"] += 1
        if why:
            escaped += 1
            trouble.append(f"{name} {number}, {fault.__name__}: {why}")
        shutil.rmtree(place)
    return {
        "faults": tries,
        "escaped": escaped,
        "outcomes": dict(sorted(outcomes.items())),
        "trouble": trouble[:20],
    }


def _reference(kind: Kind, place: Path) -> tuple[int, str]:
    """Bytes of the longest file of a run that meets no fault, and its outcome."""
    place.mkdir(parents=True)
    (place / "run").mkdir()
    victim, _ = undisturbed(kind, place / "run")
    sizes = [path.stat().st_size for path in (place / "run").rglob("*") if path.is_file()]
    shutil.rmtree(place)
    return max(sizes), str(victim.digest)


def _try(
    kind: Kind, fault: Callable[..., Any], place: Path, expected: str, used: int, rng: random.Random
) -> tuple[str, bool]:
    """What is wrong, if anything, and whether the fault stopped the run."""
    folder = place / "disk" / "run"
    with fault(place / "disk", used, rng) as (prepare, begin):
        folder.mkdir(parents=True, exist_ok=True)
        victim = start(replace(kind, play=_prepared(kind.play, prepare)), folder)
        begin(victim, folder)
        victim.read(victim.began + 600)
        victim.end(kill=False)
        if victim.digest is None and (why := _no_words(victim.trouble, place)):
            return why, True
        whole = place / "mended" / "run"  # what a user finds after the disk was mended
        shutil.copytree(place / "disk", place / "mended", dirs_exist_ok=True)
    try:
        if not kind.holds(whole, victim.acknowledged):
            return f"what was acknowledged ({victim.acknowledged}) is gone", True
    except Exception as error:
        return f"what was acknowledged ({victim.acknowledged}) cannot be read: {error!r}", True
    again = start(kind, whole)
    again.read(again.began + 600)
    again.end(kill=False)
    if again.digest != expected or not kind.right(whole):
        return f"it did not go on to the same end: {again.trouble or 'another outcome'}", True
    return "", victim.digest is None


def _prepared(play: Callable[..., str], prepare: Callable[[], None]) -> Callable[..., str]:
    def prepared(*args: Any) -> str:
        prepare()
        return play(*args)

    return prepared


def _no_words(trouble: str, place: Path) -> str:
    """What is wrong with the error of a run that a fault stopped; empty if it is in words."""
    last = trouble.strip().splitlines()[-1] if trouble.strip() else ""
    kind, _, said = last.partition(": ")
    if kind not in ("OSError", "PermissionError", "ValueError", "RuntimeError"):
        return f"not an error in words: {trouble}"
    return "" if len(said) >= WORDS and str(place) in trouble else f"it does not say where: {trouble}"


# -- faults: what happens to the disk, in the process of the run, and beside it -------------------------


def _nothing(*_: Any) -> None:
    pass


@contextlib.contextmanager
def limited(disk: Path, used: int, rng: random.Random) -> Iterator[Any]:
    """No file may grow beyond a length."""
    most = int(used * rng.random() ** 0.5)

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    yield prepare, _nothing


@contextlib.contextmanager
def full(disk: Path, used: int, rng: random.Random) -> Iterator[Any]:
    """A file system that is filled up before, or by, the run."""
    with _mounted(disk, f"size={4096 * rng.randrange(2, 3 + 3 * used // 4096)}"):
        yield _nothing, _nothing


@contextlib.contextmanager
def read_only(disk: Path, used: int, rng: random.Random) -> Iterator[Any]:
    """A file system that is read-only from the start, or from some write on, as after an error of a real disk."""

    remount = ["mount", "-o", "remount,ro", str(disk)]  # refused while a file is open for writing
    at_once = rng.random() < 0.4

    def prepare() -> None:
        if at_once:
            subprocess.run(remount, check=True, capture_output=True)

    def begin(victim: Any, folder: Path) -> None:
        victim.read(victim.began + 600, write=rng.randrange(1, 60))
        subprocess.run(remount, capture_output=True)

    with _mounted(disk, "size=64m"):
        yield prepare, begin


@contextlib.contextmanager
def slow(disk: Path, used: int, rng: random.Random) -> Iterator[Any]:
    """Every write waits; meanwhile the newest files are read as another process would."""

    def prepare() -> None:
        def hook(event: str, args: tuple) -> None:
            if written(event, args) is not None:
                time.sleep(0.004)

        sys.addaudithook(hook)

    yield prepare, _read_meanwhile


def _read_meanwhile(victim: Any, folder: Path) -> None:
    """Reads what the run writes until it ends; what cannot be read is noted as its trouble."""
    kinds = [kind for kind in KINDS.values() if not kind.two]
    holds = {kind.holds for kind in kinds}
    while victim.read(time.monotonic() + 0.02):
        for held in holds:
            try:
                held(folder, 0)
            except FileNotFoundError:
                continue
            except Exception as error:
                if "expected one of" not in str(error):  # a file of another kind of run
                    victim.trouble += f"read meanwhile: {error!r}\n"
                    victim.digest = None
                    return
        if victim.digest is not None or victim.trouble:
            return


@contextlib.contextmanager
def _mounted(disk: Path, options: str) -> Iterator[None]:
    disk.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount file systems."""
    try:
        with _mounted(folder / "mount", "size=1m"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
