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
        states: successive latents that it reads, the action standing between the first two. An action that sets a
            speed is seen in the place one step later (CartPole's Euler steps): three.
        width: hidden units.

    Raises:
        ValueError: for fewer than two states.
    """

    def __init__(self, latent_dim: int, spec: WorldSpec, states: int = 2, width: int = 256) -> None:
        if states < 2:
            raise ValueError(f"an action lies between two states or more, got inverse_states={states}")
        super().__init__(nn.Linear(states * latent_dim, width), nn.SiLU(), nn.Linear(width, spec.action_dim))
        self.groups, self.states = spec.action.groups * spec.block, states

    def error(self, z: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"]) -> Float[Tensor, ""]:
        """Mean error of the actions between successive latents: squared, or a cross-entropy for each choice.

        Raises:
            ValueError: if a window has fewer latents than are read.
        """
        if z.shape[1] < self.states:
            raise ValueError(
                f"inverse_states={self.states} needs windows of {self.states - 1} steps or more, got "
                f"{z.shape[1] - 1}; lengthen the windows, or set inverse_states={z.shape[1]}"
            )
        read: Tensor = self(z.unfold(1, self.states, 1).movedim(-1, 2).flatten(2))
        actions = actions[:, : read.shape[1]]
        if not self.groups:
            return terms.inverse_dynamics(read, actions)
        parts = zip(read.split(self.groups, -1), actions.split(self.groups, -1), strict=True)
        if len(set(self.groups)) == 1:
            logits, one_hot = (torch.stack(part, dim=-2) for part in zip(*parts, strict=True))
            return terms.inverse_dynamics(logits, one_hot, discrete=True)
        return torch.stack([terms.inverse_dynamics(*part, discrete=True) for part in parts]).mean()
