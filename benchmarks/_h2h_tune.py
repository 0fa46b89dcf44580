"""What settings of the arms and searches give on tuning seeds and episodes: nothing of it is a result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from _h2h_answers import success_of
from _h2h_cells import Cell, Pipeline, Setting
from _h2h_table import ARMS, SEARCHES, TUNING_TASKS
from _record import write_whole

SEEDS = (0, 1, 2)
EPISODES = 100


def tune(what: str, cells: Sequence[Cell], root: Path, quick: bool) -> None:
    """Plays and prints; ``<root>/tuning.json`` keeps the successes, by arm, number, what it changes, task and seed.

    Args:
        what: ``"settings"`` of the arms, with point dynamics on the tuning tasks; ``"searches"`` on chosen settings.
        cells: of the tuning seeds.
        root: of all stages.
        quick: a little of everything.
    """
    file, keys = root / "tuning.json", []
    for cell in sorted(cells, key=lambda cell: cell.seed):
        if cell.seed not in SEEDS:
            raise ValueError(
                f"settings are chosen on seeds {SEEDS}, got {cell.seed}; the others are reported"
            )
        if what == "settings" and (cell.dynamics != "point" or cell.task not in TUNING_TASKS):
            continue
        for number, change in enumerate(
            ARMS[cell.arm].tried if what == "settings" else SEARCHES.get(cell.task, ({},))
        ):
            tried = {"change": change} if what == "settings" else {"search": number}
            setting = Setting(root, episodes=EPISODES, tune=True, quick=quick, **tried)
            success = success_of(Pipeline(cell, setting).played)
            kind = cell.arm if what == "settings" else f"{cell.arm}.{cell.dynamics}"
            keys.append(f"{kind} {number} {json.dumps(change)} {cell.task} {cell.seed}")
            found = read(file) | {keys[-1]: success}  # other processes write here, too
            write_whole(file, json.dumps(found, indent=1))
            print(f"{keys[-1]}: {success:.2f}", flush=True)
    print(means({key: value for key, value in read(file).items() if key in keys}))


def read(file: Path) -> dict[str, float]:
    """What was found so far."""
    return json.loads(file.read_text()) if file.exists() else {}


def means(found: dict[str, float]) -> str:
    """A line for each arm and number: the mean over tasks and seeds."""
    groups: dict[str, list[float]] = {}
    for key, value in found.items():
        groups.setdefault(key.rsplit(" ", 2)[0], []).append(value)
    return "\n".join(f"{sum(values) / len(values):.3f}  {group}" for group, values in groups.items())
