"""Where a benchmark's figures go: one JSON file with the command, versions, machine and commit beside them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "jepa-rl", "torch", "numpy", "gymnasium", "stable-baselines3", "dm-control", "mujoco", "minari",
    "stable-worldmodel",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of everything whose speed or behaviour may enter a figure."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Of the checkout, marked where files that git knows were changed; None outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--match="]
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def origin() -> dict[str, Any]:
    """Day, machine and commit of a figure."""
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine(), "commit": commit()}


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory and accelerator. No host name, no path."""
    described: dict[str, Any] = {"cpu": _cpu_model(), "cores": _cores(), "system": platform.system()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        described["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if "torch" in sys.modules:  # a benchmark that does not use torch need not load it for this
        torch = sys.modules["torch"]
        described["torch_threads"] = torch.get_num_threads()
        described["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    for name in ("OMP_NUM_THREADS", "MUJOCO_GL"):
        if name in os.environ:
            described[name] = os.environ[name]
    return described


def recorded_results(name: str) -> dict[str, Any]:
    """What ``results`` holds in the file of a full run; empty if there is no such file yet."""
    path = ROOT / f"benchmarks/results/{name}.json"
    return json.loads(path.read_text())["results"] if path.exists() else {}


def write_results(name: str, payload: dict[str, Any], *, quick: bool = False) -> Path:
    """Write ``payload`` with command, versions, machine, date and commit; return the file's path.

    The full run writes ``benchmarks/results/<name>.json``. A ``quick`` run, or one with ``--quick`` on
    its command line, writes ``runs/benchmarks/<name>.quick.json`` and so never replaces the real figures.
    The file appears whole or not at all.

    Raises:
        ValueError: if ``payload`` uses one of the recorded keys, or holds something JSON cannot say
            (NaN and infinities included).
    """
    quick = quick or "--quick" in sys.argv
    recorded = {
        "command": _command(),
        "quick": quick,
        **origin(),
        "versions": versions(),
    }
    if clash := recorded.keys() & payload.keys():
        raise ValueError(f"payload keys {sorted(clash)} are written by write_results itself; rename them")
    try:
        text = json.dumps({**payload, **recorded}, indent=2, allow_nan=False, default=_plain) + "\n"
    except TypeError as error:
        raise ValueError(f"payload cannot be written as JSON: {error}") from error
    folder = ROOT / ("runs/benchmarks" if quick else "benchmarks/results")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{name}.quick.json" if quick else f"{name}.json")
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _plain(value: Any) -> Any:
    """NumPy and torch scalars and arrays as Python numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _command() -> str:
    """The command line as one would type it at the repository root."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    arguments = [argument.replace(f"{ROOT}{os.sep}", "") for argument in sys.argv[1:]]
    return " ".join(["python", shown, *arguments])


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
