"""Model-predictive path integral control: candidates weighted by the exponential of their cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.agents.planners.sampling import Gaussian, SamplingPlanner, perturb
from jepa_rl.checks import check_each, positive
from jepa_rl.noise import normal
from jepa_rl.types import ActionKind


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
class MPPI(SamplingPlanner[Gaussian]):
    """Model-predictive path integral control (Williams et al. 2017), iterated over elites as in TD-MPC2.

    Each iteration draws ``samples`` plans around a mean (the mean is one of them), in pairs that are mirrored at the
    mean (antithetic variates, Hammersley and Morton 1956: the noise of a pair cancels where the cost is flat), and
    sets mean and standard deviation to those of the ``elites`` cheapest, weighted by ``softmin`` (Hansen et al. 2024,
    section 3.2). Returned is the cheaper of the last mean and the best plan seen, or the mean in any case:
    the best of many plans in a learned model is also the one whose cost the model gets most wrong, while a mean over
    many elites averages such errors out.

    Attributes:
        horizon, samples, elites, iterations, futures, risk: see ``SamplingPlanner``. Of an even number of samples, two
            are the mean.
        init_std: first standard deviation; actions live in [-1, 1].
        min_std: floor of the standard deviation, against freezing too early.
        temperature: small follows the best elite, large averages them; in units of the spread of
            the elites' costs.
        keep_best: whether the best plan seen may be returned.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    actions: ClassVar[ActionKind] = "continuous"

    init_std: float = 0.7
    min_std: float = 0.05
    temperature: float = 0.3
    keep_best: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_each(lambda count: count >= 3, "be at least 3: the mean and a pair", samples=self.samples)
        check_each(positive, "be positive and finite", init_std=self.init_std, temperature=self.temperature)
        check_each(
            lambda std: 0.0 <= std <= self.init_std,
            f"lie in [0, init_std={self.init_std}]",
            min_std=self.min_std,
        )

    def begin(self, start: Float[Tensor, "b h a"]) -> Gaussian:
        return Gaussian(start, torch.full_like(start, self.init_std))

    def propose(
        self, state: Gaussian, iteration: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b s h a"]:
        pairs = normal(((self.samples - 1) // 2, *state.mean.shape[1:]), state.mean, generator)
        centre = torch.zeros_like(state.mean[:1])
        # An even number takes the mean twice: a plan without its mirror image would pull every search its way.
        return perturb(state.mean, state.std, torch.cat([centre, pairs, -pairs, centre])[: self.samples])

    def refit(
        self, state: Gaussian, elites: Float[Tensor, "b k h a"], costs: Float[Tensor, "b k"]
    ) -> Gaussian:
        weights = softmin(costs, self.temperature)[:, :, None, None]
        mean = (weights * elites).sum(1)
        std = (weights * (elites - mean[:, None]).square()).sum(1).sqrt().clamp_min(self.min_std)
        return Gaussian(mean, std)

    def answers(self, state: Gaussian, best: Float[Tensor, "b h a"]) -> list[Float[Tensor, "b h a"]]:
        return [state.mean, best] if self.keep_best else [state.mean]
