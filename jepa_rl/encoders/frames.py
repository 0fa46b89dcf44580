"""Stacked frames, read one by one by the same small encoder."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.encoders.base import PictureEncoder
from jepa_rl.encoders.conv import ConvEncoder
from jepa_rl.encoders.keypoints import KeypointEncoder
from jepa_rl.registry import register_encoder


def picture_encoder(
    channels: int,
    size: int,
    latent_dim: int,
    widths: tuple[int, ...] | None = None,
    patch: int = 4,
    norm: bool = True,
    keypoints: int = 0,
) -> ConvEncoder | KeypointEncoder:
    """A ``KeypointEncoder`` where there are ``keypoints``, a ``ConvEncoder`` otherwise; its own ``widths`` if None."""
    options: dict[str, Any] = dict(patch=patch, norm=norm) | ({} if widths is None else dict(widths=widths))
    if keypoints:
        return KeypointEncoder(channels, size, latent_dim, keypoints, **options)
    return ConvEncoder(channels, size, latent_dim, **options)


@register_encoder("frames")
class FramesEncoder(PictureEncoder):
    """Stacked frames, each through the same small encoder; what they and their differences say makes the latent.

    Where things are is learned once and not anew for every place in the stack, and how fast they move is a difference
    of two such readings. From 2,250 pictures of cartpole a supervised regression read the angular velocity in unseen
    episodes, wherever the pole was in view, with an R2 of 0.90 this way and of 0.59 with all frames as channels of a
    ``ConvEncoder``.

    Args:
        channels: input channels ``frames * c``, the oldest frame first.
        size: input rows and columns.
        latent_dim: width of the latent.
        frames: in the stack.
        widths, patch, keypoints: of the encoder of one frame, see ``picture_encoder``.
        frame_dim: numbers that one frame is read into.
        width: hidden units of the perceptron that joins them. Keypoints are joined by one linear layer: places need
            no bending, and what is drawn anew with every episode is not learned by heart.
        norm: whether the batch norm is there; without it the caller bounds the latents.

    Raises:
        ValueError: if the channels are not ``frames`` times as many for each, and as these encoders.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        latent_dim: int,
        frames: int,
        widths: tuple[int, ...] | None = None,
        patch: int = 4,
        frame_dim: int = 64,
        width: int = 128,
        norm: bool = True,
        keypoints: int = 0,
    ) -> None:
        super().__init__()
        if frames < 1 or channels % frames:
            raise ValueError(f"{channels} channels are no stack of {frames} frames of equal channels")
        self.latent_dim, self.frames, self.channels = latent_dim, frames, channels // frames
        self.frame = picture_encoder(self.channels, size, frame_dim, widths, patch, False, keypoints)
        inputs = frames * frame_dim
        self.join: nn.Module = (
            nn.Linear(inputs, latent_dim)
            if keypoints
            else nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, latent_dim))
        )
        self.norm = nn.BatchNorm1d(latent_dim, affine=False) if norm else nn.Identity()

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        """Latents float32."""
        return self.windows(pixels, 1)[:, 0]

    def runs(self, windows: UInt8[Tensor, "b t c y x"]) -> UInt8[Tensor, "b f y x"]:
        """All frames of each window, none of them twice, as channels of one picture."""
        return torch.cat([windows[:, 0], windows[:, 1:, -self.channels :].flatten(1, 2)], dim=1)

    def windows(self, runs: UInt8[Tensor, "b f y x"], steps: int) -> Float[Tensor, "b t d"]:
        """Latents of every ``frames`` frames in a row; each frame is read once."""
        frames = runs.unflatten(1, (-1, self.channels)).flatten(0, 1)
        each = self.frame(frames).unflatten(0, (len(runs), -1))
        stacks = each.unfold(1, self.frames, 1).movedim(-1, 2)  # b t k n
        parts = torch.cat([stacks[:, :, -1:], stacks.diff(dim=2)], dim=2)
        latents = self.norm(self.join(parts.flatten(2)).flatten(0, 1))
        return latents.unflatten(0, (len(runs), -1))
