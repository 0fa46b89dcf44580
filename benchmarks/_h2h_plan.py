"""What of the head-to-head is missing, and what it takes: processor seconds of finished stages, or guesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from _h2h_cache import prefixes, seconds_known
from _h2h_cells import Cell

# Processor seconds of a stage where none like it is finished.
GUESSES = {"data": 60.0, "encoder": 120.0, "latents": 10.0, "dynamics": 60.0, "play": 60.0, "measures": 20.0}


def print_plan(cells: Sequence[Cell], root: Path, is_recorded: Callable[[Cell], bool]) -> None:
    missing = [cell for cell in cells if not is_recorded(cell)]
    known = seconds_known(root)
    seconds = {kind: 0.0 for kind in GUESSES}
    for kind, name in stages_of(missing):
        seconds[kind] += next((known[kind, p] for p in prefixes(name) if (kind, p) in known), GUESSES[kind])
    print(f"{len(missing)} of {len(cells)} cells are missing")
    for kind, total in seconds.items():
        print(f"  {kind:<10}{total / 3600:7.2f} core-hours")
    print(f"  {'together':<10}{sum(seconds.values()) / 3600:7.2f} core-hours")


def stages_of(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Kind and name of all stages, each once."""
    found: dict[tuple[str, str], None] = {}
    for cell in cells:
        encoder = f"{cell.task}.{cell.arm}.{cell.seed}"
        stages = {"data": f"{cell.task}.{cell.seed}", "encoder": encoder, "latents": encoder}
        stages |= {kind: str(cell) for kind in ("dynamics", "play", "measures")}
        found |= dict.fromkeys(stages.items())
    return list(found)
