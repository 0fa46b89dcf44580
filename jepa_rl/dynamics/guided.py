"""A view of dynamics whose futures lean towards what is cheap."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.types import Cost, Dynamics


class GuidedDynamics:
    """Draws futures from ``p(path) * exp(-strength * cost(path))``, p being what the dynamics draw from.

    Towards a goal with the cost of being away from it, away from what costs; negative strengths look for trouble. By
    sampling importance resampling (Rubin 1988): ``pool`` times as many futures are drawn, and as many as were asked
    for are chosen among them (systematic resampling, Kitagawa 1996), so that every one of them is a path that the
    dynamics drew themselves; some may be the same. It takes any sampling dynamics and any cost, and asks neither for
    gradients. Futures differ from plain ones along the whole path: it is no causal model, and a plan that is judged by
    it is judged as if luck could be chosen. Use it to propose, to stress a plan and to look.

    Args:
        dynamics: what draws.
        cost: of paths, "b n h+1 d" and actions "b h a" -> "b n".
        strength: in units of 1 / cost; 0 changes nothing.
        pool: futures drawn for each that is asked for; the law is met exactly as this grows.

    Raises:
        ValueError: for a pool below 1 or a strength that is not finite.
    """

    def __init__(self, dynamics: Dynamics, cost: Cost, strength: float = 1.0, pool: int = 8) -> None:
        if pool < 1 or not abs(strength) < float("inf"):
            raise ValueError(f"pool must be at least 1 and strength finite, got {pool} and {strength}")
        self.dynamics, self.cost, self.strength, self.pool = dynamics, cost, strength, pool
        self.latent_dim, self.action_dim = dynamics.latent_dim, dynamics.action_dim

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n h+1 d"]:
        """``futures`` of the pool's paths; see ``jepa_rl.types.Dynamics``.

        Raises:
            ValueError: if the dynamics answer with a single future whatever they are asked for, or costs leave nothing
                to choose.
        """
        paths = self.dynamics.rollout(z, actions, futures=futures * self.pool, generator=generator)
        if paths.shape[1] != futures * self.pool:
            raise ValueError(
                f"guidance chooses among futures: asked for {futures * self.pool}, the dynamics drew "
                f"{paths.shape[1]}; use dynamics that draw several, such as FlowDynamics"
            )
        costs = self.cost(paths, actions)
        weights = -self.strength * costs if self.strength else torch.zeros_like(costs)
        if torch.isnan(weights).any() or torch.isinf(weights.amax(-1)).any():
            raise ValueError(
                "costs of the drawn futures are NaN, or so infinite that nothing is left to choose; check the "
                "cost, or the model that drew them"
            )
        shares = weights.softmax(-1).cumsum(-1)
        start = torch.rand((), generator=generator, device=z.device, dtype=z.dtype)
        places = (torch.arange(futures, device=z.device, dtype=z.dtype) + start) / futures
        chosen = torch.searchsorted(shares, places.expand(len(z), -1).contiguous())
        chosen = chosen.clamp_max(paths.shape[1] - 1)  # where the shares add up to a little less than 1
        return paths[torch.arange(len(z), device=z.device)[:, None], chosen]
