"""Planning by gradient descent through the dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.agents.planners.base import BasePlanner, check_common, make_problem, pick, without_nan
from jepa_rl.agents.planners.sampling import Incumbent, perturb
from jepa_rl.checks import check_each, positive
from jepa_rl.noise import normal
from jepa_rl.risk import Risk, expected_cost
from jepa_rl.types import ActionKind, Cost, Dynamics, Plan


@dataclass(frozen=True)
class GradientPlanner(BasePlanner):
    """Projected Adam on the actions, from several starts (as in Bharadhwaj et al. 2020, without the CEM).

    The starts are the warm start and normal perturbations of it; the cheapest plan that any of them
    passed is returned. Dynamics and cost must be differentiable in the actions; no parameter receives a gradient.

    Attributes:
        horizon: actions in a plan, in latent steps.
        restarts: starts that descend side by side.
        iterations: Adam steps.
        learning_rate: Adam's, in units of the actions, which live in [-1, 1].
        init_std: standard deviation of the starts around the first one.
        futures: futures drawn for each candidate where the dynamics draw any.
        risk: costs "b n" of the futures -> "b", differentiable.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    actions: ClassVar[ActionKind] = "continuous"

    horizon: int
    restarts: int = 8
    iterations: int = 30
    learning_rate: float = 0.1
    init_std: float = 0.5
    futures: int = 1
    risk: Risk = expected_cost

    def __post_init__(self) -> None:
        check_common(self, "restarts", "iterations")
        check_each(
            positive, "be positive and finite", learning_rate=self.learning_rate, init_std=self.init_std
        )

    def plan(
        self,
        dynamics: Dynamics,
        cost: Cost,
        z: Float[Tensor, "b d"],
        warm_start: Float[Tensor, "b h a"] | None = None,
        generator: torch.Generator | None = None,
        proposals: Float[Tensor, "b p h a"] | None = None,
    ) -> Plan:
        """See ``jepa_rl.types.Planner``. Raises ValueError for arguments of the wrong shape or not
        finite, and if no gradient reaches the actions."""
        # The caller may plan under inference_mode, whose tensors no gradient can pass.
        with torch.inference_mode(False), torch.enable_grad():
            problem, start = make_problem(
                self, dynamics, cost, z.detach().clone(), warm_start, generator, proposals
            )
            noise = normal((self.restarts, *start.shape[1:]), start, generator)
            starts = perturb(start, torch.full_like(start, self.init_std), noise)
            actions = problem.with_proposals(starts).clone().requires_grad_()
            optimiser = torch.optim.Adam([actions], lr=self.learning_rate)
            best = Incumbent()
            best.offer(*_cheapest(actions, problem.costs(actions)))
            for _ in range(self.iterations):
                costs = problem.rollout(actions)[1]
                if not costs.requires_grad:
                    raise ValueError(
                        "the cost does not depend on the actions by any gradient; check that the dynamics "
                        "roll out without no_grad or detach, or plan with CEM"
                    )
                sound = torch.isfinite(costs)
                (gradient,) = torch.autograd.grad(costs[sound].sum(), actions)
                best.offer(*_cheapest(actions, costs))
                actions.grad = gradient.nan_to_num(0.0)
                optimiser.step()
                with torch.no_grad():
                    # A start that left the region of finite costs goes on from the best plan so far.
                    actions.copy_(torch.where(sound[:, :, None, None], actions, best.actions[:, None]))
                    actions.clamp_(-1.0, 1.0)
            with torch.no_grad():
                final = actions.detach()
                costs = without_nan(problem.rollout(final)[1])
                last = _cheapest(final, costs)
                best.offer(*last)
                # Both are judged anew: with several futures the best ever seen may owe it to the draw.
                return problem.finish(torch.stack([last[0], best.actions], dim=1), final, costs)


@torch.no_grad()
def _cheapest(actions: Float[Tensor, "b s h a"], costs: Float[Tensor, "b s"]) -> tuple[Tensor, Tensor]:
    least, index = without_nan(costs).min(1)
    return pick(actions, index), least
