"""Inverse dynamics: the actions between the latents of a window."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.objectives import terms
from jepa_rl.types import WorldSpec


class ActionReader(nn.Sequential):
    """A perceptron that reads the action from the latents before and after it (ICM, Pathak et al. 2017; PLDM).

    Args:
        latent_dim: width of the latents.
        spec: the world model's; its actions are the output, logits for choices.
        width: hidden units.
    """

    def __init__(self, latent_dim: int, spec: WorldSpec, width: int = 256) -> None:
        super().__init__(nn.Linear(2 * latent_dim, width), nn.SiLU(), nn.Linear(width, spec.action_dim))
        self.groups = spec.action.groups * spec.block

    def error(self, z: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"]) -> Float[Tensor, ""]:
        """Mean error of the actions between successive latents: squared, or a cross-entropy for each choice."""
        read: Tensor = self(torch.cat([z[:, :-1], z[:, 1:]], dim=-1))
        if not self.groups:
            return terms.inverse_dynamics(read, actions)
        parts = zip(read.split(self.groups, -1), actions.split(self.groups, -1), strict=True)
        if len(set(self.groups)) == 1:
            logits, one_hot = (torch.stack(part, dim=-2) for part in zip(*parts, strict=True))
            return terms.inverse_dynamics(logits, one_hot, discrete=True)
        return torch.stack([terms.inverse_dynamics(*part, discrete=True) for part in parts]).mean()
