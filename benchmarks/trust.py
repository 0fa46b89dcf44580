"""What survives: kills, a full disk, damaged files, odd environments, a million steps, and workers that die or lie.

    OMP_NUM_THREADS=1 python benchmarks/trust.py
    python benchmarks/trust.py --only kills files
    python benchmarks/trust.py --long --only files inputs

Each part is a storm in a file of its own, ``_trust_<part>.py``, whose docstring says what counts as broken. Figures of
all parts found so far with the same code are merged, so that parts may be run one after the other; ``--fresh`` runs
them again. After an interruption a part goes on with the kinds that are missing.
"""

from __future__ import annotations

import importlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from _record import ROOT, code, plain, refuse_unrecordable, trying, write_results, write_whole

PARTS = ("kills", "files", "inputs", "workers", "disk", "soak")
Part = Literal["kills", "files", "inputs", "workers", "disk", "soak"]

# How much of each: kills a kind, files, inputs, faults of workers, faults of disks, environment steps.
AMOUNTS = {
    "quick": {"kills": 2, "files": 150, "inputs": 150, "workers": 6, "disk": 12, "soak": 4_000},
    "minutes": {"kills": 100, "files": 10_000, "inputs": 10_000, "workers": 60, "disk": 200, "soak": 1_000_000},
    "long": {"kills": 1_000, "files": 200_000, "inputs": 200_000, "workers": 600, "disk": 2_000, "soak": 10_000_000},
}  # fmt: skip


@dataclass(frozen=True)
class Args:
    only: tuple[Part, ...] = ()
    """Parts to run; all of them by default."""
    long: bool = False
    """Hours instead of minutes."""
    quick: bool = False
    """Seconds, for a test."""
    fresh: bool = False
    """Run parts again that are already known."""
    out: Path = ROOT / "runs/trust"


def main(args: Args) -> None:
    if not (args.quick or trying()):
        refuse_unrecordable()
    amount = AMOUNTS["quick" if args.quick else "long" if args.long else "minutes"]
    storms = {part: importlib.import_module(f"_trust_{part}") for part in PARTS}  # the code of all figures
    found = _known(args.out, amount)
    for part in args.only or PARTS:
        if part in found and not args.fresh:
            continue
        half, began = _Half(args.out / f"{part}.unfinished.json", amount[part]), time.perf_counter()
        figures = storms[part].run(
            amount[part], args.out / part, {} if args.fresh else half.read(), half.write
        )
        seconds = round(time.perf_counter() - began, 1)
        _write(args.out / f"{part}.json", amount[part], {"figures": figures, "seconds": seconds})
        half.path.unlink(missing_ok=True)
        shutil.rmtree(args.out / part, ignore_errors=True)
        found = _known(args.out, amount)
        print(part, json.dumps(figures, indent=1, default=plain), f"{seconds} s", flush=True)
    print(write_results("trust", summary(found), quick=args.quick))


@dataclass(frozen=True)
class _Half:
    """Figures of a part that was interrupted."""

    path: Path
    amount: int

    def read(self) -> dict[str, Any]:
        return _read(self.path, self.amount)

    def write(self, so_far: dict[str, Any]) -> None:
        _write(self.path, self.amount, so_far)


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that count, and behind them those of each part."""
    parts = {part: kept["figures"] for part, kept in found.items()}
    payload: dict[str, Any] = {}
    if kills := parts.get("kills"):
        payload |= {"kills_of_each": min(kind["kills"] for kind in kills.values())}
        payload |= {key: sum(kind[key] for kind in kills.values()) for key in ("kills", "lost", "differs")}
    wanted = {
        "files": ("files_tried", "files_escaped"),
        "inputs": ("inputs_tried", "silent_wrong", "raw_errors"),
        "workers": ("worker_faults", "workers_escaped"),
        "disk": ("disk_faults", "disk_escaped"),
        "soak": ("soak_steps", "soak_growth_mib", "open_files_constant"),
    }
    for part, keys in wanted.items():
        if part in parts:
            payload |= {key: parts[part][key] for key in keys}
    return payload | {"parts": parts, "seconds": {part: kept["seconds"] for part, kept in found.items()}}


def _known(folder: Path, amount: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Finished parts of this code and amount."""
    kept = {part: _read(folder / f"{part}.json", amount[part]) for part in PARTS}
    return {part: figures for part, figures in kept.items() if figures}


def _read(path: Path, amount: int) -> dict[str, Any]:
    """What ``_write`` wrote with the same code for the same amount; otherwise nothing."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    return kept["found"] if (kept.get("code"), kept.get("amount")) == (code(), amount) else {}


def _write(path: Path, amount: int, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"code": code(), "amount": amount, "found": found}, default=plain))


if __name__ == "__main__":
    main(tyro.cli(Args))
