"""Plans over each kind of dynamics on TableEdge, and their returns: for ``branching.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from branching_futures import EVALUATION_SEED, planner, priced_by

from jepa_rl import WorldModel
from jepa_rl.agents import CEM, MPCAgent
from jepa_rl.diagnostics import Probe
from jepa_rl.envs.worlds import table_edge_rules as rules
from jepa_rl.envs.worlds.mujoco_table_edge import MujocoTableEdgeEnv
from jepa_rl.envs.worlds.table_edge import TableEdgeEnv
from jepa_rl.risk import CVaR, Risk, expected_cost

ENVIRONMENTS: dict[str, Callable[..., gym.Env]] = {"table_edge": TableEdgeEnv, "mujoco": MujocoTableEdgeEnv}
PLANNING_EVALUATIONS = 1
EPISODE = 40
FOLLOWED = 6  # steps of a plan, for the planners that do not look after every step
KEEP = 0.25  # share of the futures that survive a look
BUDGET: Callable[[int, Risk], CEM] = planner
Played = tuple[list[float], float]


def planning_flow(flow: WorldModel) -> WorldModel:
    flow.dynamics.set_sampling(evaluations=PLANNING_EVALUATIONS)
    return flow


def players(
    world_name: str,
    models: dict[str, WorldModel],
    probe: Probe,
    seed: int,
    futures: int,
    alpha: float,
    episodes: int,
    steps: int = EPISODE,
) -> dict[str, Callable[[], Played]]:
    """Every planner on the same episodes, which all training seeds share.

    Beside those that plan anew after every step, two follow a plan of the flow for ``FOLLOWED`` steps: blindly, and
    looking after every step (``MPCAgent(keep=...)``).
    """
    careful, flow = CVaR(alpha), planning_flow(models["flow"])
    setups: dict[str, tuple[WorldModel, int, Risk, dict[str, Any]]] = {
        "point": (models["point"], 1, expected_cost, {}),
        "ensemble": (models["ensemble"], 5, expected_cost, {}),
        "ensemble_cvar": (models["ensemble"], 5, careful, {}),
        "mixture": (models["mixture"], futures, expected_cost, {}),
        "mixture_cvar": (models["mixture"], futures, careful, {}),
        "flow": (flow, futures, expected_cost, {}),
        "flow_cvar": (flow, futures, careful, {}),
        "flow_followed": (flow, futures, expected_cost, {"replan_every": FOLLOWED}),
        "flow_followed_keep": (flow, futures, expected_cost, {"replan_every": FOLLOWED, "keep": KEEP}),
    }
    make = lambda: gym.wrappers.TimeLimit(ENVIRONMENTS[world_name](), steps)  # noqa: E731
    rng = np.random.default_rng(seed)
    acts: dict[str, Callable[..., np.ndarray]] = {"random": lambda *_: rng.uniform(-1, 1, (episodes, 2))}
    if world_name == "table_edge":
        for name, risk in (("true_dynamics", expected_cost), ("true_dynamics_cvar", careful)):
            acts[name] = TrueDynamics(BUDGET(futures, risk), seed)
    for name, (model, count, risk, options) in setups.items():
        acts[name] = Follow(MPCAgent(model, BUDGET(count, risk), cost=priced_by(probe), seed=seed, **options))
    return {name: partial(play, make, episodes, EVALUATION_SEED, act) for name, act in acts.items()}


def play(
    make: Callable[[], gym.Env], episodes: int, first_seed: int, act: Callable[..., np.ndarray]
) -> Played:
    """Returns of the episodes, side by side, and the share of them that fell."""
    venv = gym.vector.SyncVectorEnv([make] * episodes)
    seen, info = venv.reset(seed=[first_seed + i for i in range(episodes)])
    returns, over = np.zeros(episodes), False
    while not over:
        seen, reward, terminated, truncated, info = venv.step(act(seen, info).astype(np.float32))
        returns, over = returns + reward, bool((terminated | truncated).all())
    venv.close()
    return returns.tolist(), float(info["fallen"].mean())


class Follow:
    """An agent with its state."""

    def __init__(self, agent: MPCAgent) -> None:
        self.agent, self.state = agent, None

    def __call__(self, seen: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        action, self.state = self.agent.predict(seen, self.state)
        return action


class TrueDynamics:
    """The same search in the true world, with the true reward. It is no upper bound: a search may miss what is best."""

    def __init__(self, planner: CEM, seed: int) -> None:
        self.planner, self.warm = planner, None
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, seen: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        goal = info["goal_position"].astype(np.float64)
        z = torch.from_numpy(np.concatenate([info["position"], info["fallen"][:, None]], axis=1)).float()

        def cost(latents: Tensor, actions: Tensor) -> Tensor:
            path = latents[:, :, 1:].double().numpy()
            goals = np.repeat(goal, len(path) // len(goal), axis=0)[:, None, None]
            return -torch.from_numpy(rules.reward(path[..., :2], path[..., 2] > 0.5, goals)).sum(-1).float()

        plan = self.planner.plan(rules.TableEdgeDynamics(), cost, z, self.warm, self.generator)
        self.warm = torch.cat([plan.actions[:, 1:], plan.actions[:, -1:]], dim=1)
        return plan.actions[:, 0].numpy()
