"""Tree search that spreads out: grow imagined paths towards states far from all others, keep the best end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jepa_rl.agents.planners.base import (
    BasePlanner,
    Problem,
    check_common,
    comparable,
    make_problem,
    pick,
    take,
)
from jepa_rl.checks import check_each
from jepa_rl.costs import least_of
from jepa_rl.dynamics.base import is_markov
from jepa_rl.noise import directions
from jepa_rl.types import ActionKind, Cost, Dynamics, Plan


@dataclass(frozen=True)
class TreeSearch(BasePlanner):
    """A beam of imagined states, chosen for being far from each other rather than for being cheap.

    Where the way to the goal leads away from it first (around a wall, through a door), the cost has a valley
    that sampling around one mean does not leave. Here every level of the tree tries ``branches`` actions from
    each of ``width`` states and keeps those ``width`` children that lie farthest from all states kept so far
    (farthest-point selection, Gonzalez 1985; the idea of novelty search, Lehman & Stanley 2011, and of the
    space-filling of rapidly exploring random trees, LaValle 1998). The answer is the path to the state whose
    cost, plus ``step_cost`` for every latent step on the way, is least; after it the plan rests (zero actions). The
    tree stops growing when no deeper state can be worth its steps (``jepa_rl.costs.least_of``); that changes no plan.

    The cost of a state is that of the transition into it, so a ``GoalCost`` means the same with either
    ``reduce``. The dynamics answer for one future; use the sampling planners for more. Dynamics that remember more
    than the newest latent (``jepa_rl.dynamics.is_markov``) are rolled out from the present state at every level, so
    that they remember what led there; the search then takes about ``horizon / 2`` times as long.

    Attributes:
        horizon: levels of the tree, in latent steps.
        width: states kept on a level.
        branches: actions tried from each of them.
        step_cost: price of a latent step, in units of the cost.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    actions: ClassVar[ActionKind] = "continuous"
    # A tree over several futures would need a policy, not a path: one future, and no attitude to risk (BasePlanner's).

    horizon: int
    width: int = 24
    branches: int = 8
    step_cost: float = 0.05

    def __post_init__(self) -> None:
        check_common(self, "width", "branches")
        check_each(
            lambda cost: 0.0 <= cost < float("inf"), "be finite and at least 0", step_cost=self.step_cost
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
        """See ``jepa_rl.types.Planner``. The warm start competes as one more path of the tree."""
        problem, warm = make_problem(self, dynamics, cost, z, warm_start, generator, proposals)
        nodes, paths = z.unsqueeze(1), warm[:, None, :0]  # b w d, b w depth a
        visited, ends, totals = nodes, [], []
        found, least = z.new_full(z.shape[:1], torch.inf), least_of(cost)
        old_end, follow = z.unsqueeze(1), warm_start is not None  # the state that the old plan leads to
        for depth in range(self.horizon):
            actions = self._actions(nodes, dynamics.action_dim, generator)
            child_paths = torch.cat(
                [paths.repeat_interleave(self.branches, 1), actions.flatten(1, 2).unsqueeze(2)], 2
            )
            children, child_costs = _last_step(
                problem, nodes.repeat_interleave(self.branches, 1), child_paths
            )
            if follow:
                old_path = warm[:, None, : depth + 1]
                old_end, old_cost = _last_step(problem, old_end, old_path)
                children = torch.cat([children, old_end], 1)
                child_costs = torch.cat([child_costs, old_cost], 1)
                child_paths = torch.cat([child_paths, old_path], 1)
            best = child_costs.argmin(1)
            totals.append(pick(child_costs, best) + self.step_cost * (depth + 1))
            ends.append(_pad(pick(child_paths, best), self.horizon))
            found = torch.minimum(found, totals[-1])
            if (found <= least + self.step_cost * (depth + 2)).all():
                break
            kept = spread(children, visited, child_costs, self.width)
            nodes, paths = take(children, kept), take(child_paths, kept)
            visited = torch.cat([visited, nodes], 1)
        candidates, costs = torch.stack(ends, 1), torch.stack(totals, 1)
        best = pick(candidates, costs.argmin(1)).unsqueeze(1)
        return problem.finish(problem.with_proposals(best), candidates, costs)

    def _actions(
        self, nodes: Tensor, size: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b w k a"]:
        """Random directions; two thirds of them reach the bounds, one third half of the way."""
        # One draw for all environments, so that the plan for one does not depend on which others are beside it.
        shape = (nodes.shape[1], self.branches, size)
        direction = directions(shape, nodes, generator)
        direction[:, ::3] *= 0.5
        return direction.expand(len(nodes), -1, -1, -1)


def spread(
    children: Float[Tensor, "b m d"], visited: Float[Tensor, "b q d"], costs: Float[Tensor, "b m"], width: int
) -> Int64[Tensor, "b w"]:
    """``width`` children far from each other and from all states visited; the cheapest child is always one."""
    novelty = torch.cdist(children, visited).amin(2)
    first = costs.argmin(1, keepdim=True)
    shortlist = novelty.scatter(1, first, torch.inf).topk(min(4 * width, novelty.shape[1]), dim=1).indices
    points = take(children, shortlist)
    # The choices follow one another and are tiny: NumPy makes them in a fifth of the time, a graphics card's included.
    apart = torch.cdist(points, points).float().cpu().numpy()
    gap = novelty.gather(1, shortlist).float().cpu().numpy().copy()
    rows, chosen = np.arange(len(gap)), np.zeros((len(gap), min(width, gap.shape[1])), np.int64)
    for i in range(1, chosen.shape[1]):  # the cheapest heads the shortlist
        latest = chosen[:, i - 1]
        np.minimum(gap, apart[rows, latest], out=gap)
        gap[rows, latest] = -1.0  # never again
        chosen[:, i] = gap.argmax(1)
    return shortlist.gather(1, torch.from_numpy(chosen).to(shortlist.device))


def _last_step(
    problem: Problem, nodes: Float[Tensor, "b m d"], paths: Float[Tensor, "b m depth a"]
) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m"]]:
    """The state that each path ends in, and the cost of the transition into it, in one call of the dynamics.

    Args:
        problem: with the state now, where all paths begin.
        nodes: the state before the last action of each path.
        paths: actions from now on.
    """
    size = paths.shape[:2]
    actions = paths.flatten(0, 1)
    if is_markov(problem.dynamics):
        start, actions = nodes.flatten(0, 1), actions[:, -1:]
    else:
        start = problem.z.repeat_interleave(size[1], dim=0)
    latents = problem.dynamics.rollout(start, actions, generator=problem.future_generator)
    costs = problem.cost(latents[:, :, -2:], actions[:, -1:])[:, 0].view(size)
    return latents[:, 0, -1].unflatten(0, size), comparable(costs)


def _pad(path: Float[Tensor, "b depth a"], horizon: int) -> Float[Tensor, "b h a"]:
    """The path, and zero actions after it."""
    return torch.nn.functional.pad(path, (0, 0, 0, horizon - path.shape[1]))
