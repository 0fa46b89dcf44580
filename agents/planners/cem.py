"""The cross-entropy method: sample plans, refit a Gaussian to the cheapest, repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.agents.planners.sampling import Gaussian, SamplingPlanner, perturb
from jepa_rl.checks import check_each, is_share, positive
from jepa_rl.noise import normal
from jepa_rl.types import ActionKind


@dataclass(frozen=True)
class CEM(SamplingPlanner[Gaussian]):
    """Cross-entropy method over action sequences (Rubinstein and Kroese 2004; De Boer et al. 2005).

    Each iteration draws ``samples`` plans around a mean (the mean is one of them), prices them by
    rolling the dynamics, and sets mean and standard deviation to those of the ``elites`` cheapest.
    Returned is the cheaper of the last mean and the best plan seen.

    Attributes:
        horizon, samples, elites, iterations, futures, risk: see ``SamplingPlanner``.
        init_std: first standard deviation; actions live in [-1, 1].
        min_std: floor of the standard deviation, against freezing too early.
        momentum: share of the old mean and standard deviation that survives a refit.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    actions: ClassVar[ActionKind] = "continuous"

    init_std: float = 0.7
    min_std: float = 0.05
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_each(positive, "be positive and finite", init_std=self.init_std)
        check_each(
            lambda std: 0.0 <= std <= self.init_std,
            f"lie in [0, init_std={self.init_std}]",
            min_std=self.min_std,
        )
        check_each(is_share, "lie in [0, 1)", momentum=self.momentum)

    def begin(self, start: Float[Tensor, "b h a"]) -> Gaussian:
        return Gaussian(start, torch.full_like(start, self.init_std))

    def propose(
        self, state: Gaussian, iteration: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b s h a"]:
        noise = normal((self.samples, *state.mean.shape[1:]), state.mean, generator)
        return perturb(state.mean, state.std, noise)

    def refit(
        self, state: Gaussian, elites: Float[Tensor, "b k h a"], costs: Float[Tensor, "b k"]
    ) -> Gaussian:
        mean = torch.lerp(elites.mean(1), state.mean, self.momentum)
        std = torch.lerp(elites.std(1), state.std, self.momentum).clamp_min(self.min_std)
        return Gaussian(mean, std)

    def answers(self, state: Gaussian, best: Float[Tensor, "b h a"]) -> list[Float[Tensor, "b h a"]]:
        return [state.mean, best]
