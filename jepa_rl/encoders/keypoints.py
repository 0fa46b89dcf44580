"""An encoder of positions by a spatial softmax: latents move smoothly with the objects."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl.checks import check_not_negative
from jepa_rl.distributed import BatchNorm
from jepa_rl.encoders.base import PictureEncoder
from jepa_rl.encoders.conv import PatchConv, halving, precision_of
from jepa_rl.registry import register_encoder


@register_encoder("keypoints")
class KeypointEncoder(PictureEncoder):
    """Each feature map gives the position and the height of its peak; a linear layer mixes them.

    With ``coarse`` it also mixes the features of two further convolutions. Keypoints are precise about what has one
    place, a goal or a tip; coarse features about shapes, an arm's bend. Together they read more than either alone, see
    docs/lab-notes/joint.md.

    The spatial softmax of Levine et al. 2016 (arXiv:1504.00702) and Finn et al. 2016 (arXiv:1509.06113): a softmax
    makes every map a distribution over positions, whose mean is a keypoint of sub-pixel precision. When an object
    glides, the latent moves along a smooth line, which is easier for dynamics to predict and sample than the curved
    paths of a ``ConvEncoder``. Suited to pictures of a few moving objects, not to textures. Training takes
    twice the time of a ``ConvEncoder`` (widths (32, 32): 0.20 against 0.10 s for 512 pictures of 64 x 64 on one core).

    Args:
        channels: input channels ``k * c``.
        size: input rows and columns.
        latent_dim: width of the latent.
        keypoints: number of maps.
        widths: output channels of the patch layer, of a 3 x 3 convolution, and of any further 1 x 1 convolutions. A
            patch of 4 x 4 in three colours has 48 values: with fewer channels the position of a thin object within
            its patch is lost (the tip of reacher's arm on unseen pictures after 300 supervised updates: R2 0.6 with
            32 channels, 0.93 with 64).
        patch: rows and columns of one patch.
        norm: whether to end in a batch norm without parameters; without it the latents are not bounded.
        sharpness: initial factor on the maps (learned). With flat maps keypoints hardly move, and learning starts late.
        narrow: channels of a linear 1 x 1 convolution between the patch layer and the 3 x 3 convolution, which then
            takes a third less time in all; 0: none.
        coarse: channels of two convolutions of stride 2, whose features are mixed in at each place; 0: none.
        blur: standard deviation, in pixels, of a Gaussian blur before the patch layer (Zhang 2019, arXiv:1904.11486);
            0: none. The position within a patch causes half of the latents' roughness; a blur of one or two pixels
            removes most of that, but also thin objects.

    Raises:
        ValueError: for fewer than one keypoint, pictures of less than three patches a side, or a negative ``narrow``,
            ``coarse`` or blur.
    """

    grid: Tensor
    soften: Tensor | None

    def __init__(
        self,
        channels: int,
        size: int,
        latent_dim: int,
        keypoints: int = 16,
        widths: tuple[int, ...] = (64, 32, 32),
        patch: int = 4,
        norm: bool = True,
        sharpness: float = 5.0,
        blur: float = 0.0,
        narrow: int = 0,
        coarse: int = 0,
    ) -> None:
        super().__init__()
        if keypoints < 1:
            raise ValueError(f"keypoints must be at least 1, got {keypoints}")
        if size < 3 * patch:
            raise ValueError(f"patch {patch} needs pixels of at least {3 * patch}, got size {size}")
        check_not_negative(blur=blur, narrow=narrow, coarse=coarse)
        self.latent_dim = latent_dim
        self.register_buffer("soften", gaussian(size, blur) if blur else None, persistent=False)
        layers: list[nn.Module] = [PatchConv(channels, size, widths[0], patch), nn.ReLU()]
        if narrow:
            layers.append(nn.Conv2d(widths[0], narrow, 1))
            widths = (narrow, *widths[1:])
        for i, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 1 if i else 3, padding=0 if i else 1), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.maps = nn.Conv2d(widths[-1], keypoints, 1)
        self.log_sharpness = nn.Parameter(torch.full((keypoints, 1), sharpness).log())
        line = torch.linspace(-1.0, 1.0, size // patch)
        # x and y of every cell
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)
        self.register_buffer("grid", grid, persistent=False)
        self.coarse = nn.Sequential(*halving((widths[-1], coarse, coarse)), nn.Flatten()) if coarse else None
        places = math.ceil(size // patch / 4) ** 2
        self.project = nn.Linear(3 * keypoints + coarse * places, latent_dim)
        self.norm = BatchNorm(latent_dim, affine=False) if norm else nn.Identity()

    def read(self, pixels: UInt8[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k"]]:
        """Keypoints, x (right) and y (down) in [-1, 1], and the softmax-weighted mean of each map."""
        return self._peaks(self._features(pixels))

    def tokens(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b l w"]:
        """The last full convolution's features at each of its places."""
        return self._features(pixels).to(self.project.weight.dtype).flatten(2).transpose(1, 2)

    def _peaks(
        self, features: Float[Tensor, "b w rows columns"]
    ) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k"]]:
        heights = self.maps(features.to(self.project.weight.dtype)).flatten(2) * self.log_sharpness.exp()
        share = heights.softmax(-1)
        return share @ self.grid, (share * heights).sum(-1)

    def _features(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b w rows columns"]:
        """In the dtype that they are computed in."""
        if self.soften is not None:
            pixels = blurred(pixels, self.soften)
        with precision_of(self, self.project.weight.dtype, pixels.device):
            return self.convolutions(pixels)

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        """Latents float32."""
        features = self._features(pixels)
        where, height = self._peaks(features)
        # tanh saturates: it reports presence, not size.
        parts = [where.flatten(1), torch.tanh(0.3 * height)]
        if self.coarse is not None:
            with precision_of(self, self.project.weight.dtype, pixels.device):
                parts.append(self.coarse(features).to(self.project.weight.dtype))
        return self.norm(self.project(torch.cat(parts, dim=1)))


def gaussian(size: int, std: float) -> Float[Tensor, "n n"]:
    """Gaussian blur of a line of ``size`` pixels as a matrix; each row sums to 1, also at the borders."""
    at = torch.arange(size, dtype=torch.float32)
    weights = (-0.5 * ((at[:, None] - at) / std).square()).exp()
    weights[weights < 1e-6] = 0.0  # denormal numbers make products ten times slower
    return weights / weights.sum(1, keepdim=True)


@torch.no_grad()
def blurred(pixels: UInt8[Tensor, "b c y x"], weights: Float[Tensor, "n n"]) -> UInt8[Tensor, "b c y x"]:
    """Pictures blurred along both axes by two matrix products: ten times faster on a processor than a convolution."""
    rows = F.linear(pixels.to(weights.dtype), weights)
    # Pixels of another dtype keep it: PatchConv refuses them.
    return torch.matmul(weights, rows).round_().to(pixels.dtype)
