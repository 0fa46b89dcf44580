"""Plans out of a flow against the cross-entropy method: success and time to plan, on Two Rooms and reacher.

    python benchmarks/flow_proposals.py                      an hour and a half on one core for each seed; needs OpenGL
    python benchmarks/flow_proposals.py --tasks two_rooms    an hour of them, without OpenGL
    python benchmarks/flow_proposals.py --quick

World models are trained as examples/quickstart.py and benchmarks/goal_planning.py do. On their latents a flow to the
goal learns from imagined play. Every planner searches with two costs: the distance to the goal summed over the states
of a plan, and that of its last state alone; which of them serves differs between planners. On Two Rooms also a flow
over the outcomes of actions takes the place of the point dynamics: in a deterministic world it should lose nothing.
All planners and seeds play the same unseen episodes. A stopped run goes on where it was; a finished one is a file of
``benchmarks/results/flow_proposals`` and is not run again.
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
from _intervals import summarise
from _record import ROOT, Records, made_by, note_process, refuse_unrecordable, trying, write_results
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import quickstart

from jepa_rl import TrainConfig, WorldModel
from jepa_rl.agents import CEM, FlowPlanner, FlowProposals, MPCAgent, TreeSearch, fit_flow_proposals
from jepa_rl.costs import GoalCost
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.files import write_atomic
from jepa_rl.training.refine import refine_dynamics
from jepa_rl.types import Planner

Reduce = Literal["sum", "last"]
COSTS: tuple[Reduce, ...] = ("sum", "last")  # distance to the goal, over the states of a plan
PROPOSALS = ("flow_proposals", "flow_proposals_refined")


@dataclass(frozen=True)
class Args:
    tasks: tuple[Literal["two_rooms", "reacher"], ...] = ("two_rooms", "reacher")
    seeds: tuple[int, ...] = (3, 4, 5)
    """Of training; settings were chosen on 0 to 2. The evaluation's episodes are the same for all, unseen by all."""
    episodes: int = 100
    paths: int = 60_000
    """Imagined, that the proposals learn from."""
    proposal_updates: int = 5000
    flow_updates: int = 5000
    tune: bool = False
    """Play other episodes than the reported ones, and write no results."""
    quick: bool = False
    out: Path = Path("runs/flow_proposals")


QUICK = dict(seeds=(3,), episodes=2, paths=500, proposal_updates=20, flow_updates=20)


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, **QUICK, out=args.out / "quick")
        shutil.rmtree(args.out, ignore_errors=True)
    found = {}
    for task in args.tasks:
        kept = records(args, task)
        if kept.counted:
            refuse_unrecordable()
        for seed in args.seeds:
            if kept.read(seed) is None:
                processes = note_process(args.out / task / f"seed_{seed}")
                kept.write(seed, {"planners": run_seed(args, task, seed)}, processes)
    for task in TASKS:  # those of earlier calls, too
        if runs := records(args, task).all():
            found[task] = collected(runs)
    print(json.dumps(found, indent=1))
    if not args.tune:
        quick = not kept.counted and not trying()
        print(write_results("flow_proposals", {"tasks": found}, quick=quick, collected=True))


def records(args: Args, task: str) -> Records:
    settings = settings_of(args)
    counted = settings == settings_of(Args()) and not (args.tune or args.quick or trying())
    folder = ROOT / "benchmarks/results/flow_proposals" if counted else args.out / "records"
    return Records(folder / task, settings, counted)


def settings_of(args: Args) -> dict[str, Any]:
    return {k: v for k, v in asdict(args).items() if k not in ("out", "quick", "tasks", "seeds")}


