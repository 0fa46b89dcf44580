"""Where a benchmark's figures go, and which of them count together.

One JSON file with the figures; for long runs a small file for each seed, from which the figures are collected. Both
say how they were made: command, versions, machine, commit, and a fingerprint of the code.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ("jepa_rl", "agents", "envs")
CODE = (*LIBRARY, "examples", "benchmarks/*.py", "setup.cfg", "pyproject.toml", "constraints.txt")
# These change no figure; what the table of the head-to-head says is in the settings of its records.
REPORTING = ("_record", "_intervals", "readme_table", "_h2h_report", "_h2h_table")
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


@cache
def commit() -> str | None:
    """Of the checkout, ``-dirty`` behind it where code differs from it; None outside one.

    Code is what may change a figure. Results, notes and pictures, which recording itself writes, may differ. The first
    call counts, as for ``code``: what is edited or committed while a benchmark runs is not what it runs.
    """
    try:
        found = run_git("rev-parse", "--short=10", "HEAD").strip()
        changed = run_git("status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}-dirty" if changed else found


def run_git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@cache
def code() -> str:
    """Fingerprint of the code behind a figure: the library, and the scripts that this process has imported.

    Comments, docstrings and layout do not count: what is equal here does the same.
    """
    scripts = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    used = {Path(file).resolve() for file in scripts if file}
    used = {
        path
        for path in used
        if path.parent.parent == ROOT and path.parent.name in ("examples", "benchmarks") and path.is_file()
    }  # torch names files that do not exist
    library = {path for name in LIBRARY for path in (ROOT / name).rglob("*.py")}
    return fingerprint(library | {path for path in used if path.stem not in REPORTING}, ROOT)[:12]


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """Of Python files below a folder, without comments, docstrings and layout."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\n{_bare(path.read_text())}\n".encode())
    return digest.hexdigest()


@cache  # the grids take many fingerprints of the same files
def _bare(source: str) -> str:
    """Python without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def origin() -> dict[str, Any]:
    """Day, machine, commit, code and versions behind a figure."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "commit": commit(),
        "code": code(),
        "versions": versions(),
    }


# -- what may be recorded, and what may be counted together -----------------------------------------


def trying() -> bool:
    """Whether ``BENCHMARK_TRY=1`` asks for figures that are never recorded."""
    return os.environ.get("BENCHMARK_TRY", "") not in ("", "0")


def refuse_unrecordable() -> None:
    """Before hours are spent: figures are recorded from a committed checkout alone. Notes commit and code.

    Raises:
        SystemExit: outside a checkout, or where its code was changed.
    """
    found, _ = commit(), code()
    if found is None or found.endswith("-dirty"):
        raise SystemExit(
            f"figures are recorded from committed code, and this is {found or 'no git checkout'}: commit first "
            f"({', '.join(CODE)}), or set BENCHMARK_TRY=1 for a try, which is written to runs/ and never recorded"
        )


def not_recorded(record: Mapping[str, Any]) -> list[str]:
    """What a run's record does not tell of itself: its settings, a commit, or code that is a commit's."""
    missing = [] if record.get("agent") or record.get("settings") else ["settings"]
    for process in record.get("processes") or [record]:
        found = process.get("commit")
        missing += ["commit"] if found is None else ["clean tree"] if found.endswith("-dirty") else []
        missing += [] if process.get("code") else ["code"]
    return list(dict.fromkeys(missing))


def differences(records: Sequence[Mapping[str, Any]], keys: Sequence[str] = ()) -> list[str]:
    """Facts in which runs differ that are to be counted together: ``keys``, and how they were made.

    Settings and code are compared where both of two runs tell them; ``not_recorded`` says which do not.
    """
    unlike = [key for key in keys if any(record.get(key) != records[0].get(key) for record in records)]
    for key in ("agent", "settings"):
        told = [record[key] for record in records if record.get(key)]
        unlike += [key] if any(value != told[0] for value in told) else []
    made = {process["code"] for r in records for process in r.get("processes") or [r] if process.get("code")}
    return unlike + (["code"] if len(made) > 1 else [])


def refuse_differences(records: Sequence[Mapping[str, Any]], keys: Sequence[str], where: Path | str) -> None:
    """Runs of one task and method are reported together, so they must be of one kind.

    Raises:
        ValueError: if they differ, with the facts in which they do.
    """
    if unlike := differences(records, keys):
        commits = sorted({str(record.get("commit")) for record in records})
        raise ValueError(
            f"runs under {where} differ in {unlike} (commits {', '.join(commits)}); keep those of one kind: move the "
            "others away, or run the missing seeds from a checkout of the same commit"
        )


