"""Noise levels: 1 is noise, 0 a clean latent; along one state, and along a path of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.checks import check_each

# Evaluations that the sampler is trained to make do with; other counts follow the plain flow.
FEW_EVALUATIONS = (1, 2, 4)


def shifted(level: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards noise (``shift`` above 1) or towards clean latents."""
    return shift * level / (1 + (shift - 1) * level)


def levels_of(evaluations: int, shift: float) -> list[float]:
    """Noise levels of one state from 1 to 0, through ``evaluations`` jumps."""
    return shifted(torch.linspace(1.0, 0.0, evaluations + 1), shift).tolist()


def jump(x: Tensor, clean: Tensor, level: Tensor | float, to: Tensor | float) -> Tensor:
    """From noise level ``level`` to ``to`` along the line from ``x`` to the clean latent."""
    return clean if isinstance(to, float) and to == 0.0 else clean + (x - clean) * (to / level)


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
