"""iCEM: the cross-entropy method with coloured noise and a memory for good plans."""

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


def coloured(white: Float[Tensor, "s h a"], beta: float) -> Float[Tensor, "s h a"]:
    """Noise of unit variance whose power falls as ``1 / frequency**beta`` along the horizon.

    Shapes the spectrum of white noise (Timmer and Koenig 1995). The lowest frequency, which a
    short horizon cannot tell from a constant, gets the power of the first one that it can.

    Args:
        white: independent standard normal numbers.
        beta: 0 keeps them white, 1 is pink, 2 is a random walk.
    """
    h = white.shape[1]
    if beta == 0.0 or h == 1:
        return white
    frequency = torch.fft.rfftfreq(h, device=white.device)
    frequency[0] = frequency[1]
    gain = frequency.pow(-beta / 2.0)
    # Every frequency but the constant and the fastest of an even horizon stands for two of h.
    weight = torch.full_like(gain, 2.0)
    weight[0] = 1.0
    if h % 2 == 0:
        weight[-1] = 1.0
    gain = gain / ((weight * gain.square()).sum() / h).sqrt()
    return torch.fft.irfft(torch.fft.rfft(white, dim=1) * gain[:, None], n=h, dim=1)


@dataclass(frozen=True)
class ICEM:
    """Improved cross-entropy method (Pinneri et al. 2020, "Sample-efficient CEM for real-time planning").

    Differs from ``CEM`` in noise that is correlated in time, fewer samples in later iterations, and a
    share of the elites that enters the next iteration's candidates. The mean is always a candidate.

    Attributes:
        horizon: actions in a plan, in latent steps.
        samples: candidates of the first iteration.
        elites: cheapest candidates that the Gaussian is fitted to.
        iterations: refits.
        init_std: first standard deviation; actions live in [-1, 1].
        noise_beta: exponent of the noise's power law, see ``coloured``.
        decay: each iteration draws ``decay`` times fewer samples, but at least ``2 * elites``.
        keep: share of the elites that is kept as candidates.
        momentum: share of the old mean and standard deviation that survives a refit.
        futures: futures drawn for each candidate where the dynamics draw any.
        risk: costs "b n" of the futures -> "b", see ``jepa_rl.risk``.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    horizon: int
    samples: int = 128
    elites: int = 16
    iterations: int = 5
    init_std: float = 0.5
    noise_beta: float = 2.0
    decay: float = 1.25
    keep: float = 0.3
    momentum: float = 0.1
    futures: int = 1
    risk: Risk = expected_cost

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0.0 <= self.noise_beta <= 10.0:
            raise ValueError(f"noise_beta must lie in [0, 10], got {self.noise_beta}")
        if not self.decay >= 1.0:
            raise ValueError(f"decay must be at least 1, got {self.decay}")
        if not 0.0 <= self.keep <= 1.0:
            raise ValueError(f"keep must lie in [0, 1], got {self.keep}")

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
        kept, best = mean[:, None][:, :0], Incumbent()
        for i in range(self.iterations):
            samples = min(self.samples, max(int(self.samples / self.decay**i), 2 * self.elites))
            noise = coloured(normal((samples, *mean.shape[1:]), mean, generator), self.noise_beta)
            candidates = problem.with_proposals(torch.cat([perturb(mean, std, noise), kept], dim=1))
            costs = problem.costs(candidates)
            elites, elite_costs = best_of(candidates, costs, self.elites)
            best.offer(elites[:, 0], elite_costs[:, 0])
            kept = elites[:, : int(self.keep * self.elites)]
            mean = torch.lerp(elites.mean(1), mean, self.momentum)
            std = torch.lerp(elites.std(1), std, self.momentum)
        return problem.finish(torch.stack([mean, best.actions], dim=1), candidates, costs)
