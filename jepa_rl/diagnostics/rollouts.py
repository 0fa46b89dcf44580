"""How well dynamics predict: error along the horizon, use of the actions, surprise."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.types import Dynamics

FUTURES = 16  # whose mean is the prediction of dynamics that draw futures


def _expected(
    dynamics: Dynamics, z: Float[Tensor, "b d"], actions: Float[Tensor, "b h a"]
) -> Float[Tensor, "b h+1 d"]:
    generator = torch.Generator(z.device).manual_seed(0)
    return dynamics.rollout(z, actions, futures=FUTURES, generator=generator).mean(1)


@torch.no_grad()
def rollout_error(
    dynamics: Dynamics, latents: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"]
) -> Float[Tensor, " h"]:
    """Mean squared error of the open-loop prediction, relative to that of predicting no change.

    The prediction of dynamics that draw futures is the mean of ``FUTURES`` of them. A single future would count the
    spread of the futures twice: for a perfect model its squared error is twice that of the mean.

    Args:
        dynamics: predict from the first state of each window.
        latents: encoded states.
        actions: between them.

    Returns:
        One error for each of 1..h steps ahead.
    """
    predicted = _expected(dynamics, latents[:, 0], actions)[:, 1:]
    error = (predicted - latents[:, 1:]).square().mean((0, 2))
    copying = (latents[:, :1] - latents[:, 1:]).square().mean((0, 2))
    return error / copying.clamp_min(1e-12)


@torch.no_grad()
def action_shuffle_gap(
    dynamics: Dynamics,
    latents: Float[Tensor, "b t d"],
    actions: Float[Tensor, "b h a"],
    generator: torch.Generator | None = None,
) -> float:
    """Relative rise of the rollout error when every window gets another window's actions.

    Args:
        dynamics, latents, actions: as for ``rollout_error``.
        generator: of the permutation of the actions.

    Returns:
        0 where the prediction ignores the actions.
    """
    device = actions.device if generator is None else generator.device
    order = torch.randperm(len(actions), generator=generator, device=device)
    shuffled = actions[order.to(actions.device)]
    error = rollout_error(dynamics, latents, actions).mean()
    return float(rollout_error(dynamics, latents, shuffled).mean() / error.clamp_min(1e-12) - 1.0)


@torch.no_grad()
def surprise(
    dynamics: Dynamics, latents: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"]
) -> Float[Tensor, "b h"]:
    """Euclidean distance between each latent and its one-step prediction from the one before.

    Args:
        dynamics: predict one step from each state.
        latents: encoded states.
        actions: between them.
    """
    before, after = latents[:, :-1].flatten(0, 1), latents[:, 1:].flatten(0, 1)
    predicted = _expected(dynamics, before, actions.flatten(0, 1).unsqueeze(1))[:, 1]
    return (predicted - after).norm(dim=-1).view(len(latents), -1)
