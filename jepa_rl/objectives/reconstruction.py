"""Reconstruction of observations from predicted latents: an ablation of the joint-embedding objectives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from jepa_rl.checks import check_not_negative
from jepa_rl.heads import Perceptron, PictureDecoder, symlog
from jepa_rl.objectives.augment import shifted, with_shifted_future
from jepa_rl.objectives.base import Objective, Unrolled, step_weights
from jepa_rl.registry import register_objective
from jepa_rl.types import Batch, World, WorldSpec


@register_objective("reconstruction")
class Reconstruction(Objective):
    """Mean squared error of a window's observations, decoded from the latents predicted from its first state.

    Args:
        latent_dim, spec: the world model's.
        reconstruction: weight of the error.
        shift: largest random shift, in pixels; the same for all pictures of a window.
        width: hidden units of the decoders of vectors.

    Raises:
        ValueError: for a weight or shift below 0, or pictures of a size that ``PictureDecoder`` does not support.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        reconstruction: float = 20.0,
        shift: int = 3,
        width: int = 128,
    ) -> None:
        super().__init__()
        check_not_negative(reconstruction=reconstruction, shift=shift)
        self.weight, self.shift = reconstruction, shift
        self.decoders = nn.ModuleDict(
            {
                name: PictureDecoder(latent_dim, size[0], size[1])
                if len(size) == 3
                else Perceptron(latent_dim, width, size[0], 2)
                for name, size in spec.shapes.items()
            }
        )

    def loss(
        self, world: World, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.loss``."""
        return self.shape(world, batch, self.unroll(world, batch, generator), 1.0, generator)

    def unroll(self, world: World, batch: Batch, generator: torch.Generator | None = None) -> Unrolled:
        """See ``Objective.unroll``. The reconstruction targets are the augmented pictures that were encoded."""
        moved = replace(batch, observations=shifted(batch.observations, self.shift, generator))
        return super().unroll(world, with_shifted_future(moved, self.shift, generator), generator)

    def shape(
        self,
        world: World,
        batch: Batch,
        unrolled: Unrolled,
        decay: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.shape``: mean squared error over pixels (0 to 1) and vectors (symlog)."""
        weight = step_weights(batch, decay, first=True).flatten()
        seen, errors = world.spec.named(unrolled.seen), []
        z = unrolled.path.flatten(0, 1)
        for name, decoder in self.decoders.items():
            there = seen[name].flatten(0, 1)
            target = there.float() / 255 if there.ndim == 4 else symlog(there.float())
            errors.append((decoder(z) - target).square().flatten(1).mean(1))
        error = torch.stack(errors).sum(0) @ weight.to(z.dtype)
        return self.weight * error, {"reconstruction": error}
