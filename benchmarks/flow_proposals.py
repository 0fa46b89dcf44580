"""Plans out of a flow against the cross-entropy method: success and time to plan, on Two Rooms.

    python benchmarks/flow_proposals.py            about 45 minutes on one core for each seed
    python benchmarks/flow_proposals.py --quick

One world model is trained as examples/quickstart.py does. On its latents a flow to the goal learns from imagined play,
and a flow over the outcomes of actions takes the place of the point dynamics: in a deterministic world it should lose
nothing. All planners play the same unseen layouts. A stopped run goes on where it was.
"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from _record import write_results

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import quickstart
from quickstart import Outcome, play

from jepa_rl import TrainConfig, WorldModel
from jepa_rl.agents import CEM, FlowPlanner, FlowProposals, MPCAgent, TreeSearch, fit_flow_proposals
from jepa_rl.data.latents import LatentEpisodes
from jepa_rl.diagnostics import wilson_interval
from jepa_rl.files import write_atomic
from jepa_rl.refine import refine_dynamics
from jepa_rl.types import Planner


@dataclass(frozen=True)
class Args:
    seeds: tuple[int, ...] = (0,)
    """Of training; the evaluation's layouts are the same for all and unseen by all."""
    episodes: int = 100
    paths: int = 60_000
    """Imagined, that the proposals learn from."""
    proposal_updates: int = 5000
    flow_updates: int = 5000
    tune: bool = False
    """Play other layouts than the reported ones, and write no results."""
    quick: bool = False
    out: Path = Path("runs/flow_proposals")


def main(args: Args) -> None:
    if args.quick:
        args = replace(
            args, episodes=2, paths=500, proposal_updates=20, flow_updates=20, out=args.out / "quick"
        )
        shutil.rmtree(args.out, ignore_errors=True)
    runs = [run_seed(args, seed) for seed in args.seeds]
    planners = {name: summary([run[name] for run in runs]) for name in runs[0]}
    cem = planners["cem"]
    flow = planners[HEADLINE]
    speedup = cem["plan_ms"] / flow["plan_ms"]
    results: dict[str, Any] = {
        # 0 where the success is not equal
        "speedup_at_equal_success": {
            "two_rooms": speedup if flow["success_rate"] >= cem["success_rate"] else 0.0
        },
        "headline": HEADLINE,
        "planners": planners,
        "seeds": args.seeds,
        "threads": torch.get_num_threads(),
        "settings": {k: v for k, v in asdict(args).items() if k not in ("out", "quick", "seeds", "tune")},
    }
    print(json.dumps(results, indent=1))
    if not args.tune:
        print(write_results("flow_proposals", results, quick=args.quick))


HEADLINE = "flow_proposals_refined"  # named before anything was measured


def settings_of(args: Args) -> dict[str, Any]:
    return {k: v for k, v in asdict(args).items() if k not in ("out", "quick", "seeds", "tune")}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    reached = [success for run in runs for success in run["success"]]
    return {
        "success_rate": float(np.mean(reached)),
        "success_ci95": wilson_interval(sum(reached), len(reached)),
        "median_steps": float(np.median([steps for run in runs for steps in run["steps"]])),
        "plan_ms": float(np.mean([run["plan_ms"] for run in runs])),
    }


def run_seed(args: Args, seed: int) -> dict[str, dict[str, Any]]:
    settings = quickstart.Args(
        episodes=args.episodes, seed=seed, out=args.out / f"two_rooms/seed_{seed}", quick=args.quick
    )
    if args.quick:
        settings = replace(settings, **quickstart.QUICK)
    settings.out.mkdir(parents=True, exist_ok=True)
    file = settings.out / ("tuned.json" if args.tune else "found.json")
    known = json.loads(file.read_text()) if file.exists() else {"settings": settings_of(args), "planners": {}}
    if known["settings"] != settings_of(args):
        raise SystemExit(
            f"{settings.out} holds a run with {known['settings']}; delete it, or pass another --out"
        )
    found: dict[str, dict[str, Any]] = known["planners"]
    torch.manual_seed(seed)
    store = quickstart.random_play(settings)
    train, held_out = store.split(0.1, seed=seed)
    model = quickstart.train_world_model(settings, train, held_out)
    latents = LatentEpisodes.encode(model, train)
    flow = model.with_dynamics("flow", width=96)
    config = TrainConfig(args.flow_updates, 512, learning_rate=3e-3, weight_decay=1e-4, seed=seed)
    torch.manual_seed(seed)
    refine_dynamics(flow, latents, settings.out / "flow", steps=2, config=config)
    proposals = learn_proposals(args, settings, model, latents.latents, seed)
    h = settings.horizon
    cem = CEM(h, samples=256, elites=26, iterations=6, init_std=1.0)
    short = CEM(h, samples=64, elites=8, iterations=1, init_std=0.3)
    planners: dict[str, tuple[WorldModel, Planner]] = {
        "cem": (model, cem),
        "flow_proposals": (model, FlowPlanner(proposals)),
        "flow_proposals_refined": (model, FlowPlanner(proposals, refine=short)),
        "tree": (model, TreeSearch(h)),
        "tree_on_flow_dynamics": (flow, TreeSearch(h)),
    }
    for name, (world, planner) in planners.items():
        if name in found:
            continue
        agent = quickstart.planning_agent(settings, world)
        agent.planner = planner
        outcomes, per_plan = played(args, settings, agent)
        found[name] = {
            "success": [outcome.success for outcome in outcomes],
            "steps": [outcome.steps for outcome in outcomes],
            "plan_ms": per_plan,
        }
        print(seed, name, np.mean(found[name]["success"]), f"{per_plan:.1f} ms", flush=True)
        write_atomic(file, json.dumps(known).encode())
    return found


def learn_proposals(
    args: Args, settings: quickstart.Args, model: WorldModel, starts: torch.Tensor, seed: int
) -> FlowProposals:
    file = settings.out / "proposals.safetensors"
    if file.exists():
        return FlowProposals.load(file)
    dynamics = quickstart.planning_agent(settings, model).dynamics
    began = time.perf_counter()
    proposals = fit_flow_proposals(
        dynamics,
        starts,
        horizon=settings.horizon,
        paths=args.paths,
        updates=args.proposal_updates,
        seed=seed,
    )
    print(f"proposals learnt in {time.perf_counter() - began:.0f} s", flush=True)
    proposals.save(file)
    return proposals


def played(args: Args, settings: quickstart.Args, agent: MPCAgent) -> tuple[list[Outcome], float]:
    """The episodes, and the median milliseconds of a decision that plans."""
    seconds: list[float] = []

    def make_policy(env: Any, episode: int) -> quickstart.Act:
        state = None

        def act(observation: dict[str, np.ndarray], start: bool) -> np.ndarray:
            nonlocal state
            before, began = agent.last_plan, time.perf_counter()
            action, state = agent.predict(observation, state, np.array([start]))
            if agent.last_plan is not before:
                seconds.append(time.perf_counter() - began)
            return action

        return act

    if args.tune:
        quickstart.FIRST_LAYOUT = 2_000_000
    return play(settings, make_policy), 1e3 * float(np.median(seconds))


if __name__ == "__main__":
    main(tyro.cli(Args))
