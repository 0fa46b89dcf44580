"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), pre-norm."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from jepa_rl.distributed import BatchNorm
from jepa_rl.encoders.base import PictureEncoder
from jepa_rl.encoders.conv import PatchConv, precision_of
from jepa_rl.registry import register_encoder


@register_encoder("vit")
class ViTEncoder(PictureEncoder):
    """Patches, a few transformer blocks, the mean over patches or all of them, a linear layer and a batch norm.

    The last layer before the batch norm is linear: a layer norm there would prevent SIGReg from acting (LeWorldModel).

    Args:
        channels: input channels ``k * c``.
        size: input rows and columns, a multiple of ``patch``.
        latent_dim: width of the latent.
        width, depth, heads: size of the transformer.
        patch: rows and columns of one patch.
        pool: whether the linear layer reads the mean of the tokens, or all of them side by side. A mean says where
            something is only as far as the tokens themselves do.
        causal: whether a patch attends only to itself and to those before it, row by row (the objective ``nepa``).

    Raises:
        ValueError: if the size is no multiple of the patch, or the width none of the heads.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        latent_dim: int,
        width: int = 96,
        depth: int = 4,
        heads: int = 3,
        patch: int = 8,
        pool: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        for name, value, of, unit in (("size", size, "patch", patch), ("width", width, "heads", heads)):
            if value % unit:
                raise ValueError(f"{name} must be a multiple of {of}, got {name}={value} and {of}={unit}")
        self.latent_dim, self.pool, self.causal = latent_dim, pool, causal
        places = (size // patch) ** 2
        self.patches = PatchConv(channels, size, width, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, places, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.project = nn.Linear(width if pool else places * width, latent_dim)
        self.norm = BatchNorm(latent_dim, affine=False)
        mask = nn.Transformer.generate_square_subsequent_mask(places) if causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        """Latents float32."""
        return self.readout(self.summary(self.tokens(pixels)))

    def summary(self, tokens: Float[Tensor, "b l w"]) -> Float[Tensor, "b f"]:
        """What ``readout`` reads of all tokens: their mean, or all of them."""
        return tokens.mean(1) if self.pool else tokens.flatten(1)

    def readout(self, summary: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Latents, linear in the summary."""
        return self.norm(self.project(summary))

    def tokens(
        self, pixels: UInt8[Tensor, "b c y x"], keep: Int64[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b l w"]:
        """The last block's tokens.

        Args:
            pixels: pictures.
            keep: places, counted row by row; only their patches enter the blocks, and only their tokens are returned,
                in this order. None keeps all.

        Raises:
            ValueError: if ``keep`` holds no place, or is asked of a causal encoder, whose order it would change.
        """
        if keep is not None and (self.causal or not keep.numel()):
            raise ValueError(
                f"keep must hold at least one place of each picture, and the encoder must not be causal, got "
                f"{tuple(keep.shape)} and causal={self.causal}"
            )
        with self._precision(pixels):
            x = self.embeddings(pixels) + self.positions
            if keep is not None:
                x = x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            tokens = self.blocks(x, mask=self.mask, is_causal=self.causal)
        return tokens.to(self.project.weight.dtype)

    def embeddings(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b l w"]:
        """Each patch alone, without its position."""
        with self._precision(pixels):
            x = self.patches(pixels)
        return x.flatten(2).transpose(1, 2)

    def _precision(self, pixels: Tensor) -> torch.autocast:
        return precision_of(self, self.project.weight.dtype, pixels.device)