def read_cells(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Finished cells of a grid, with their places: the folders ``names``, ``"task"`` among them, and ``"seed"``.

    Raises:
        ValueError: if those of a task were made by different code.
    """
    found = []
    for path in sorted(folder.glob("*/" * len(names) + "seed_*.json")):
        places = dict(zip(names, path.relative_to(folder).parts[:-1], strict=True))
        found.append(json.loads(path.read_text()) | places | {"seed": int(path.stem[5:])})
    for task in sorted({record["task"] for record in found}):
        if len(made := {record["code"] for record in found if record["task"] == task}) > 1:
            raise ValueError(
                f"cells of {task} under {folder} were made by different code ({', '.join(sorted(made))}); keep those "
                "of one kind, and run the others again from one commit"
            )
    return found


@dataclass(frozen=True)
class Records:
    """Finished runs of a benchmark, one small file for each seed, so that any machine may add some.

    Attributes:
        folder: of these files.
        settings: what all runs have in common, JSON's types; a file of another kind is refused.
        counted: whether they are recorded figures, which need a committed checkout.
    """

    folder: Path
    settings: dict[str, Any]
    counted: bool

    def read(self, seed: int) -> dict[str, Any] | None:
        """The record of ``seed``; None if it is not finished and may be run.

        Raises:
            ValueError: if it has other settings, or, before it is run, if finished ones have other settings or code.
        """
        path, here = self.folder / f"seed_{seed}.json", {"settings": _json(self.settings)}
        if path.exists():
            found = json.loads(path.read_text())
            refuse_differences([found, here], (), path)
            return found
        refuse_differences(
            [*self.all().values(), here | {"code": code(), "commit": commit()}], (), self.folder
        )
        return None

    def write(self, seed: int, found: dict[str, Any], processes: Sequence[dict[str, Any]] = ()) -> None:
        """Keep a finished run and how it was made: what ``note_process`` returned, or nothing but this process.

        Raises:
            ValueError: if figures are to count and the record does not tell where they come from.
        """
        record = {"settings": _json(self.settings), **origin(), "processes": processes, **found}
        if self.counted and (missing := not_recorded(record)):
            raise ValueError(
                f"a record of seed {seed} lacks {missing}; set BENCHMARK_TRY=1 for figures that do not count"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"seed_{seed}.json", json.dumps(record, default=plain, allow_nan=False))

    def all(self) -> dict[int, dict[str, Any]]:
        """Every finished run, by its seed.

        Raises:
            ValueError: if they are not of one kind.
        """
        paths = sorted(self.folder.glob("seed_*.json"), key=lambda path: int(path.stem[5:]))
        found = {int(path.stem[5:]): json.loads(path.read_text()) for path in paths}
        refuse_differences(list(found.values()), (), self.folder)
        return found


def note_process(folder: Path) -> list[dict[str, Any]]:
    """This process, and those before it that worked on the same run until they were stopped: the last is this one."""
    file = folder / "processes.json"
    known = json.loads(file.read_text()) if file.exists() else []
    found = [*known, {"threads": machine().get("torch_threads"), **origin()}]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(found))
    return found


def made_by(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What collected figures say of their runs: machines, commits, and what was not recorded."""
    records = list(records)
    missing = [name for record in records for name in not_recorded(record)]
    return {
        "machines": [record["machine"] for record in records],
        "commits": [record.get("commit") for record in records],
        "not_recorded": list(dict.fromkeys(missing)),
    }


# -- files ------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory and accelerator. No host name, no path."""
    described: dict[str, Any] = {"cpu": _cpu_model(), "cores": _cores(), "system": platform.system()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        described["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if "torch" in sys.modules:  # a benchmark that does not use torch need not load it for this
        torch = sys.modules["torch"]
        described["torch_threads"] = torch.get_num_threads()
        described["isa"] = torch.backends.cpu.get_cpu_capability()  # that torch uses
        described["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    for name in ("OMP_NUM_THREADS", "MUJOCO_GL"):
        if name in os.environ:
            described[name] = os.environ[name]
    return described


def recorded_results(name: str) -> dict[str, Any]:
    """What ``results`` holds in the file of a full run; empty if there is no such file yet."""
    path = ROOT / f"benchmarks/results/{name}.json"
    return json.loads(path.read_text())["results"] if path.exists() else {}


def write_results(
    name: str, payload: dict[str, Any], *, quick: bool = False, collected: bool = False
) -> Path:
    """Write ``payload`` with command, versions, machine, date and commit; return the file's path.

    The full run writes ``benchmarks/results/<name>.json``. A ``quick`` run, or one with ``--quick`` on
    its command line, writes ``runs/benchmarks/<name>.quick.json``, a try (``BENCHMARK_TRY=1``) ``<name>.try.json``
    beside it: neither replaces the real figures. The file appears whole or not at all.

    Args:
        name: of the file.
        payload: the figures; JSON's types, and NumPy's and torch's numbers and arrays.
        quick: whether the figures do not count.
        collected: the figures come from records, each of which tells its own machine, commit and versions: what this
            call runs on says nothing of them and is left out.

    Raises:
        ValueError: if ``payload`` uses one of the recorded keys, or holds something JSON cannot say
            (NaN and infinities included).
        SystemExit: if the figures count and the checkout is not committed.
    """
    quick = quick or "--quick" in sys.argv
    kind = "quick" if quick else "try" if trying() else ""
    if not kind and not collected:
        refuse_unrecordable()
    recorded = {"command": _command(), "quick": quick, **({} if collected else origin())}
    if clash := recorded.keys() & payload.keys():
        raise ValueError(f"payload keys {sorted(clash)} are written by write_results itself; rename them")
    try:
        text = json.dumps({**payload, **recorded}, indent=2, allow_nan=False, default=plain) + "\n"
    except TypeError as error:
        raise ValueError(f"payload cannot be written as JSON: {error}") from error
    folder = ROOT / ("runs/benchmarks" if kind else "benchmarks/results")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{name}.{kind}.json" if kind else f"{name}.json")
    write_whole(path, text)
    return path


def write_whole(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _json(value: Any) -> Any:
    """As JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value, default=plain))


def plain(value: Any) -> Any:
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
