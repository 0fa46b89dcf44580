"""Two Rooms, random wall and door, start and goal in different rooms: success over layouts and training seeds.

    python benchmarks/two_rooms.py            about 40 minutes on one core
    python benchmarks/two_rooms.py --quick

Each seed collects, trains and diagnoses as examples/quickstart.py does, then plays the same unseen layouts.
A stopped run goes on where it was.
"""

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from _record import write_results

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import quickstart
from quickstart import MAX_STEPS, Driver, Outcome, play
from torch.utils.tensorboard import SummaryWriter

from jepa_rl.agents import CEM, MPCAgent
from jepa_rl.diagnostics import wilson_interval


@dataclass(frozen=True)
class Args:
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training; the evaluation's layouts are the same for all and unseen by all."""
    episodes: int = 200
    cem_episodes: int = 20
    """The cross-entropy method fails slowly: fewer episodes of it."""
    quick: bool = False
    out: Path = Path("runs/two_rooms")


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, seeds=(0,), episodes=2, cem_episodes=1, out=Path("runs/two_rooms_quick"))
    runs = [run_seed(args, seed) for seed in args.seeds]
    first = runs[0]["outcomes"]
    rates = {name: [rate(run["outcomes"][name]) for run in runs] for name in first}
    reached = sum(outcome.success for run in runs for outcome in run["outcomes"]["agent"])
    trials = args.episodes * len(runs)
    agent = [outcome for run in runs for outcome in run["outcomes"]["agent"]]
    results = {
        "success_rate": reached / trials,
        "success_ci95": wilson_interval(reached, trials),
        **{f"{name}_success_rate": float(np.mean(found)) for name, found in rates.items() if name != "agent"},
        "success_rate_per_seed": rates["agent"],
        "episodes_per_seed": args.episodes,
        "cem_episodes_per_seed": args.cem_episodes,
        "seeds": args.seeds,
        "median_steps": float(np.median([outcome.steps for outcome in agent])),
        "plan_ms_per_action": 1e3 * sum(o.seconds for o in agent) / sum(o.steps for o in agent),
        "train_seconds": [run["train_seconds"] for run in runs],
        "probe_r2": [run["probe_r2"] for run in runs],
        "linear_probe_r2": [run["linear_probe_r2"] for run in runs],
        "threads": torch.get_num_threads(),
        "settings": {
            k: v for k, v in asdict(quickstart.Args()).items() if k not in ("out", "resume", "quick")
        },
    }
    for name, value in results.items():
        print(f"{name:<34}{value}")
    print(write_results("two_rooms", results, quick=args.quick))


def run_seed(args: Args, seed: int) -> dict:
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
    # The cross-entropy method on the same latents, cost and horizon, with a larger budget.
    cem = CEM(settings.horizon, samples=256, elites=26, iterations=6, init_std=1.0)
    fewer = replace(settings, episodes=args.cem_episodes)
    board = SummaryWriter(str(settings.out / "cem"))
    rival = MPCAgent(model, cem, hold=True, seed=seed)
    outcomes["cem"] = play(fewer, lambda env, episode: Driver(rival, board, MAX_STEPS * episode))
    outcomes["cem_oracle_dynamics"] = play(fewer, partial(quickstart.oracle, settings, cem, rival.cost))
    board.close()
    print(f"seed {seed}:", {name: rate(found) for name, found in outcomes.items()}, flush=True)
    return {"outcomes": outcomes, "train_seconds": clock.seconds["train"], **diagnosis}


def rate(outcomes: list[Outcome]) -> float:
    return float(np.mean([outcome.success for outcome in outcomes]))


if __name__ == "__main__":
    main(tyro.cli(Args))
