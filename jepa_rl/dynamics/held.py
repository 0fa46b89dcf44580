"""A view of dynamics in which one action is held for a whole block."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.dynamics.base import is_markov
from jepa_rl.types import Dynamics


class HeldActions:
    """Dynamics driven by one environment action per latent step, repeated over the block.

    A plan then has ``h * size`` numbers instead of ``h * block * size``, which keeps the search over long
    horizons small. Costs see the held actions, "b h size".

    Args:
        dynamics: the dynamics that are viewed; their action is ``block`` environment actions.
        block: environment actions in one latent step.

    Raises:
        ValueError: if ``block`` does not divide the width of the action.
    """

    def __init__(self, dynamics: Dynamics, block: int) -> None:
        if block < 1 or dynamics.action_dim % block:
            raise ValueError(
                f"an action of width {dynamics.action_dim} cannot be split into a block of {block} equal "
                "actions; pass the block of the model's spec"
            )
        self.dynamics, self.block = dynamics, block
        self.latent_dim, self.action_dim = dynamics.latent_dim, dynamics.action_dim // block
        self.markov = is_markov(dynamics)

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Latents "b n h+1 d"; see ``jepa_rl.types.Dynamics``.

        Raises:
            ValueError: if the actions are not of the width of one environment action.
        """
        if actions.shape[-1] != self.action_dim:
            raise ValueError(
                f"held actions must be {self.action_dim} wide (one environment action), got {actions.shape[-1]}"
            )
        blocks = actions.repeat(1, 1, self.block)
        return self.dynamics.rollout(z, blocks, futures=futures, generator=generator)
