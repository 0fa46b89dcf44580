"""What objectives on tokens of pictures share: the readout of the latent, and a transformer that fills in places."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from jepa_rl.checks import check_each, check_not_negative
from jepa_rl.objectives.base import checked_loss
from jepa_rl.objectives.encoder_objective import EncoderObjective, real_pictures
from jepa_rl.objectives.terms import VICREG_COVARIANCE, covariance
from jepa_rl.types import Batch, World, WorldSpec

HEAD = 16
"""Width of an attention head of ``TokenPredictor``."""


class TokenObjective(EncoderObjective):
    r"""Base class of objectives whose loss is on tokens; a subclass defines ``encoder_loss``.

    Planners need one latent, and no loss on tokens says which. Here it is a fixed kind of readout, the same for all of
    these objectives and without labels: the principal components of the tokens, each of variance 1. The loss

    .. math:: L_{readout} = \|D z - s\|^2 / \|s\|^2 + C(z) / 25

    trains the last linear layer of the encoder, which gives z, and a linear decoder D, for s the summary of the tokens
    (side by side, or their mean: ``ViTEncoder``'s ``pool``), centred and without a gradient. A linear autoencoder is
    best where z spans the principal components (Baldi and Hornik 1989); the encoder's batch norm and the covariance C
    make them uncorrelated and equally large, so that all optima are rotations of each other and distances between
    latents are the same in each. ``jepa_rl.encoders.fit_readout`` puts the exact components in after training. Neither
    this loss nor the dynamics' reaches the tokens.

    Args:
        latent_dim, spec, encoder: the world model's.
        dynamics: weight of the dynamics' loss.
        readout: weight of the readout's.

    Raises:
        ValueError: for a weight below 0, more than one picture, or an encoder without tokens or readout.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        dynamics: float = 1.0,
        readout: float = 1.0,
    ) -> None:
        super().__init__(spec, dynamics)
        check_not_negative(readout=readout)
        if spec.pixels is None or spec.parts or not all(hasattr(encoder, name) for name in NEEDED):
            raise ValueError(
                f"objectives on tokens need one picture and an encoder with {', '.join(NEEDED)} "
                f"(jepa_rl.encoders.PictureEncoder), got {dict(spec.shapes)} and {type(encoder).__name__}; use 'vit', "
                "or 'dense', which reads tokens of 'conv', 'frames' and 'keypoints', too"
            )
        self.readout_weight = readout
        with torch.no_grad():
            tokens = encoder.tokens(torch.zeros(1, *spec.pixels, dtype=torch.uint8))  # type: ignore[operator]
            summary = encoder.summary(tokens)  # type: ignore[operator]
        self.places, self.token_width = tokens.shape[1:]
        self.decoder = nn.Linear(latent_dim, summary.shape[1], bias=False)

    def loss(
        self, world: World, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.loss``. Windows that run over an episode's end are left out of readout and dynamics."""
        total, found = checked_loss(self.token_loss(world, batch, generator), "loss of the encoder")
        batch = batch.whole()
        z, readout = self.read(world, batch.pixels.flatten(0, 1))
        total, found = total + self.readout_weight * readout, {**found, "readout": readout}
        return self.with_dynamics(
            total, found, world, z.unflatten(0, batch.pixels.shape[:2]), batch, generator
        )

    def token_loss(
        self, world: World, batch: Batch, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the tokens, and its terms: ``encoder_loss`` of single pictures. Override it to look at windows."""
        return self.encoder_loss(world, real_pictures(batch), generator)

    def read(self, world: World, pixels: UInt8[Tensor, "n c y x"]) -> tuple[Float[Tensor, "n d"], Tensor]:
        """Latents of pictures, and the loss of the readout; both have a gradient in the readout alone."""
        encoder = world.encoder
        with torch.no_grad():
            summary = encoder.summary(encoder.tokens(pixels))
            centred = summary - summary.mean(0)
            scaled = centred / centred.square().mean().sqrt().clamp_min(1e-6)
        z = encoder.readout(summary)
        error = (self.decoder(z) - scaled).square().mean()
        return z, error + VICREG_COVARIANCE * covariance(z)


NEEDED = ("tokens", "summary", "readout")


class MaskedObjective(TokenObjective):
    """Base class of objectives that hide places of pictures; the encoder reads the others alone.

    Args:
        latent_dim, spec, encoder: the world model's.
        weights: ``dynamics`` and ``readout``, see ``TokenObjective``.

    Attributes:
        grid: rows and columns of places.

    Raises:
        ValueError: as ``TokenObjective``; or for an encoder that cannot leave tokens out, or whose tokens are no grid.
    """

    def __init__(self, latent_dim: int, spec: WorldSpec, encoder: nn.Module, **weights: float) -> None:
        super().__init__(latent_dim, spec, encoder, **weights)
        self.grid = math.isqrt(self.places)
        keeps = "keep" in inspect.signature(encoder.tokens).parameters  # type: ignore[arg-type]
        if not keeps or getattr(encoder, "causal", False) or self.grid**2 != self.places:
            raise ValueError(
                "objectives that mask need an encoder whose tokens(pixels, keep) reads only the kept places of a "
                f"square grid, and that is not causal, got {type(encoder).__name__} with {self.places} tokens; use "
                "'vit'"
            )


class TokenPredictor(nn.Module):
    """A narrow transformer that says what is at hidden places, from the tokens of the seen ones.

    It is the predictor of I-JEPA and V-JEPA and the decoder of MAE: a learned mask token stands at every hidden place,
    all tokens attend to each other, and what became of the mask tokens is the answer.

    Args:
        inputs: width of the encoder's tokens.
        outputs: width of an answer.
        places: of a picture.
        width: of its own tokens, a multiple of 16: heads are 16 wide.
        depth: blocks.

    Raises:
        ValueError: for a width that is no multiple of 16, or a depth below 1.
    """

    def __init__(self, inputs: int, outputs: int, places: int, width: int, depth: int) -> None:
        super().__init__()
        check_each(lambda value: value > 0 and value % HEAD == 0, f"be a multiple of {HEAD}", width=width)
        check_each(lambda value: value >= 1, "be at least 1", depth=depth)
        self.embed = nn.Linear(inputs, width)
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(places, width))
        block: Any = nn.TransformerEncoderLayer(
            width, width // HEAD, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(
        self,
        tokens: Float[Tensor, "b m w"],
        seen: Int64[Tensor, "b m"],
        hidden: Int64[Tensor, "b n"],
        frames: int = 1,
    ) -> Float[Tensor, "b n o"]:
        """What is at the hidden places.

        Args:
            tokens: of the encoder, at the seen places.
            seen, hidden: places; with several frames frame by frame, each with equally many.
            frames: of a window; their times are told apart by sines and cosines.
        """
        times = waves(frames, self.positions)
        known = self.embed(tokens) + self._at(seen, times)
        asked = self.mask + self._at(hidden, times)
        x = self.blocks(torch.cat([known, asked], dim=1))
        return self.head(x[:, seen.shape[1] :])

    def _at(self, places: Int64[Tensor, "b m"], times: Float[Tensor, "t w"]) -> Float[Tensor, "b m w"]:
        return self.positions[places] + times.repeat_interleave(places.shape[1] // len(times), 0)


def waves(steps: int, like: Tensor) -> Float[Tensor, "t w"]:
    """Sines and cosines of the times 0, 1, .. (Vaswani et al. 2017, arXiv:1706.03762), small as fresh positions are.

    Args:
        steps: number of times.
        like: its last axis is the width, an even number; device and dtype are the result's, too.
    """
    half = like.shape[-1] // 2
    rates = 10_000.0 ** (-torch.arange(half, device=like.device, dtype=like.dtype) / half)
    angles = torch.arange(steps, device=like.device, dtype=like.dtype)[:, None] * rates
    return 0.1 * torch.cat([angles.sin(), angles.cos()], dim=-1)