def collected(runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Figures of one task: planner -> cost -> success over seeds and milliseconds of a decision that plans."""
    found = list(runs.values())
    planners = {
        name: {
            cost: {
                "success": summarise([run["planners"][name][cost]["success"] for run in found], (0.0, 1.0)),
                "plan_ms": [run["planners"][name][cost]["plan_ms"] for run in found],
            }
            for cost in COSTS
        }
        for name in found[0]["planners"]
    }
    return {
        "planners": planners,
        "speedup_at_equal_success": {
            name: {cost: speedup(planners, name, cost) for cost in COSTS} for name in PROPOSALS
        },
        "seeds": list(runs),
        "settings": found[0]["settings"],
        **made_by(found),
    }


def speedup(planners: dict[str, Any], name: str, cost: Reduce) -> list[float] | None:
    """Time of a decision of the cross-entropy method over that of ``name`` with ``cost``, for each seed.

    The cross-entropy method has the cost with which it reaches more goals; None where ``name`` reaches fewer than that.
    A seed was run on one machine, so that no ratio mixes two.
    """
    cem = max(planners["cem"].values(), key=lambda row: row["success"]["mean"])
    other = planners[name][cost]
    if other["success"]["mean"] < cem["success"]["mean"]:
        return None
    return [slow / fast for slow, fast in zip(cem["plan_ms"], other["plan_ms"], strict=True)]


def run_seed(args: Args, task: str, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Planner -> cost -> success of every episode and milliseconds, saved after each."""
    out = args.out / task / f"seed_{seed}"
    file = out / ("tuned.json" if args.tune else "found.json")
    known = json.loads(file.read_text()) if file.exists() else {"settings": settings_of(args), "planners": {}}
    if known["settings"] != settings_of(args):
        raise SystemExit(f"{out} holds a run with {known['settings']}; delete it, or pass another --out")
    found: dict[str, dict[str, dict[str, Any]]] = known["planners"]
    torch.manual_seed(seed)
    trained = TASKS[task](args, out, seed)
    proposals = learn_proposals(args, trained, out, seed)
    h = trained.horizon
    short = CEM(h, samples=64, elites=8, iterations=1, init_std=0.3)
    planners: dict[str, tuple[WorldModel, Planner]] = {
        "cem": (trained.model, goal_planning.search(h)),
        "flow_proposals": (trained.model, FlowPlanner(proposals)),
        "flow_proposals_refined": (trained.model, FlowPlanner(proposals, refine=short)),
        "tree": (trained.model, TreeSearch(h)),
        **trained.others,
    }
    for name, (world, planner) in planners.items():
        for cost in COSTS:
            if cost in found.get(name, {}):
                continue
            seconds: list[float] = []
            reached = trained.play(partial(Timed, trained.agent(world, planner, cost), seconds))
            row = {"success": [int(r) for r in reached], "plan_ms": 1e3 * float(np.median(seconds))}
            found.setdefault(name, {})[cost] = row
            print(task, seed, name, cost, np.mean(reached), f"{row['plan_ms']:.1f} ms", flush=True)
            write_atomic(file, json.dumps(known).encode())
    return found


def learn_proposals(args: Args, trained: Trained, out: Path, seed: int) -> FlowProposals:
    file = out / "proposals.safetensors"
    if file.exists():
        return FlowProposals.load(file)
    began = time.perf_counter()
    proposals = fit_flow_proposals(
        trained.agent(trained.model, goal_planning.search(trained.horizon), "sum").dynamics,
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
        agent: from a world model, a planner and a cost.
        play: the evaluation's episodes, each with a fresh ``Timed``; whether each goal was reached.
        others: planners beside those that every task has.
    """

    model: WorldModel
    horizon: int
    starts: Tensor
    as_goal: Callable[[Tensor], Tensor] | None
    agent: Callable[[WorldModel, Planner, Reduce], MPCAgent]
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

    def agent(world: WorldModel, planner: Planner, reduce: Reduce) -> MPCAgent:
        return MPCAgent(world, planner, cost=partial(GoalCost, reduce=reduce), hold=True, seed=seed)

    def play(make: Callable[[], Timed]) -> list[bool]:
        def policy(env: Any, episode: int) -> quickstart.Act:
            act = make()
            return lambda observation, start: act(observation)

        if args.tune:
            quickstart.FIRST_LAYOUT = 2_000_000
        return [outcome.success for outcome in quickstart.play(settings, policy)]

    others: dict[str, tuple[WorldModel, Planner]] = {
        "tree_on_flow_dynamics": (flow, TreeSearch(settings.horizon))
    }
    return Trained(model, settings.horizon, latents.latents, None, agent, play, others)


def reacher(args: Args, out: Path, seed: int) -> Trained:
    settings = goal_planning.Args(tune=args.tune)
    if args.quick:
        settings = replace(settings, quick=True, **goal_planning.QUICK)
    settings = replace(settings, episodes=args.episodes)
    train, held_out = goal_planning.play_script(settings, out / "episodes", seed).split(0.1, seed=seed)
    model, at_rest = goal_planning.train_model(settings, train, held_out, out, seed)

    def agent(world: WorldModel, planner: Planner, reduce: Reduce) -> MPCAgent:
        return goal_planning.planning_agent(settings, world, at_rest, planner, seed, reduce)

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
