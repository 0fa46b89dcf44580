"""Model-predictive path integral control: candidates weighted by the exponential of their cost."""

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


def softmin(costs: Float[Tensor, "b k"], temperature: float) -> Float[Tensor, "b k"]:
    """Weights ``exp(-(cost - min) / (temperature * spread))`` that sum to one over k.

    The spread (largest finite cost minus smallest) makes the temperature free of the cost's unit.
    """
    excess = (costs - costs.amin(1, keepdim=True)).nan_to_num(
        nan=0.0, posinf=torch.inf
    )  # inf - inf is a draw
    spread = excess.masked_fill(~torch.isfinite(excess), 0.0).amax(1, keepdim=True)
    # Costs that are all equal weigh the same: 0 / tiny, not 0 / 0.
    return torch.softmax(-excess / (temperature * spread).clamp_min(torch.finfo(costs.dtype).tiny), dim=1)


@dataclass(frozen=True)
class MPPI:
    """Model-predictive path integral control (Williams et al. 2017), iterated over elites as in TD-MPC2.

    Each iteration draws ``samples`` plans around a mean (the mean is one of them) and sets mean and
    standard deviation to those of the ``elites`` cheapest, weighted by ``softmin`` (Hansen et al.
    2024, section 3.2). Returned is the cheaper of the last mean and the best plan seen, or the mean in any case:
    the best of many plans in a learned model is also the one whose cost the model gets most wrong, while a mean over
    many elites averages such errors out.

    Attributes:
        horizon: actions in a plan, in latent steps.
        init_std: first standard deviation; actions live in [-1, 1].
        min_std: floor of the standard deviation, against freezing too early.
        temperature: small follows the best elite, large averages them; in units of the spread of
            the elites' costs.
        keep_best: whether the best plan seen may be returned.
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
    temperature: float = 0.3
    keep_best: bool = True
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
            weights = softmin(elite_costs, self.temperature)[:, :, None, None]
            mean = (weights * elites).sum(1)
            std = (weights * (elites - mean[:, None]).square()).sum(1).sqrt().clamp_min(self.min_std)
        answers = [mean, best.actions] if self.keep_best else [mean]
        return problem.finish(torch.stack(answers, dim=1), candidates, costs)
