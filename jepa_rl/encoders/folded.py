"""A convolutional encoder made of matrix products alone, for processors."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl.encoders.base import PictureEncoder
from jepa_rl.encoders.conv import bfloat16_is_fast
from jepa_rl.registry import register_encoder

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def z_order(channels: int, cells: int, folds: int, patch: int, itemsize: int) -> Int64[Tensor, " words"]:
    """Indices of a picture's words, patch after patch, the patches in Z-order.

    Args:
        channels: of the picture.
        cells: rows of cells on the coarsest level; each cell holds 2 x 2 of the next finer level.
        folds: how many finer levels there are.
        patch: rows and columns of a patch, in pixels.
        itemsize: bytes of a word.
    """
    levels = [cells, *[2] * folds]
    side = cells * 2**folds * patch
    words = torch.arange(channels * side * side // itemsize)
    words = words.view(channels, *levels, patch, *levels, patch // itemsize)
    down = range(1, 1 + len(levels))
    right = range(2 + len(levels), 2 + 2 * len(levels))
    places = [axis for pair in zip(down, right, strict=True) for axis in pair]
    return words.permute(*places, 0, 1 + len(levels), 2 + 2 * len(levels)).flatten()


@register_encoder("folded")
class FoldedEncoder(PictureEncoder):
    """A pyramid of non-overlapping convolutions: patches, then 2 x 2 folds, then one linear layer and a batch norm.

    Every layer is one matrix product over rows that lie beside each other in memory: patches are cut out of the bytes
    in Z-order (Morton 1966), in which the four cells that the next layer folds into one are consecutive at every
    level. Overlapping 3 x 3 convolutions of the same widths take about twice the time on a processor without AVX512.

    Args:
        channels: input channels ``k * c``.
        size: input rows and columns. Pictures are padded with zeros to a multiple of ``patch * 2 ** (levels - 1)``.
        latent_dim: width of the latent.
        widths: output channels of the patch layer and of the folds, each of which halves rows and columns.
        patch: rows and columns of one patch.
        norm: whether to end in the batch norm; without it the latents are not bounded.

    Raises:
        ValueError: for no widths, or a size or patch below 1.
    """

    order: Tensor

    def __init__(
        self,
        channels: int,
        size: int,
        latent_dim: int,
        widths: tuple[int, ...] = (16, 32, 64),
        patch: int = 4,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or patch < 1 or size < 1:
            raise ValueError(
                f"widths, patch and size must be at least 1, and widths not empty, got {widths}, {patch}, {size}"
            )
        self.latent_dim, self.patch, self.folds = latent_dim, patch, len(widths) - 1
        coarsest = patch * 2**self.folds
        self.cells = -(-size // coarsest)  # rows of the coarsest map
        self.padding = self.cells * coarsest - size
        inputs = [channels * patch**2, *(4 * width for width in widths)]
        # A row of a patch is moved as one machine word where there is one of its length.
        self.word = WORDS.get(patch, torch.uint8)
        order = z_order(channels, self.cells, self.folds, patch, self.word.itemsize)
        self.register_buffer("order", order, persistent=False)
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(inputs, widths, strict=False)
        )
        self.project = nn.Linear(self.cells**2 * widths[-1], latent_dim)
        self.norm = nn.BatchNorm1d(latent_dim, affine=False) if norm else nn.Identity()

    def patches(self, pixels: UInt8[Tensor, "b c y x"]) -> UInt8[Tensor, "cells n"]:
        """The patches of all pictures as rows of bytes, cells in Z-order.

        Raises:
            ValueError: for anything but uint8.
        """
        if pixels.dtype != torch.uint8:
            raise ValueError(f"expected uint8 pixels, got {pixels.dtype}; 0..255 is scaled inside")
        if self.padding:
            pixels = F.pad(pixels, (0, self.padding, 0, self.padding))
        words = pixels.flatten(1).view(self.word)
        cut = words.gather(1, self.order.expand(len(words), -1))
        return cut.view(torch.uint8).view(-1, self.layers[0].in_features)

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        """Latents float32."""
        x, device = self.patches(pixels), pixels.device.type
        half = self.training and bfloat16_is_fast(pixels.device)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            first, *others = self.layers
            # Pixels are scaled from 0..255 to 0..1 by the weights, of which there are fewer.
            x = F.linear(x.to(torch.bfloat16 if half else first.weight.dtype), first.weight / 255, first.bias)
            x = F.relu_(x)
            for layer in others:
                x = F.relu_(layer(x.view(-1, layer.in_features)))
        return self.norm(self.project(x.float().view(len(pixels), -1)))
