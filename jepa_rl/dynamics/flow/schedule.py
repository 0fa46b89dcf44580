"""Noise levels: 1 is noise, 0 a clean latent; along one state, and along a path of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.checks import check_each
from jepa_rl.dynamics.flow.settings import Solver

# Evaluations that the sampler is trained to make do with; other counts follow the plain flow.
FEW_EVALUATIONS = (1, 2, 4)

# Noisy states and the number of a level to the expected clean states.
Denoise = Callable[[Tensor, int], Tensor]
# A denoiser, states at the first level, and levels, to the states at the last.
Integrate = Callable[[Denoise, Tensor, Sequence[float]], Tensor]

# Most and least noise beside a signal of weight 1, and how steps are spread between. EDM's 80 and 0.002 are for
# pictures; the flow is trained at levels that rarely lie outside these (logits of a normal distribution), and on normal
# distributions of width 0.05 to 1 these have half of the error or less by 17 and 33 evaluations. RHO is EDM's.
MOST_NOISE, LEAST_NOISE, RHO = 20.0, 0.02, 7.0


def shifted(level: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards noise (``shift`` above 1) or towards clean latents."""
    return shift * level / (1 + (shift - 1) * level)


def levels_of(evaluations: int, shift: float) -> list[float]:
    """Noise levels of one state from 1 to 0, through ``evaluations`` jumps."""
    return shifted(torch.linspace(1.0, 0.0, evaluations + 1), shift).tolist()


def jump(x: Tensor, clean: Tensor, level: Tensor | float, to: Tensor | float) -> Tensor:
    """From noise level ``level`` to ``to`` along the line from ``x`` to the clean latent."""
    return clean if isinstance(to, float) and to == 0.0 else clean + (x - clean) * (to / level)


def euler(denoise: Denoise, x: Tensor, levels: Sequence[float]) -> Tensor:
    """From each level to the next by ``jump``; arguments as for ``heun``."""
    for i, (level, to) in enumerate(pairwise(levels)):
        x = jump(x, denoise(x, i), level, to)
    return x


def heun_levels(evaluations: int) -> list[float]:
    """Noise levels of one state from 1 to 0, for the steps of ``heun``.

    EDM's schedule (Karras et al. 2022, arXiv:2206.00364, eq. 5) spreads steps over the noise ``s`` beside a signal of
    weight 1. The flow's states are ``(1 - l) z + l * noise``, so that ``s = l / (1 - l)``, and levels are
    ``l = s / (1 + s)``. The first is 1, where the flow begins, instead of the most noise.

    Args:
        evaluations: of the network, odd: two for each step but the last.

    Raises:
        ValueError: for an even number, or one below 1.
    """
    if evaluations < 1 or evaluations % 2 == 0:
        raise ValueError(
            f"heun takes an odd number of evaluations, two for each step and one for the last, got {evaluations}"
        )
    steps = evaluations // 2 + 1
    share = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    most, least = MOST_NOISE ** (1 / RHO), LEAST_NOISE ** (1 / RHO)
    noise = torch.lerp(torch.full_like(share, most), torch.full_like(share, least), share) ** RHO
    return [1.0, *(noise / (1 + noise))[1:].tolist(), 0.0]


def heun(denoise: Denoise, x: Tensor, levels: Sequence[float]) -> Tensor:
    """Integrates the flow by Heun's method: second order, the mean slope of both ends of a step.

    The deterministic sampler of EDM (Karras et al. 2022, arXiv:2206.00364, Alg. 1) with the flow's scale ``1 - l`` and
    noise ``l``, whose slope is ``(x - clean) / l``. The last step, to level 0, is Euler's.

    Args:
        denoise: noisy states and the number of a level to the expected clean states; it is called twice a step, and
            once in the last.
        x: states at ``levels[0]``.
        levels: falling, from at most 1 to 0; see ``heun_levels``.

    Returns:
        The states at ``levels[-1]``.
    """
    for i, (level, to) in enumerate(pairwise(levels)):
        slope = (x - denoise(x, i)) / level
        there = x + (to - level) * slope
        if to > 0:
            there = x + (to - level) * (slope + (there - denoise(there, i + 1)) / to) / 2
        x = there
    return x


def schedule(
    horizon: int,
    evaluations: int,
    lag: float = 1.0,
    shift: float = 1.0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "levels h"]:
    """Noise levels of ``horizon`` states over the evaluations of ``FlowDynamics.denoise``: from all 1 to all 0.

    Args:
        horizon: states of the path.
        evaluations: that each state goes through.
        lag: how far a state is behind the one before, in states: 0 denoises all at once, 1 one after the other, and
            what lies between is Diffusion Forcing's pyramid, the near future nearly clean while the far one is noise.
            A state never attends to later ones, so that each has its own right distribution at any lag; states depend
            on each other only as far as the earlier one is settled before the later one.
        shift: that of the model.
        device: of the result.

    Raises:
        ValueError: for counts below 1 or a lag outside [0, 1].
    """
    check_each(lambda count: count >= 1, "be at least 1", horizon=horizon, evaluations=evaluations)
    check_each(lambda lag: 0.0 <= lag <= 1.0, "lie in [0, 1]", lag=lag)
    begins = torch.round(torch.arange(horizon, device=device) * lag * evaluations)
    rows = torch.arange(int(begins[-1]) + evaluations + 1, device=device)
    return shifted((1.0 - (rows[:, None] - begins) / evaluations).clamp(0.0, 1.0), shift)


def steps_of(solver: Solver, evaluations: int, shift: float) -> tuple[Integrate, list[float]]:
    """How a solver integrates the flow of one state, and through which levels."""
    return (heun, heun_levels(evaluations)) if solver == "heun" else (euler, levels_of(evaluations, shift))


def check_levels(levels: Tensor, steps: int, states: int) -> None:
    """Raises ValueError unless levels are "levels h" for a path of h states and as many steps, within [0, 1] and never
    rising."""
    if levels.ndim != 2 or levels.shape[1] != states or states != steps:
        raise ValueError(
            f"levels must be (evaluations + 1, {steps}) for a path of as many states, got "
            f"{tuple(levels.shape)} and a path of {states}"
        )
    if levels.min() < 0 or levels.max() > 1 or (levels.diff(dim=0) > 0).any():
        raise ValueError("levels must lie in [0, 1] and never rise")
