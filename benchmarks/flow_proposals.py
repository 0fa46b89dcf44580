"""Plans out of a flow against the cross-entropy method: success and time to plan, on Two Rooms and reacher.

    python benchmarks/flow_proposals.py                      about 80 minutes on one core for each seed; needs OpenGL
    python benchmarks/flow_proposals.py --tasks two_rooms    45 of them, without OpenGL
    python benchmarks/flow_proposals.py --quick

World models are trained as examples/quickstart.py and benchmarks/goal_planning.py do. On their latents a flow to the
goal learns from imagined play. On Two Rooms also a flow over the outcomes of actions takes the place of the point
dynamics: in a deterministic world it should lose nothing. All planners play the same unseen episodes. A stopped run
goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import goal_planning
import numpy as np
import torch
import tyro
from _record import write_results
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import quickstart

from jepa_rl import TrainConfig, WorldModel
from jepa_rl.agents import CEM, FlowPlanner, FlowProposals, MPCAgent, TreeSearch, fit_flow_proposals
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.diagnostics import wilson_interval
from jepa_rl.files import write_atomic
from jepa_rl.training.refine import refine_dynamics
from jepa_rl.types import Planner


@dataclass(frozen=True)
class Args:
    tasks: tuple[Literal["two_rooms", "reacher"], ...] = ("two_rooms", "reacher")
    seeds: tuple[int, ...] = (0,)
    """Of training; the evaluation's episodes are the same for all and unseen by all."""
    episodes: int = 100
    paths: int = 60_000
    """Imagined, that the proposals learn from."""
    proposal_updates: int = 5000
    flow_updates: int = 5000
    tune: bool = False
    """Play other episodes than the reported ones, and write no results."""
    quick: bool = False
    out: Path = Path("runs/flow_proposals")


def main(args: Args) -> None:
    if args.quick:
        args = replace(
            args, episodes=2, paths=500, proposal_updates=20, flow_updates=20, out=args.out / "quick"
        )
        shutil.rmtree(args.out, ignore_errors=True)
    found = {task: [run_seed(args, task, seed) for seed in args.seeds] for task in args.tasks}
    planners = {
        task: {name: summary([run[name] for run in runs]) for name in runs[0]} for task, runs in found.items()
    }
    results: dict[str, Any] = {
        "speedup_at_equal_success": {
            task: {name: speedup(rows, name) for name in PROPOSALS} for task, rows in planners.items()
        },
        "planners": planners,
        "seeds": args.seeds,
        "threads": torch.get_num_threads(),
        "settings": settings_of(args),
    }
    print(json.dumps(results, indent=1))
    if not args.tune:
        print(write_results("flow_proposals", results, quick=args.quick))


PROPOSALS = ("flow_proposals", "flow_proposals_refined")


def speedup(planners: dict[str, Any], name: str) -> float:
    """Time of a decision of the cross-entropy method over that of ``name``; 0 where fewer goals were reached."""
    cem, other = planners["cem"], planners[name]
    return cem["plan_ms"] / other["plan_ms"] if other["success_rate"] >= cem["success_rate"] else 0.0


def settings_of(args: Args) -> dict[str, Any]:
    return {k: v for k, v in asdict(args).items() if k not in ("out", "quick", "tasks", "seeds", "tune")}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    reached = [success for run in runs for success in run["success"]]
    return {
        "success_rate": float(np.mean(reached)),
        "success_ci95": wilson_interval(sum(reached), len(reached)),
        "plan_ms": float(np.mean([run["plan_ms"] for run in runs])),
    }


def run_seed(args: Args, task: str, seed: int) -> dict[str, dict[str, Any]]:
    out = args.out / task / f"seed_{seed}"
    out.mkdir(parents=True, exist_ok=True)
    file = out / ("tuned.json" if args.tune else "found.json")
    known = json.loads(file.read_text()) if file.exists() else {"settings": settings_of(args), "planners": {}}
    if known["settings"] != settings_of(args):
        raise SystemExit(f"{out} holds a run with {known['settings']}; delete it, or pass another --out")
    found: dict[str, dict[str, Any]] = known["planners"]
    torch.manual_seed(seed)
    trained = TASKS[task](args, out, seed)
    proposals = learn_proposals(args, trained, out, seed)
    h = trained.horizon
    short = CEM(h, samples=64, elites=8, iterations=1, init_std=0.3)
    planners: dict[str, tuple[WorldModel, Planner]] = {
        "cem": (trained.model, goal_planning.search(h)),
        "flow_proposals": (trained.model, FlowPlanner(proposals)),
        "flow_proposals_refined": (trained.model, FlowPlanner(proposals, refine=short)),
        **trained.others,
    }
    for name, (world, planner) in planners.items():
        if name in found:
            continue
        seconds: list[float] = []
        reached = trained.play(partial(Timed, trained.agent(world, planner), seconds))
        found[name] = {"success": reached, "plan_ms": 1e3 * float(np.median(seconds))}
        print(task, seed, name, np.mean(reached), f"{found[name]['plan_ms']:.1f} ms", flush=True)
        write_atomic(file, json.dumps(known).encode())
    return found


