"""Two Rooms, random wall and door, start and goal in different rooms: success over layouts and training seeds.

    python benchmarks/two_rooms.py              about 15 minutes on one core for each seed
    python benchmarks/two_rooms.py --seeds 4    that one alone; the figures are collected from all that are finished
    python benchmarks/two_rooms.py --quick

Each seed collects, trains and diagnoses as examples/quickstart.py does, then plays the same unseen layouts.
Settings were chosen on training seeds 0 to 2 and on other layouts. A stopped run goes on where it was; a finished one
is a file of ``benchmarks/results/two_rooms`` and is not run again.
"""

import shutil
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from _intervals import summarise
from _record import ROOT, Records, made_by, note_process, refuse_unrecordable, trying, write_results

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import quickstart
from quickstart import MAX_STEPS, Driver, Outcome, play
from torch.utils.tensorboard import SummaryWriter

from jepa_rl.agents import CEM, MPCAgent
from jepa_rl.costs import GoalCost


@dataclass(frozen=True)
class Args:
    seeds: tuple[int, ...] = (3, 4, 5)
    """Of training, other than those that settings were chosen on; the evaluation's layouts are the same for all."""
    episodes: int = 200
    cem_episodes: int = 20
    """The cross-entropy method fails slowly: fewer episodes of it, the first of the others'."""
    quick: bool = False
    out: Path = Path("runs/two_rooms")


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, seeds=(3,), episodes=2, cem_episodes=1, out=Path("runs/two_rooms_quick"))
        shutil.rmtree(args.out, ignore_errors=True)
    kept = records(args)
    if kept.counted:
        refuse_unrecordable()
    for seed in args.seeds:
        if kept.read(seed) is None:
            processes = note_process(args.out / f"seed_{seed}")
            kept.write(seed, run_seed(args, seed), processes)
    results = collected(kept.all())
    for name, value in results.items():
        print(f"{name:<34}{value}")
    print(write_results("two_rooms", results, quick=not kept.counted and not trying(), collected=True))


def records(args: Args) -> Records:
    own, free = Args(), ("out", "resume", "quick", "episodes", "seed")
    settings = {k: v for k, v in asdict(quickstart.Args()).items() if k not in free}
    settings |= {"episodes": args.episodes, "cem_episodes": args.cem_episodes}
    counted = (args.episodes, args.cem_episodes) == (own.episodes, own.cem_episodes) and not trying()
    return Records(
        ROOT / "benchmarks/results/two_rooms" if counted else args.out / "records", settings, counted
    )


def collected(runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The figures of all finished seeds."""
    found = list(runs.values())
    success = {
        name: summarise([run["success"][name] for run in found], (0.0, 1.0)) for name in found[0]["success"]
    }
    return {
        "success": success,
        "seeds": list(runs),
        "median_steps": float(np.median([steps for run in found for steps in run["steps"]])),
        **{key: [run[key] for run in found] for key in MEASURES},
        "settings": found[0]["settings"],
        **made_by(found),
    }


MEASURES = ("plan_ms_per_action", "train_seconds", "probe_r2", "linear_probe_r2")


def run_seed(args: Args, seed: int) -> dict[str, Any]:
    """Everything of one training seed."""
    settings = quickstart.Args(
        episodes=args.episodes, seed=seed, out=args.out / f"seed_{seed}", quick=args.quick
    )
    if args.quick:
        settings = replace(settings, **quickstart.QUICK)
    settings.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    clock = quickstart.Clock(settings.out / "seconds.json")
    with clock("collect"):
        store = quickstart.random_play(settings)
    train, held_out = store.split(0.1, seed=seed)
    with clock("train"):
        model = quickstart.train_world_model(settings, train, held_out)
    diagnosis, _ = quickstart.diagnose(settings, model, train, held_out)
    outcomes = quickstart.evaluate(settings, model, train)
    # The cross-entropy method on the same latents and horizon, with a larger budget and another cost: summed over the
    # plan's states. The agent's, of the last state alone, serves the tree; CEM reaches fewer goals with it.
    cem = CEM(settings.horizon, samples=256, elites=26, iterations=6, init_std=1.0)
    fewer = replace(settings, episodes=args.cem_episodes)
    board = SummaryWriter(str(settings.out / "cem"))
    rival = MPCAgent(model, cem, cost=GoalCost, hold=True, seed=seed)
    outcomes["cem"] = play(fewer, lambda env, episode: Driver(rival, board, MAX_STEPS * episode))
    outcomes["cem_true_dynamics"] = play(fewer, partial(quickstart.oracle, settings, cem, rival.cost))
    board.close()
    print(f"seed {seed}:", {name: rate(found) for name, found in outcomes.items()}, flush=True)
    agent = outcomes["agent"]
    outcomes["true_dynamics"] = outcomes.pop("oracle_dynamics")
    return {
        "success": {name: [int(o.success) for o in found] for name, found in outcomes.items()},
        "steps": [o.steps for o in agent],
        "plan_ms_per_action": 1e3 * sum(o.seconds for o in agent) / sum(o.steps for o in agent),
        "train_seconds": clock.seconds["train"],
        **diagnosis,
    }


def rate(outcomes: list[Outcome]) -> float:
    return float(np.mean([outcome.success for outcome in outcomes]))


if __name__ == "__main__":
    main(tyro.cli(Args))
