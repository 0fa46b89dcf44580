"""SIGKILL at random moments: what was acknowledged is there, and resumed runs end as if they had never been killed.

Victims are forked from a process that has imported everything. Half of the kills come at a random moment of the run;
the others within three milliseconds of a write: the victim reports every file that it opens for writing, renames or
deletes (an audit hook), and the parent kills it upon a random one of these reports.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _trust_runs import KINDS, Kind, quiet, warm

WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
NEAR = 0.003  # seconds after the report of a write
OTHER = 2.0  # seconds in which the other one of two processes may notice that it is alone


@dataclass
class Victim:
    """A forked process that plays a run."""

    pid: int
    reports: int
    writes: int = 0
    acknowledged: Any = None
    digest: str | None = None
    trouble: str = ""
    partner: int = 0
    began: float = field(default_factory=time.monotonic)
    _rest: bytes = b""

    def read(self, until: float, write: int = 0) -> bool:
        """Reads reports until some time, or until the ``write``-th write; whether the process goes on."""
        while (left := until - time.monotonic()) > 0:
            if not select.select([self.reports], [], [], left)[0]:
                return True
            if not self._take():
                return False
            if write and self.writes >= write:
                return True
        return True

    def _take(self) -> bool:
        found = os.read(self.reports, 65536)
        *lines, self._rest = (self._rest + found).split(b"\n")
        for line in lines:
            word, _, value = line.decode().partition(" ")
            if word == "write":
                self.writes += 1
            elif word == "acknowledged":
                self.acknowledged = int(value)
            elif word == "partner":
                self.partner = int(value)
            elif word == "digest":
                self.digest = value
            else:
                self.trouble += f"{value}\n"
        return bool(found)

    def end(self, kill: bool, first: int = 0) -> bool:
        """Ends it; whether a kill ended it.

        Args:
            kill: whether to kill it.
            first: which of two processes is killed first: 0 or 1, 2 for both at once. The other one may find out by
                itself, and is killed later, as ``torchrun`` does.
        """
        both = (self.pid, self.partner)
        if kill and not self.partner:
            _kill(self.pid)
        elif kill:
            _kill(*(both if first == 2 else both[first : first + 1]))
            self.read(time.monotonic() + OTHER)
            _kill(*both)
        while self._take():
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.reports)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if kill and self.partner and "ProcessLost" in self.trouble:
            killed, self.trouble = True, ""
        if not killed and status and not self.trouble:
            self.trouble = f"exit status {status}"
        return killed


def _kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(kind: Kind, folder: Path) -> Victim:
    """Forks a process that plays the run in ``folder``."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Victim(pid, reading)
    code = 1
    try:
        os.close(reading)
        quiet()
        _report_writes(writing, str(folder.parent))
        tell = [lambda pid: _say(writing, f"partner {pid}")] if kind.two else []
        found = kind.play(folder, lambda value: _say(writing, f"acknowledged {value}"), *tell)
        _say(writing, f"digest {found}")
        code = 0
    except BaseException:
        for line in traceback.format_exc().splitlines()[-12:]:
            _say(writing, f"trouble {line}")
    finally:
        os._exit(code)


def _say(pipe: int, text: str) -> None:
    os.write(pipe, f"{text}\n".encode())


def written(event: str, args: tuple) -> Any:
    """What an event of the audit hook writes to, opens for writing, renames or deletes; None for other events."""
    writes = event in WRITES
    if event == "open":
        writes = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
    return args[0] if writes else None


def _report_writes(pipe: int, folder: str) -> None:
    def hook(event: str, args: tuple) -> None:
        path = written(event, args)
        if path is not None and str(path).startswith(folder):
            _say(pipe, "write")

    sys.addaudithook(hook)


