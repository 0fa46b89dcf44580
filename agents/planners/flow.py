"""Plans out of a flow: draw latent paths from here to the goal, read off the actions, let the world model choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.agents.planners.base import (
    BasePlanner,
    check_common,
    check_elites,
    comparable,
    make_problem,
    pick,
    take,
)
from jepa_rl.checks import check_each, positive
from jepa_rl.costs import goal_of
from jepa_rl.dynamics.flow.proposals import FlowProposals
from jepa_rl.risk import Risk, expected_cost
from jepa_rl.types import ActionKind, Cost, Dynamics, Plan, Planner, WorldSpec


@dataclass(frozen=True, eq=False)
class FlowPlanner(BasePlanner):
    """Draws proposals, rolls their actions through the world model once, and takes the best.

    The least ``E_total = E_world + goal_weight * E_goal`` wins: E_world is the squared distance between the path that
    was drawn and the ones that the world model expects of its actions, standardised, mean over futures, steps and
    dimensions; E_goal is the cost. With ``refine``, the best proposals enter a short search that starts from the best
    of them.

    Attributes:
        proposals: see ``fit_flow_proposals``.
        samples: proposals drawn, rounded up to a multiple of the horizon.
        goal_weight: of the cost beside the distance between drawn and expected path.
        refine: a planner with a few iterations and the same horizon, futures and risk, such as
            ``CEM(h, samples=64, iterations=1)``.
        elites: proposals that ``refine`` is given.
        futures, risk: as for ``CEM``.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    actions: ClassVar[ActionKind] = "continuous"

    proposals: FlowProposals
    samples: int = 48
    goal_weight: float = 1.0
    refine: Planner | None = None
    elites: int = 8
    futures: int = 1
    risk: Risk = expected_cost

    def __post_init__(self) -> None:
        check_common(self, "samples", "elites")
        check_elites(self.elites, self.samples)
        check_each(positive, "be positive and finite", goal_weight=self.goal_weight)
        if self.refine is None:
            return
        for name in ("horizon", "futures", "risk"):
            theirs = getattr(self.refine, name)
            if theirs != getattr(self, name):
                raise ValueError(f"refine must have the same {name}, {getattr(self, name)}, got {theirs}")

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """Latent steps of a plan."""
        return self.proposals.horizon

    def check(self, spec: WorldSpec, dynamics: Dynamics) -> None:
        """See ``BasePlanner.check``. Raises ValueError too if the proposals were fitted to other widths."""
        super().check(spec, dynamics)
        self._check_widths(dynamics)

    def _check_widths(self, dynamics: Dynamics) -> None:
        sizes = (self.proposals.latent_dim, self.proposals.action_dim)
        if sizes != (dynamics.latent_dim, dynamics.action_dim):
            raise ValueError(
                f"the proposals were fitted to latents and actions of widths {sizes}, the dynamics have "
                f"{(dynamics.latent_dim, dynamics.action_dim)}; call fit_flow_proposals with the dynamics that the "
                "agent plans in (agent.dynamics)"
            )

    @torch.no_grad()
    def plan(
        self,
        dynamics: Dynamics,
        cost: Cost,
        z: Float[Tensor, "b d"],
        warm_start: Float[Tensor, "b h a"] | None = None,
        generator: torch.Generator | None = None,
        proposals: Float[Tensor, "b p h a"] | None = None,
    ) -> Plan:
        """See ``jepa_rl.types.Planner``; the warm start and ``proposals`` compete as plans without a path mismatch.

        Raises:
            ValueError: for arguments of the wrong shape or not finite, a cost without a goal or with another number of
                them, or dynamics of other widths than the proposals were fitted to.
        """
        goal = goal_of(cost)
        if goal is None:
            raise ValueError(
                "a flow to the goal needs a cost with a goal, such as GoalCost; for others use CEM"
            )
        self._check_widths(dynamics)
        problem, start = make_problem(self, dynamics, cost, z, warm_start, generator, proposals)
        if goal.shape[-1] != z.shape[1] or goal.shape[0] not in (1, len(z)):
            raise ValueError(
                f"the cost must hold 1 goal or {len(z)}, {z.shape[1]} wide, got {tuple(goal.shape)}"
            )
        paths, drawn = self.proposals.draw(z, goal.to(z).expand_as(z), self.samples, generator)
        candidates = torch.cat([start[:, None], problem.with_proposals(drawn)], dim=1)
        latents, costs = problem.rollout(candidates)
        costs = comparable(costs)
        expected = latents.unflatten(0, candidates.shape[:2])  # b p n h+1 d
        flow = self.proposals.paths
        path_mismatch = torch.zeros_like(costs)
        own = slice(1, 1 + drawn.shape[1])
        apart = flow.standardise(paths)[:, :, None] - flow.standardise(expected[:, own])
        path_mismatch[:, own] = apart.square().mean((2, 3, 4))
        total = path_mismatch + self.goal_weight * costs
        best = total.topk(self.elites, dim=1, largest=False).indices
        if self.refine is not None:
            likely = take(candidates, best)
            return self.refine.plan(dynamics, cost, z, likely[:, 0], generator, likely)
        chosen = best[:, 0]
        return Plan(
            actions=pick(candidates, chosen),
            cost=pick(costs, chosen),
            candidates=candidates,
            candidate_costs=costs,
            branches=pick(latents.unflatten(0, candidates.shape[:2]), chosen),
        )