def learn_proposals(args: Args, trained: Trained, out: Path, seed: int) -> FlowProposals:
    file = out / "proposals.safetensors"
    if file.exists():
        return FlowProposals.load(file)
    began = time.perf_counter()
    proposals = fit_flow_proposals(
        trained.agent(trained.model, goal_planning.search(trained.horizon)).dynamics,
        trained.starts,
        horizon=trained.horizon,
        as_goal=trained.as_goal,
        paths=args.paths,
        updates=args.proposal_updates,
        seed=seed,
    )
    print(f"proposals learnt in {time.perf_counter() - began:.0f} s", flush=True)
    proposals.save(file)
    return proposals


class Timed(goal_planning.Driver):
    """An agent through one episode; notes the seconds of every decision that planned (the others follow a plan)."""

    def __init__(self, agent: MPCAgent, seconds: list[float]) -> None:
        super().__init__(agent)
        self.seconds = seconds

    def __call__(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        before, began = self.agent.last_plan, time.perf_counter()
        action = super().__call__(observation)
        if self.agent.last_plan is not before:
            self.seconds.append(time.perf_counter() - began)
        return action


# -- the tasks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A task and what was learnt of it.

    Attributes:
        model: the world model that is planned in.
        horizon: of all planners, in latent steps.
        starts: latents of states seen.
        as_goal: see ``fit_flow_proposals``.
        agent: from a world model and a planner.
        play: the evaluation's episodes, each with a fresh ``Timed``; whether each goal was reached.
        others: planners beside those that every task has.
    """

    model: WorldModel
    horizon: int
    starts: Tensor
    as_goal: Callable[[Tensor], Tensor] | None
    agent: Callable[[WorldModel, Planner], MPCAgent]
    play: Callable[[Callable[[], Timed]], list[bool]]
    others: dict[str, tuple[WorldModel, Planner]]


def two_rooms(args: Args, out: Path, seed: int) -> Trained:
    settings = quickstart.Args(episodes=args.episodes, seed=seed, out=out, quick=args.quick)
    settings = replace(settings, **quickstart.QUICK) if args.quick else settings
    train, held_out = quickstart.random_play(settings).split(0.1, seed=seed)
    model = quickstart.train_world_model(settings, train, held_out)
    latents = LatentEpisodes.encode(model, train)
    flow = model.with_dynamics("flow", width=96)
    config = TrainConfig(args.flow_updates, 512, learning_rate=3e-3, weight_decay=1e-4, seed=seed)
    torch.manual_seed(seed)
    refine_dynamics(flow, latents, out / "flow", steps=2, config=config)

    def agent(world: WorldModel, planner: Planner) -> MPCAgent:
        made = quickstart.planning_agent(settings, world)
        made.planner = planner
        return made

    def play(make: Callable[[], Timed]) -> list[bool]:
        def policy(env: Any, episode: int) -> quickstart.Act:
            act = make()
            return lambda observation, start: act(observation)

        if args.tune:
            quickstart.FIRST_LAYOUT = 2_000_000
        return [outcome.success for outcome in quickstart.play(settings, policy)]

    tree = TreeSearch(settings.horizon)
    others: dict[str, tuple[WorldModel, Planner]] = {
        "tree": (model, tree), "tree_on_flow_dynamics": (flow, tree),
    }  # fmt: skip
    return Trained(model, settings.horizon, latents.latents, None, agent, play, others)


def reacher(args: Args, out: Path, seed: int) -> Trained:
    settings = goal_planning.Args(tune=args.tune)
    if args.quick:
        settings = replace(settings, quick=True, **goal_planning.QUICK)
    settings = replace(settings, episodes=args.episodes)
    train, held_out = goal_planning.play_script(settings, out / "episodes", seed).split(0.1, seed=seed)
    model, at_rest = goal_planning.train_model(settings, train, held_out, out, seed)

    def agent(world: WorldModel, planner: Planner) -> MPCAgent:
        return goal_planning.planning_agent(settings, world, at_rest, planner, seed)

    def play(make: Callable[[], Timed]) -> list[bool]:
        env = goal_planning.make_env(settings)
        reached = goal_planning.play(settings, env, make)
        env.close()
        return reached

    starts = LatentEpisodes.encode(model, train).latents
    return Trained(model, settings.horizon, starts, at_rest, agent, play, {})


TASKS: dict[str, Callable[[Args, Path, int], Trained]] = {"two_rooms": two_rooms, "reacher": reacher}


if __name__ == "__main__":
    main(tyro.cli(Args))