def storm(name: str, kills: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Kills runs of one kind until ``kills`` kills have landed.

    Args:
        name: of the kind, one of ``KINDS``.
        kills: SIGKILLs that end a process while it works.
        folder: of all runs; it is emptied.
        seed: of the moments.

    Returns:
        ``kills`` that landed, ``near_writes`` of them, ``lost``, ``differs``, ``runs`` that came to their end, and
        what went wrong, in words.
    """
    rng, kind = random.Random(f"{name} {seed}"), KINDS[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reference = _whole(kind, folder / "reference")
    first_seconds, first_writes, expected = reference
    found: Counter[str] = Counter()
    trouble: list[str] = []
    while found["kills"] < kills:
        run = folder / f"run-{found['runs']}"
        run.mkdir()
        acknowledged: Any = None
        for attempt in range(kind.attempts + 1):
            victim = start(kind, run)
            near = rng.random() < 0.5
            spare = attempt == kind.attempts or found["kills"] >= kills
            if spare:
                kill = victim.read(victim.began + 600)
            elif near:
                kill = victim.read(victim.began + 600, write=1 + int(first_writes * rng.random() ** 2))
                kill = kill and victim.read(time.monotonic() + NEAR * rng.random())
            else:
                kill = victim.read(victim.began + first_seconds * rng.random())
            killed = victim.end(kill, rng.randrange(3))
            found["kills"] += killed and not spare
            found["near_writes"] += killed and near and not spare
            if victim.acknowledged is not None:
                acknowledged = victim.acknowledged
            if why := _lost(kind, run, acknowledged, victim.trouble):
                found["lost"] += 1
                trouble.append(f"{name}, run {found['runs']}, attempt {attempt}: {why}")
                break
            if victim.digest is not None:
                if victim.digest != expected or not kind.right(run):
                    found["differs"] += 1
                    trouble.append(f"{name}, run {found['runs']}: another outcome after {attempt} kills")
                break
        found["runs"] += 1
        if not trouble:
            shutil.rmtree(run)
    keys = ("kills", "near_writes", "lost", "differs", "runs")
    return {key: found[key] for key in keys} | {"trouble": trouble[:20]}


def _whole(kind: Kind, folder: Path) -> tuple[float, int, str]:
    """Plays a run that is never killed, twice, the first to warm caches: seconds, writes and digest."""
    for attempt in ("-first", ""):
        run = folder.with_name(folder.name + attempt)
        run.mkdir()
        victim, seconds = undisturbed(kind, run)
        shutil.rmtree(run)
    return seconds, victim.writes, str(victim.digest)


def undisturbed(kind: Kind, folder: Path) -> tuple[Victim, float]:
    """A run that nothing happens to, and its seconds.

    Raises:
        RuntimeError: if it does not come to its end.
    """
    victim = start(kind, folder)
    victim.read(victim.began + 600)
    seconds = time.monotonic() - victim.began
    victim.end(kill=False)
    if victim.digest is None:
        raise RuntimeError(f"a run that nothing happened to did not come to its end: {victim.trouble}")
    return victim, seconds


def _lost(kind: Kind, folder: Path, acknowledged: Any, trouble: str) -> str:
    """What is wrong with a folder after a kill, in words; empty if nothing is."""
    if trouble:
        return f"it did not go on: {trouble}"
    try:
        return "" if kind.holds(folder, acknowledged) else f"what was acknowledged ({acknowledged}) is gone"
    except Exception as error:
        return f"what was acknowledged ({acknowledged}) cannot be read: {error!r}"


# Kinds that are reported under one name: one promise, two algorithms.
TOGETHER = {"joint_sac": "joint", "joint_dqn": "joint"}


def run(
    kills: int, folder: Path, known: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The storm of all kinds.

    Args:
        kills: of each kind.
        folder: where runs are made.
        known: figures of kinds that were finished before an interruption, as ``keep`` was given them.
        keep: is given all figures so far whenever a kind is finished.

    Returns:
        Figures by kind.
    """
    warm()
    found = dict(known)
    shared = Counter(TOGETHER.get(name, name) for name in KINDS)
    for name in KINDS:
        if name not in found:
            found[name] = storm(name, -(-kills // shared[TOGETHER.get(name, name)]), folder / name)
            keep(found)
    together: dict[str, Any] = {}
    for name, figures in found.items():
        so_far = together.setdefault(TOGETHER.get(name, name), {})
        for key, value in figures.items():
            so_far[key] = so_far[key] + value if key in so_far else value
    return together
