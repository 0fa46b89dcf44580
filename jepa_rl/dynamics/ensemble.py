"""Several point predictors side by side: futures that differ where the data are few."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.distributed import average, own_draw
from jepa_rl.dynamics.base import Standardised, in_chunks
from jepa_rl.dynamics.point import MLPDynamics
from jepa_rl.registry import register_dynamics


@register_dynamics("ensemble")
class EnsembleDynamics(Standardised):
    """Several point predictors; every future follows one of them (PETS's TS-infinity, Chua et al. 2018).

    They differ where the data are few, not where the world is uncertain: each of them predicts the mean.

    Args:
        latent_dim, action_dim: widths of latent and action.
        members: predictors; future ``i`` follows number ``i % members``.
        width, depth: of each, see ``MLPDynamics``.

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(
        self, latent_dim: int, action_dim: int, members: int = 5, width: int = 192, depth: int = 2
    ) -> None:
        super().__init__(latent_dim, action_dim)
        if members < 1:
            raise ValueError(f"members must be at least 1, got {members}")
        self.width = width
        self.members = nn.ModuleList(
            MLPDynamics(latent_dim, action_dim, width, depth) for _ in range(members)
        )

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n h+1 d"]:
        """One path for each future. Raises as ``Standardised.check``."""
        self.check(z, actions, futures)
        members = list(self.members)[:futures]

        def part(rows: Tensor, taken: Tensor) -> Tensor:
            first, steering = self.standardise(rows), self.standardise_actions(taken)
            paths = [member.rollout(first, steering)[:, 0, 1:] for member in members]  # type: ignore[operator]
            return self.destandardise(torch.stack([paths[i % len(paths)] for i in range(futures)], 1), rows)

        return in_chunks(part, z, actions, self.width, futures * (actions.shape[1] + 1) * self.latent_dim)

    def draw(
        self,
        z: Float[Tensor, "b d"],
        action: Float[Tensor, "b a"],
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """See ``TrainableDynamics.draw``: members in a random order for each row, at most as many as there are."""
        every = self.rollout(z, action.unsqueeze(1), futures=len(self.members))[:, :, 1]
        order = torch.rand(every.shape[:2], generator=generator, device=z.device).argsort(1)[:, :futures]
        return every.gather(1, order[..., None].expand(-1, -1, self.latent_dim))

    def loss(
        self,
        latents: Float[Tensor, "b t d"],
        actions: Float[Tensor, "b h a"],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of each member's open-loop rollout, on half of the windows each."""
        path, taken = self.standardise(latents), self.standardise_actions(actions)
        errors = []

        def draw(count: int) -> Tensor:
            return torch.rand(count, generator=generator, device=path.device)

        for member in self.members:
            chosen = own_draw(draw, len(path)) < 0.5
            predicted = member.rollout(path[chosen, 0], taken[chosen])[:, 0, 1:]  # type: ignore[operator]
            count = average(predicted.new_tensor(predicted.numel())).clamp_min(1)
            errors.append((predicted - path[chosen, 1:]).square().sum() / count)
        error = torch.stack(errors).sum()
        return error, {"prediction": error / len(errors)}
