"""The cross-entropy method: sample plans, refit a Gaussian to the cheapest, repeat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.agents.planners.base import (
    Incumbent,
    best_of,
    check_settings,
    normal,
    perturb,
    pose,
)
from jepa_rl.risk import Risk, expected_cost
from jepa_rl.types import Cost, Dynamics, Plan


@dataclass(frozen=True)
class CEM:
    """Cross-entropy method over action sequences (Rubinstein and Kroese 2004; De Boer et al. 2005).

    Each iteration draws ``samples`` plans around a mean (the mean is one of them), prices them by
    rolling the dynamics, and sets mean and standard deviation to those of the ``elites`` cheapest.
    Returned is the cheaper of the last mean and the best plan seen.

    Attributes:
        horizon: actions in a plan, in latent steps.
        init_std: first standard deviation; actions live in [-1, 1].
        min_std: floor of the standard deviation, against freezing too early.
        momentum: share of the old mean and standard deviation that survives a refit.
        futures: futures drawn for each candidate where the dynamics draw any.
        risk: costs "b n" of the futures -> "b", see ``jepa_rl.risk``.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    horizon: int
    samples: int = 256
    elites: int = 32
    iterations: int = 6
    init_std: float = 0.7
    min_std: float = 0.05
    momentum: float = 0.0
    futures: int = 1
    risk: Risk = expected_cost

    def __post_init__(self) -> None:
        check_settings(self)

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
        """See ``jepa_rl.types.Planner``. Raises ValueError for arguments of the wrong shape or not finite."""
        problem, mean = pose(self, dynamics, cost, z, warm_start, generator, proposals)
        std = torch.full_like(mean, self.init_std)
        best = Incumbent()
        for _ in range(self.iterations):
            noise = normal((self.samples, *mean.shape[1:]), mean, generator)
            candidates = problem.with_proposals(perturb(mean, std, noise))
            costs = problem.costs(candidates)
            elites, elite_costs = best_of(candidates, costs, self.elites)
            best.offer(elites[:, 0], elite_costs[:, 0])
            mean = torch.lerp(elites.mean(1), mean, self.momentum)
            std = torch.lerp(elites.std(1), std, self.momentum).clamp_min(self.min_std)
        return problem.finish(torch.stack([mean, best.actions], dim=1), candidates, costs)
