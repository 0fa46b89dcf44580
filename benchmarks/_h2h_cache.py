"""Results of stages, kept by what they depend on: settings, contents of the inputs, and code of the stage.

A stage is a folder named by the digest of these. It is done when its ``done.json`` is there, which holds what the stage
found, among it ``content``: a digest of its output. Later stages depend on that and not on how the output came about.
So cells may run in any order, in several processes, and go on after a kill; and what did not change is not run again.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from _record import ROOT, fingerprint, plain, write_whole
from safetensors import safe_open

from jepa_rl.files import lock, unlock

LOCK = "lock"
POLL = 2.0  # seconds between looks at a stage that another process is working on


def digest(*parts: Any) -> str:
    """Of JSON values."""
    text = json.dumps(parts, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_of(*paths: Path) -> str:
    """Of the bytes in files."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def content_of_tensors(path: Path) -> str:
    """Of a file of ``save_tensors``: its bytes may differ in the order of the metadata, which hold a checksum."""
    with safe_open(path, "pt") as file:
        return digest(file.metadata())


@cache
def code_of(*places: str) -> str:
    """Of Python files and folders under the root, without comments, docstrings and layout."""
    paths = [ROOT / place for place in places]
    files = {file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))}
    return fingerprint(files, ROOT)[:16]


@dataclass(frozen=True)
class Stage:
    """One result.

    Attributes:
        kind: ``"data"``, ``"encoder"`` and so on.
        name: for people: task, arm, seed.
        settings: JSON values.
        inputs: contents of the stages that it reads.
        code: files and folders that decide what comes out, see ``code_of``.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    code: tuple[str, ...]

    @property
    def key(self) -> str:
        return digest(self.kind, self.settings, self.inputs, code_of(*self.code))

    def folder(self, root: Path) -> Path:
        return root / self.kind / f"{self.name}_{self.key}"


def done(stage: Stage, root: Path) -> dict[str, Any] | None:
    """What a finished stage found, or None."""
    file = stage.folder(root) / "done.json"
    return json.loads(file.read_text()) if file.exists() else None


def run(stage: Stage, root: Path, work: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The folder of a stage and what it found; ``work`` is called unless it is done.

    Args:
        stage: which.
        root: of all stages.
        work: does it in the folder; returns JSON values, among them ``content``. It may be called again in the same
            folder after a kill, and should go on there; what it took then is not known, see ``seconds_of``.
    """
    folder = stage.folder(root)
    with alone(folder):
        found = done(stage, root)
        if found is None:
            resumed = any(path.name != LOCK for path in folder.iterdir())
            began, worked = time.perf_counter(), time.process_time()
            found = work(folder)
            found |= {
                "resumed": resumed,
                "wall_seconds": time.perf_counter() - began,
                "processor_seconds": time.process_time() - worked,
                "peak_memory_mib": peak_memory(),
            }
            found |= {"stage": stage.kind, "name": stage.name, "settings": stage.settings}
            write_whole(folder / "done.json", json.dumps(found, default=plain))
            print(f"{stage.kind:<9}{stage.name:<44}{found['processor_seconds']:7.0f} s", flush=True)
    return folder, found


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Context manager: waits until no other process works in the folder; a process that ends gives it back."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        while not lock(file):
            time.sleep(POLL)
        try:
            yield
        finally:
            unlock(file)


def seconds_of(found: dict[str, Any]) -> float | None:
    """Processor seconds of a stage; None if it went on after a stop, when those before it are not known."""
    return None if found.get("resumed") else found["processor_seconds"]


def peak_memory() -> int:
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def memory_of(*found: dict[str, Any]) -> int | None:
    """The most that any of these stages took, MiB, its process with what that did before; None if one does not tell."""
    told = [stage.get("peak_memory_mib") for stage in found]
    return None if None in told else max(told)


def seconds_known(root: Path) -> dict[tuple[str, str], float]:
    """Mean processor seconds of finished stages, by kind and by what their names begin with."""
    found: dict[tuple[str, str], list[float]] = {}
    for file in root.glob("*/*/done.json"):
        record = json.loads(file.read_text())
        for name in prefixes(record["name"]):
            found.setdefault((record["stage"], name), []).append(record["processor_seconds"])
    return {key: sum(values) / len(values) for key, values in found.items()}


def prefixes(name: str) -> Iterable[str]:
    """``a.b.c``, ``a.b``, ``a`` and nothing."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), -1, -1)]
