"""iCEM: the cross-entropy method with coloured noise and a memory for good plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.agents.planners.sampling import SamplingPlanner, perturb
from jepa_rl.checks import check_each, is_share, positive
from jepa_rl.noise import normal
from jepa_rl.types import ActionKind


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


class KeptGaussian(NamedTuple):
    """Independent normal distributions of the actions of a plan, and ``m`` elites that stay candidates."""

    mean: Float[Tensor, "b h a"]
    std: Float[Tensor, "b h a"]
    kept: Float[Tensor, "b m h a"]


@dataclass(frozen=True)
class ICEM(SamplingPlanner[KeptGaussian]):
    """Improved cross-entropy method (Pinneri et al. 2020, "Sample-efficient CEM for real-time planning").

    Differs from ``CEM`` in noise that is correlated in time, fewer samples in later iterations, and a
    share of the elites that enters the next iteration's candidates. The mean is always a candidate.

    Attributes:
        horizon, futures, risk: see ``SamplingPlanner``.
        samples: candidates of the first iteration.
        elites: cheapest candidates that the Gaussian is fitted to.
        iterations: refits.
        init_std: first standard deviation; actions live in [-1, 1].
        noise_beta: exponent of the noise's power law, see ``coloured``.
        decay: each iteration draws ``decay`` times fewer samples, but at least ``2 * elites``.
        keep: share of the elites that is kept as candidates.
        momentum: share of the old mean and standard deviation that survives a refit.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    actions: ClassVar[ActionKind] = "continuous"

    samples: int = 128
    elites: int = 16
    iterations: int = 5
    init_std: float = 0.5
    noise_beta: float = 2.0
    decay: float = 1.25
    keep: float = 0.3
    momentum: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_each(positive, "be positive and finite", init_std=self.init_std)
        check_each(is_share, "lie in [0, 1)", momentum=self.momentum)
        check_each(lambda beta: 0.0 <= beta <= 10.0, "lie in [0, 10]", noise_beta=self.noise_beta)
        check_each(lambda decay: decay >= 1.0, "be at least 1", decay=self.decay)
        check_each(lambda keep: 0.0 <= keep <= 1.0, "lie in [0, 1]", keep=self.keep)

    def begin(self, start: Float[Tensor, "b h a"]) -> KeptGaussian:
        return KeptGaussian(start, torch.full_like(start, self.init_std), start[:, None][:, :0])

    def propose(
        self, state: KeptGaussian, iteration: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b s h a"]:
        samples = min(self.samples, max(int(self.samples / self.decay**iteration), 2 * self.elites))
        white = normal((samples, *state.mean.shape[1:]), state.mean, generator)
        return torch.cat(
            [perturb(state.mean, state.std, coloured(white, self.noise_beta)), state.kept], dim=1
        )

    def refit(
        self, state: KeptGaussian, elites: Float[Tensor, "b k h a"], costs: Float[Tensor, "b k"]
    ) -> KeptGaussian:
        return KeptGaussian(
            mean=torch.lerp(elites.mean(1), state.mean, self.momentum),
            std=torch.lerp(elites.std(1), state.std, self.momentum),
            kept=elites[:, : int(self.keep * self.elites)],
        )

    def answers(self, state: KeptGaussian, best: Float[Tensor, "b h a"]) -> list[Float[Tensor, "b h a"]]:
        return [state.mean, best]
