"""How often random play, and planning with the true simulator, reach the goals of Push and Roofed Rooms.

    python benchmarks/world_floors.py            200 episodes of each, about fifteen minutes on one core
    python benchmarks/world_floors.py --quick

The floor and the ceiling between which the success of a learned model lies; what the data policy of Push covers; and
how fast the worlds and the distractors are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import tyro
from _record import refuse_unrecordable, trying, write_results
from torch import Tensor

from jepa_rl.agents import CEM, TreeSearch
from jepa_rl.costs import GoalCost
from jepa_rl.dynamics import HeldActions
from jepa_rl.envs import (
    PushPlay,
    PushVectorEnv,
    RoofedRoomsVectorEnv,
    VectorDistract,
    collect,
    push_coverage,
)
from jepa_rl.envs.worlds.push_rules import PushDynamics, push_distance
from jepa_rl.envs.worlds.two_rooms_rules import TwoRoomsDynamics
from jepa_rl.types import Cost, Dynamics, Planner


@dataclass(frozen=True)
class Args:
    episodes: int = 200
    first_seed: int = 3_000_000
    """Of the first episode; the others' follow."""
    data_episodes: int = 400
    """Of Push, for its coverage."""
    quick: bool = False


@dataclass(frozen=True)
class Oracle:
    """Planning with the true simulator.

    Attributes:
        dynamics: the simulator; its latents are true states.
        planner: what searches.
        states: of the world's own state to true states "b d" now and of the goal.
        cost: of the goals "b d".
        steps: (plan "b a" of one latent step) to the actions "b k 2" of its environment steps.
    """

    dynamics: Dynamics
    planner: Planner
    states: Callable[[Any], tuple[np.ndarray, np.ndarray]]
    cost: Callable[[Tensor], Cost]
    steps: Callable[[np.ndarray], np.ndarray]


# The planners that the documentation recommends for each: sampling, and a tree where the way leads round a wall.
ORACLES = {
    "push": Oracle(
        PushDynamics(2),
        CEM(horizon=8, samples=96, elites=12, iterations=5),
        lambda state: (state.now, state.goal),
        lambda goals: GoalCost(goals, distance=push_distance),
        lambda actions: actions.reshape(len(actions), 2, 2),
    ),
    "roofed_rooms": Oracle(
        HeldActions(TwoRoomsDynamics(5), 5),
        TreeSearch(12),
        lambda state: tuple(
            np.concatenate([xy, state.layout], axis=1) for xy in (state.position, state.goal)
        ),
        lambda goals: GoalCost(goals, reduce="last"),
        lambda actions: np.repeat(actions[:, None], 5, axis=1),
    ),
}
WORLDS = {"push": (PushVectorEnv, 60), "roofed_rooms": (RoofedRoomsVectorEnv, 200)}


def main(args: Args) -> None:
    if args.quick:
        args = Args(episodes=3, data_episodes=8, quick=True)
    elif not trying():
        refuse_unrecordable()
    success = {name: {"random": random_play(name, args), "oracle": planned(name, args)} for name in WORLDS}
    results = {"success": success, "coverage": coverage(args), "per_second": speeds(), "args": asdict(args)}
    for name, value in results.items():
        print(f"{name:<12}{value}")
    print(write_results("world_floors", results, quick=args.quick))


def begun(name: str, args: Args) -> Any:
    """All episodes side by side, just begun: the vector environment."""
    make, _ = WORLDS[name]
    env = make(args.episodes, None)
    env.reset(seed=args.first_seed)
    return env


def random_play(name: str, args: Args) -> float:
    """Share of the episodes in which random actions reach the goal in time."""
    env, rng = begun(name, args), np.random.default_rng(0)
    solved = np.zeros(args.episodes, bool)
    for _ in range(WORLDS[name][1]):
        solved |= env.core.advance(env.state, rng.uniform(-1.0, 1.0, (args.episodes, 2)))[1]
    return float(solved.mean())


@torch.no_grad()
def planned(name: str, args: Args) -> float:
    """The same for plans with the true simulator, one latent step of each carried out."""
    env, oracle, generator = begun(name, args), ORACLES[name], torch.Generator().manual_seed(0)
    solved, steps = np.zeros(args.episodes, bool), 0
    while steps < WORLDS[name][1] and not solved.all():
        left = np.flatnonzero(~solved)
        now, goal = (torch.from_numpy(states[left]).float() for states in oracle.states(env.state))
        plan = oracle.planner.plan(oracle.dynamics, oracle.cost(goal), now, generator=generator)
        chosen = oracle.steps(plan.actions[:, 0].double().numpy())
        actions = np.zeros((args.episodes, *chosen.shape[1:]))
        actions[left] = chosen
        for action in actions.swapaxes(0, 1):
            solved |= env.core.advance(env.state, action)[1]
            steps += 1
    return float(solved.mean())


def coverage(args: Args) -> dict[str, dict[str, float]]:
    """What episodes of Push show, by policy."""
    found = {}
    for name in ("push_play", "random"):
        env = PushVectorEnv(16)
        with tempfile.TemporaryDirectory() as folder:
            store = collect(
                env, folder, policy=PushPlay(env) if name == "push_play" else "random",
                episodes=args.data_episodes, extras=("state", "pushed"), seed=0, progress=False,
            )  # fmt: skip
            found[name] = asdict(push_coverage(store))
    return found


def speeds(num_envs: int = 64, steps: int = 40) -> dict[str, float]:
    """Environment steps with pictures per second, in one process; the best of three."""
    made = {
        "push": lambda: PushVectorEnv(num_envs),
        "push_distract": lambda: VectorDistract(PushVectorEnv(num_envs)),
        "push_distract_recolour": lambda: VectorDistract(PushVectorEnv(num_envs), recolour="all"),
        "roofed_rooms": lambda: RoofedRoomsVectorEnv(num_envs),
        "roofed_rooms_distract": lambda: VectorDistract(RoofedRoomsVectorEnv(num_envs)),
    }
    found = {}
    for name, make in made.items():
        env, best = make(), np.inf
        env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(3):
            began = time.perf_counter()
            for _ in range(steps):
                env.step(env.action_space.sample())
            best = min(best, time.perf_counter() - began)
        found[name] = num_envs * steps / best
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
