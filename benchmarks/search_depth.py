"""How far must a plan look ahead, in which space? Encoders and point dynamics of the head-to-head, searched less deep.

    python benchmarks/search_depth.py --arms vae --tasks two_rooms     two minutes, where the head-to-head has the cell
    python benchmarks/search_depth.py                                  tier A and the bounds; trains what is missing
    python benchmarks/search_depth.py --report                         search_depth.json, docs/head_to_head_depth.png
    python benchmarks/search_depth.py --quick

A search that looks as far as the goal needs a price that knows the goal when it sees it; one that looks less far needs
a price that falls on the way there. Measures, exploratory, since the head-to-head's protocol does not name them:

``success``: the head-to-head's paired episodes, with the task's common search at several horizons.

``order``: Spearman's rank correlation, along an expert's way to the goal, of an arm's price and the decisions that are
left; mean over ways. The expert plans in the true state; the ways are those of its episodes, on worlds of their own,
that reached the goal. 1: the price falls all along the way; 0: it says nothing of it before the goal.
``middle_over_start``: the price in the middle of a way over that at its start.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from _h2h_answers import rank_correlation
from _h2h_cells import Cell, Pipeline, Setting
from _h2h_table import ARMS
from _h2h_tasks import TIER_A, Seen, Worlds, newest_frame, play
from _record import ROOT, Records, refuse_unrecordable, trying
from head_to_head import check_names, prepare, settings_of

# Of plans, in blocks; the last is the common search's own.
HORIZONS = {"two_rooms": (1, 2, 3, 4, 6, 12), "reacher": (1, 2, 3, 5), "table_edge": (1, 2, 3, 6)}
EXPERT = 9_000_000  # seed of the first world of the expert's ways
WAYS = 100  # worlds that the expert plays
SHORTEST = 3  # decisions of a way that says something of an order
RESULTS = ROOT / "benchmarks/results/search_depth"


@dataclass(frozen=True)
class Args:
    arms: tuple[str, ...] = tuple(name for name, arm in ARMS.items() if arm.tier in ("A", "-"))
    tasks: tuple[str, ...] = TIER_A
    seeds: tuple[int, ...] = (3,)
    report: bool = False
    """Collect what is finished, with a picture."""
    quick: bool = False
    """A little of everything; its figures mean nothing."""
    out: Path = Path("runs/head_to_head")
    """Stages of the head-to-head, which are used where they are finished."""


def main(args: Args) -> None:
    check(args)
    prepare()
    if args.quick:
        args = replace(
            args, out=args.out / "quick_depth", arms=("jepa_sigreg", "state"), seeds=args.seeds[:1]
        )
        shutil.rmtree(args.out, ignore_errors=True)
    folder = args.out / "depth" if args.quick or trying() else RESULTS
    if args.report:
        from _search_depth_report import write_report

        write_report(folder)
        return
    if folder == RESULTS:
        refuse_unrecordable()
    for seed in args.seeds:
        for task in args.tasks:
            for arm in args.arms:
                run(args, folder, Cell(task, arm, "point", seed))


def check(args: Args) -> None:
    """Raises ValueError for names that are not known."""
    check_names(args, {"arms": tuple(ARMS), "tasks": tuple(HORIZONS)})


def run(args: Args, folder: Path, cell: Cell) -> None:
    """Measures one arm on one task and keeps the record, unless it is there."""
    setting = Setting(args.out, quick=args.quick)
    pipeline = Pipeline(cell, setting)
    settings = settings_of(pipeline) | {"horizons": HORIZONS[cell.task], "ways": WAYS, "first_way": EXPERT}
    kept = Records(folder / cell.task / cell.arm, settings, counted=folder == RESULTS)
    if kept.read(cell.seed) is not None:
        return
    success = {}
    for horizon in HORIZONS[cell.task]:
        # The search's own horizon is found where the head-to-head played it.
        success[str(horizon)] = pipeline.played_with(pipeline.search | {"horizon": horizon})["success"]
    found = {"success": success, **order_of(pipeline, expert_ways(cell.task, cell.seed, setting))}
    kept.write(cell.seed, found)
    told = ", ".join(f"{horizon}: {np.mean(values):.2f}" for horizon, values in success.items())
    print(f"{cell}: success by horizon {told}; order {found['order']:.2f}", flush=True)


# -- the order of prices ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """What the expert saw at its decisions, the newest frames alone, and the goal."""

    seen: Seen
    goal: Seen


class Watched:
    """Worlds that keep what they show: see ``_h2h_tasks.Worlds``."""

    def __init__(self, worlds: Worlds) -> None:
        self.worlds, self.goal = worlds, worlds.goals()
        self.shown: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.worlds, name)

    def seen(self, rows: np.ndarray) -> Seen:
        found = self.worlds.seen(rows)
        for row, pixels, state in zip(rows, found.pixels, found.state, strict=True):
            self.shown.setdefault(int(row), []).append((pixels[-1], state[-1]))
        return found


@cache
def expert_ways(task: str, seed: int, setting: Setting) -> list[Way]:
    """Ways to the goal of plans in the true state, ``SHORTEST`` decisions long or longer."""
    pipeline = Pipeline(Cell(task, "state", "point", seed), setting)
    _ = pipeline.latents  # the space's scale
    watched: list[Watched] = []

    def begin(seeds: Any) -> Any:
        watched.append(Watched(pipeline.task.begin(seeds)))
        return watched[0]

    seeds = range(EXPERT, EXPERT + (4 if setting.quick else WAYS))
    reached = play(
        replace(pipeline.task, begin=begin),
        pipeline.space,
        pipeline.dynamics[0],
        seeds,
        seed,
        pipeline.search,
    )
    goal = watched[0].goal
    return [
        Way(
            Seen(*(np.stack(part)[:, None] for part in zip(*shown, strict=True))),
            Seen(goal.pixels[row : row + 1], goal.state[row : row + 1]),
        )
        for row, shown in sorted(watched[0].shown.items())
        if setting.quick or (reached[row] and len(shown) >= SHORTEST)
    ]


def order_of(pipeline: Pipeline, ways: list[Way]) -> dict[str, Any]:
    """``order`` and ``middle_over_start`` of an arm; see the head of this file."""
    _ = pipeline.latents
    space, orders, middles = pipeline.space, [], []
    for way in ways:
        seen, goal = space.read(way.seen).flatten(1), space.read(way.goal).flatten(1)
        price = newest_frame(goal.shape[-1])(seen, goal).double().numpy()
        orders.append(rank_correlation(price, np.arange(len(price))[::-1]))
        middles.append(float(price[len(price) // 2] / max(price[0], 1e-9)))
    return {"order": float(np.mean(orders)), "middle_over_start": float(np.mean(middles)), "ways": len(ways)}


if __name__ == "__main__":
    main(tyro.cli(Args))
