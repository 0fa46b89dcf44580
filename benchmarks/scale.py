"""Beyond one process and one machine: what stays the same, and what is gained.

    python benchmarks/scale.py
    python benchmarks/scale.py --only gradient throughput

Each part is a module ``_scale_<name>.py`` with a function ``measure(quick)`` that returns its figures by name. Parts
that are not measured keep what the file says of them. Use an idle machine with a core for each process. Writes
``benchmarks/results/scale.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro
from _record import ROOT, origin, refuse_unrecordable, trying, write_results

PARTS = tuple(path.stem.removeprefix("_scale_") for path in sorted(Path(__file__).parent.glob("_scale_*.py")))


@dataclass
class Args:
    only: tuple[str, ...] = PARTS
    """parts to measure"""
    quick: bool = False
    """a trial of each part; writes runs/benchmarks/scale.quick.json"""


def merged(before: dict[str, Any], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of the file: figures of all parts by name, and ``parts``, which says how each was made.

    Args:
        before: the content so far.
        found: for each part measured now ``figures`` by name and how they were made.
    """
    parts = before.get("parts", {}) | found
    return {name: value for part in parts.values() for name, value in part["figures"].items()} | {
        "parts": parts
    }


def main(args: Args) -> None:
    if unknown := sorted(set(args.only) - set(PARTS)):
        raise SystemExit(f"there are no parts {unknown}, only {list(PARTS)}")
    counts = not (args.quick or trying())
    if counts:
        refuse_unrecordable()
    found = {}
    for name in args.only:
        figures = import_module(f"_scale_{name}").measure(args.quick)
        for figure, value in figures.items():
            print(f"{figure:40s} {value}")
        found[name] = {"figures": figures, **origin()}
    path = ROOT / "benchmarks/results/scale.json"
    before = json.loads(path.read_text()) if counts and path.exists() else {}
    print(write_results("scale", merged(before, found), quick=args.quick))


if __name__ == "__main__":
    main(tyro.cli(Args))
