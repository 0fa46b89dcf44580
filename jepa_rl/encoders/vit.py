"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), pre-norm, mean-pooled."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.distributed import BatchNorm
from jepa_rl.encoders.base import PictureEncoder
from jepa_rl.encoders.conv import bfloat16_is_fast
from jepa_rl.registry import register_encoder


@register_encoder("vit")
class ViTEncoder(PictureEncoder):
    """Patches, a few transformer blocks, the mean over patches, a linear layer and a batch norm.

    The last layer before the batch norm is linear: a layer norm there would prevent SIGReg from acting (LeWorldModel).

    Args:
        channels: input channels ``k * c``.
        size: input rows and columns, a multiple of ``patch``.
        latent_dim: width of the latent.
        width, depth, heads: size of the transformer.
        patch: rows and columns of one patch.
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
    ) -> None:
        super().__init__()
        for name, value, of, unit in (("size", size, "patch", patch), ("width", width, "heads", heads)):
            if value % unit:
                raise ValueError(f"{name} must be a multiple of {of}, got {name}={value} and {of}={unit}")
        self.latent_dim = latent_dim
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.project = nn.Linear(width, latent_dim)
        self.norm = BatchNorm(latent_dim, affine=False)

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        """Latents float32."""
        return self.norm(self.project(self.tokens(pixels).mean(1)))

    def tokens(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b l w"]:
        """The last block's tokens; pixels are scaled from 0..255 to 0..1 here and nowhere else."""
        half = (
            self.training and self.project.weight.dtype == torch.float32 and bfloat16_is_fast(pixels.device)
        )
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=half):
            tokens = self.patches(
                pixels.to(torch.bfloat16 if half else self.project.weight.dtype).mul_(1 / 255)
            )
            tokens = self.blocks(tokens.flatten(2).transpose(1, 2) + self.positions)
        return tokens.to(self.project.weight.dtype)
