"""A policy for collecting data where a world model knows little."""

from __future__ import annotations

from jepa_rl.agents.mpc import MPCAgent
from jepa_rl.agents.planners import CEM, CategoricalCEM, SamplingPlanner
from jepa_rl.costs import Disagreement
from jepa_rl.dynamics import EnsembleDynamics
from jepa_rl.world_model import WorldModel


def curious_agent(
    world: WorldModel, horizon: int = 8, samples: int = 64, iterations: int = 3, seed: int = 0
) -> MPCAgent:
    """Plans towards disagreement of an ensemble, without reward or goal; for ``collect(env, store, policy=...)``.

    Each future follows one member, see ``Disagreement``. The plan is made anew every second latent step.

    Args:
        world: its dynamics are an ensemble (``WorldModelConfig(dynamics="ensemble")``).
        horizon: latent steps ahead.
        samples, iterations: of the cross-entropy method.
        seed: of the searches.

    Raises:
        ValueError: if the dynamics are no ensemble of two or more.
    """
    members = len(world.dynamics.members) if isinstance(world.dynamics, EnsembleDynamics) else 1
    if members < 2:
        raise ValueError(
            f"curiosity needs the dynamics 'ensemble' with two members or more, got {world.config.dynamics!r} with "
            f"{members}; train WorldModel(WorldModelConfig(..., dynamics='ensemble'))"
        )
    search = CategoricalCEM if world.spec.action.kind == "discrete" else CEM
    planner: SamplingPlanner = search(horizon, samples=samples, iterations=iterations, futures=members)
    every = min(2, horizon) * world.spec.block
    return MPCAgent(world, planner, cost=lambda _: Disagreement(), replan_every=every, seed=seed)
