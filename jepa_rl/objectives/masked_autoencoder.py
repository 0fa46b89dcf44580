"""Masked autoencoders: hidden patches of pictures, reconstructed from the others."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.objectives.masks import hidden_places, random_mask, taken
from jepa_rl.objectives.tokens import MaskedObjective, TokenPredictor
from jepa_rl.registry import register_objective
from jepa_rl.types import World, WorldSpec


@register_objective("mae")
class MaskedAutoencoder(MaskedObjective):
    """MAE (He et al. 2022, arXiv:2111.06377): pixels of hidden patches, from an encoder that sees the others alone.

    The error is the mean square over hidden patches, whose pixels are normalised by each patch's own mean and standard
    deviation. The decoder is narrow and only training needs it. Every picture of a window counts as one; actions and
    time are not used. The planner's latent: see ``TokenObjective``.

    Args:
        latent_dim, spec, encoder: the world model's.
        ratio: share of the patches that is hidden.
        normalise: whether patches are normalised; otherwise pixels from 0 to 1 are reconstructed.
        width, depth: of the decoder (``TokenPredictor``).
        weights: ``dynamics`` and ``readout``, see ``TokenObjective``.

    Raises:
        ValueError: as ``MaskedObjective`` and ``TokenPredictor``, or for a ratio that hides everything or nothing.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        ratio: float = 0.75,
        normalise: bool = True,
        width: int = 48,
        depth: int = 2,
        **weights: float,
    ) -> None:
        super().__init__(latent_dim, spec, encoder, **weights)
        self.hidden, self.normalise = hidden_places(ratio, self.grid), normalise
        assert spec.pixels is not None  # TokenObjective has checked it
        channels, size, _ = spec.pixels
        pixels = channels * (size // self.grid) ** 2
        self.predictor = TokenPredictor(self.token_width, pixels, self.places, width, depth)

    def encoder_loss(
        self,
        world: World,
        pictures: UInt8[Tensor, "n c y x"],  # type: ignore[override]
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``EncoderObjective.encoder_loss``."""
        mask = random_mask(len(pictures), self.grid, self.hidden, generator, pictures.device)
        hidden = mask.hidden[:, 0]
        found = self.predictor(world.encoder.tokens(pictures, mask.seen), mask.seen, hidden)
        target = taken(patches_of(pictures, self.grid, self.normalise), hidden)
        error = (found - target).square().mean()
        return error, {"reconstruction": error}


def patches_of(
    pixels: UInt8[Tensor, "b c y x"], grid: int, normalise: bool, epsilon: float = 1e-6
) -> Float[Tensor, "b l p"]:
    """Pixels of each patch, row by row of the grid.

    Args:
        pixels: pictures.
        grid: rows and columns of patches.
        normalise: to mean 0 and variance 1 within each patch; otherwise from 0 to 1.
        epsilon: added to the variance; patches of one colour become 0.
    """
    b, c, y, _ = pixels.shape
    side = y // grid
    cut = pixels.float().mul_(1 / 255).view(b, c, grid, side, grid, side)
    patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(b, grid**2, -1)
    if not normalise:
        return patches
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + epsilon).sqrt()
