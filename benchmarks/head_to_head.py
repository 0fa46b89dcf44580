"""Which space should a world model plan in? The same tasks, data, dynamics, planner and budget for every encoder.

    python benchmarks/head_to_head.py --plan                       what is missing and what it takes
    python benchmarks/head_to_head.py                              tier A: days on one core; goes on after a kill
    python benchmarks/head_to_head.py --arms vae dino --tasks two_rooms --dynamics point --seeds 3
    python benchmarks/head_to_head.py --tune settings --arms vae   choose among an arm's settings
    python benchmarks/head_to_head.py --report                     head_to_head.json and the tables of the write-up
    python benchmarks/head_to_head.py --quick
    python benchmarks/head_to_head.py --ray                        as many encoders at once as there are cores

A cell is a task, an arm (how the encoder came about), dynamics and a training seed. Its stages (data, encoder, latents,
dynamics, play, measures) are kept under ``--out`` by what they depend on, so that any subset may run, in any order and
in several processes; a finished cell is a file of ``benchmarks/results/head_to_head``. What is compared, and how, is
in docs/head_to_head_protocol.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from _h2h_answers import success_of
from _h2h_cells import Cell, Pipeline, Setting, planner_facts, remember_code
from _h2h_plan import print_plan
from _h2h_recipes import ALL
from _h2h_report import write_report
from _h2h_table import ARMS
from _h2h_tasks import TASKS, TIER_A, VARIANTS
from _h2h_tune import tune
from _record import ROOT, Records, refuse_unrecordable, trying
from _sweep import run_cases

STAGES = ("data", "encoder", "latents", "dynamics", "played", "measures")
RESULTS = ROOT / "benchmarks/results/head_to_head"


@dataclass(frozen=True)
class Args:
    arms: tuple[str, ...] = ()
    """Of the table; by default tier A and the bounds."""
    tasks: tuple[str, ...] = TIER_A
    dynamics: tuple[str, ...] = ("point", "flow")
    seeds: tuple[int, ...] = (3, 4, 5)
    """Of data and training; settings were chosen on 0 to 2."""
    only: tuple[str, ...] = STAGES
    """Stages that are run, with those that they need; a cell is recorded if all are."""
    plan: bool = False
    """Print what is missing and an estimate of the time."""
    tune: Literal["", "settings", "searches"] = ""
    """Play all settings of the arms, or all searches on their chosen settings, on tuning seeds and episodes; nothing is
    recorded."""
    report: bool = False
    """Collect all finished cells and write the report."""
    quick: bool = False
    """A little of everything, in a minute; its figures mean nothing."""
    ray: bool = False
    """Run every encoder with its dynamics in a process of its own, on Ray."""
    address: str | None = None
    """With --ray: of a cluster, whose machines all see this checkout and the folder; this machine alone if None."""
    out: Path = Path("runs/head_to_head")


def main(args: Args) -> None:
    check(args)
    prepare()
    if args.quick:
        args = replace(
            args, out=args.out / "quick", seeds=args.seeds[:1], arms=args.arms or ("jepa_sigreg", "state")
        )
        shutil.rmtree(args.out, ignore_errors=True)
    cells = cells_of(args)
    if args.plan:
        print_plan(cells, args.out, lambda cell: record_of(cell, folder_of_records(args)).exists())
    elif args.report:
        write_report(folder_of_records(args))
    elif args.tune:
        tune(args.tune, cells, args.out, args.quick)
    else:
        if counted(args):
            refuse_unrecordable()
        # One encoder after the other, each with all its dynamics.
        cases = list(dict.fromkeys((cell.task, cell.arm, cell.seed) for cell in cells))
        if args.ray:
            run_cases("head_to_head", args, cases, address=args.address)
        for case in () if args.ray else cases:
            run(args, *case)
        if args.quick:
            write_report(folder_of_records(args), quick=True)


def prepare() -> None:
    """What a process does before its first cell."""
    torch.set_num_threads(1)
    remember_code()


def check(args: Args) -> None:
    """Raises ValueError for names that are not known."""
    known = {"arms": tuple(ARMS), "tasks": (*TASKS, *VARIANTS), "dynamics": tuple(ALL), "only": STAGES}
    check_names(args, known)


def check_names(args: Any, known: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError for names in a field of ``args`` that are not among its known ones."""
    for kind, names in known.items():
        if wrong := [name for name in getattr(args, kind) if name not in names]:
            raise ValueError(f"--{kind}: there is no {', '.join(wrong)}; choose of {', '.join(names)}")


def cells_of(args: Args) -> list[Cell]:
    """Task by task and arm by arm, so that encoders are made once and used at once."""
    arms = args.arms or tuple(name for name, arm in ARMS.items() if arm.tier in ("A", "-"))
    return [
        Cell(task, arm, dynamics, seed)
        for seed, task, arm, dynamics in product(args.seeds, args.tasks, arms, args.dynamics)
    ]


def counted(args: Args) -> bool:
    return not (args.quick or args.tune or trying()) and set(args.only) == set(STAGES)


def folder_of_records(args: Args) -> Path:
    recorded = counted(args) or (args.plan and not (args.quick or trying()))
    return RESULTS if recorded else args.out / "records"


def folder_of(cell: Cell, records: Path) -> Path:
    """Of the records of a cell with all its seeds."""
    return records / cell.task / cell.arm / cell.dynamics


def record_of(cell: Cell, records: Path) -> Path:
    return folder_of(cell, records) / f"seed_{cell.seed}.json"


def run(args: Args, task: str, arm: str, seed: int) -> None:
    """The cells of one encoder; in a process of Ray, too."""
    prepare()
    for dynamics in args.dynamics:
        run_cell(args, Cell(task, arm, dynamics, seed))


def run_cell(args: Args, cell: Cell) -> None:
    """Runs the stages of a cell and keeps the record, unless it is there."""
    setting = Setting(args.out, quick=args.quick)
    pipeline = Pipeline(cell, setting)
    records = folder_of_records(args)
    kept = Records(folder_of(cell, records), settings_of(pipeline), counted(args))
    if (record := kept.read(cell.seed)) is not None:
        again = "" if trying() else "; BENCHMARK_TRY=1 runs it again and leaves this record as it is"
        print(
            f"{cell}: success {success_of(record):.3f}, recorded in {record_of(cell, records)}{again}",
            flush=True,
        )
        return
    for stage in STAGES:
        if stage in args.only:
            getattr(pipeline, stage)
    if set(args.only) == set(STAGES):
        found = pipeline.found
        # Not the processes that came before this one: what they finished counts only where its code is still the same.
        kept.write(cell.seed, found)
        print(f"{cell}: success {success_of(found):.3f}", flush=True)


def settings_of(pipeline: Pipeline) -> dict[str, Any]:
    """All that decides what a cell gives, but for its seed."""
    task = pipeline.task
    return {
        "arm": pipeline.cell.arm,
        "dynamics": pipeline.cell.dynamics,
        "task": task.name,
        "encoder": {k: v for k, v in asdict(pipeline.arm).items() if k not in ("tried", "chosen")},
        "budget": pipeline.budget._asdict(),
        "recipe": asdict(pipeline.recipe),
        "data": task.settings,
        "planner": planner_facts(task, pipeline.search),
        "frames": task.frames,
        "block": task.block,
        "episodes": len(pipeline.episodes()),
    }


if __name__ == "__main__":
    main(tyro.cli(Args))
