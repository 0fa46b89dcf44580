"""A goal-conditioned inverse model, which predicts the first action from a state towards a goal: a cheap baseline."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.types import ActionSpec


class InverseModel(nn.Module):
    """A multilayer perceptron on standardised latents, (state, goal) -> the first action on the way.

    Args:
        latent_dim: width of the latents.
        action: spec of the predicted actions: a vector in [-1, 1] (through tanh), or logits of the choices.
        width: hidden units of its two hidden layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, latent_dim: int, action: ActionSpec, width: int = 256) -> None:
        super().__init__()
        self.action, self.width = action, width
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))
        self.network = nn.Sequential(
            nn.Linear(2 * latent_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, action.size),
        )  # fmt: skip

    def forward(self, z: Float[Tensor, "b d"], goal: Float[Tensor, "b d"]) -> Float[Tensor, "b size"]:
        """Actions in [-1, 1], or logits of the choices."""
        pair = [(latent - self.mean) / self.std for latent in (z, goal)]
        output = self.network(torch.cat(pair, dim=-1))
        return output if self.action.kind == "discrete" else torch.tanh(output)

    def loss(
        self, z: Float[Tensor, "b d"], goal: Float[Tensor, "b d"], actions: Float[Tensor, "b size"]
    ) -> Tensor:
        """Mean squared error of continuous actions, mean cross-entropy of discrete ones over their choices.

        Args:
            z: latents.
            goal: latents of the goals.
            actions: model actions that were taken; discrete ones one-hot.
        """
        output = self(z, goal)
        if self.action.kind == "discrete":
            parts = zip(
                output.split(self.action.groups, -1), actions.split(self.action.groups, -1), strict=True
            )
            return torch.stack([nn.functional.cross_entropy(*part) for part in parts]).mean()
        return nn.functional.mse_loss(output, actions)
