"""Augmentation of uint8 pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from jepa_rl.checks import check_each
from jepa_rl.distributed import own_draw
from jepa_rl.objectives.base import each
from jepa_rl.types import Batch, ControlBatch, Observations


def random_shift(
    pixels: UInt8[Tensor, "b c y x"], by: int, generator: torch.Generator | None = None
) -> UInt8[Tensor, "b c y x"]:
    """Pictures shifted at random by up to ``by`` pixels along both axes, borders repeated (Kostrikov et al. 2020, DrQ).

    For speed each row of the result is copied as one run of bytes from the padded pictures.

    Args:
        pixels: each picture gets its own shift, its channels the same one.
        by: largest shift in pixels.
        generator: of the shifts.
    """
    b, channels, rows, columns = pixels.shape
    sides = (*pixels.shape[:3], by)
    wide = torch.cat([pixels[..., :1].expand(sides), pixels, pixels[..., -1:].expand(sides)], dim=-1)
    width = columns + 2 * by

    def shifts(count: int) -> Tensor:
        drawn = torch.randint(0, 2 * by + 1, (2, count, 1, 1), generator=generator, device=pixels.device)
        return drawn.transpose(0, 1)

    down, right = own_draw(shifts, b).unbind(1)
    y = (torch.arange(rows, device=pixels.device) + down - by).clamp_(0, rows - 1)
    picture = torch.arange(b * channels, device=pixels.device).view(b, channels, 1)
    starts = (picture * rows + y) * width + right
    runs = wide.view(-1).as_strided((wide.numel() - columns + 1, columns), (1, 1))
    return runs.index_select(0, starts.view(-1)).view(pixels.shape)


def shifted(observations: Observations, by: int, generator: torch.Generator | None = None) -> Observations:
    """``random_shift`` of all pictures; the pictures "b t c y x" of a window share one shift. Vectors stay as they are.

    Args:
        observations: pictures "b c y x" or "b t c y x", or pictures and vectors by name.
        by: largest shift in pixels; 0 changes nothing.
        generator: of the shifts.
    """

    def change(x: Tensor) -> Tensor:
        return random_shift(x.flatten(1, -3), by, generator).view(x.shape) if by and x.ndim >= 4 else x

    return each(observations, change)


def with_shifted_future(batch: Batch, by: int, generator: torch.Generator | None = None) -> Batch:
    """The batch with its ``future``, where it has one, ``shifted``."""
    if isinstance(batch, ControlBatch) and batch.future is not None:
        return replace(batch, future=shifted(batch.future, by, generator))
    return batch


LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in brightness (ITU-R BT.601)


@dataclass(frozen=True)
class Views:
    """Random views of pictures, as SimCLR, MoCo v2 and DINO compare them, but for their Gaussian blur and solarisation.

    SimCLR does not blur small pictures either (appendix B.9). Each picture gets its own crop and colours; the stacked
    frames of a picture share them.

    Attributes:
        scale: smallest and largest share of the picture's area in a crop, which is resized to the picture's size.
        jitter: strength of colour changes, SimCLR's s: brightness, contrast and saturation by up to 0.8 s, hue by 0.2 s
            of a turn, for four of five pictures. 0 switches them off. Pictures without three channels change in
            brightness and contrast alone.
        grayscale: probability that colours are removed, of pictures with three channels.
        flip: probability of a left-right flip. Off by default: an agent must tell left from right.

    Raises:
        ValueError: unless 0 < scale[0] <= scale[1] <= 1, and the others lie in [0, 1].
    """

    scale: tuple[float, float] = (0.2, 1.0)
    jitter: float = 0.5
    grayscale: float = 0.2
    flip: float = 0.0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale must be a pair 0 < smallest <= largest <= 1, shares of the area, got {self.scale}"
            )
        shares = {"jitter": self.jitter, "grayscale": self.grayscale, "flip": self.flip}
        check_each(lambda value: 0 <= value <= 1, "lie in [0, 1]", **shares)

    def draw(
        self, pictures: Observations, frames: int, generator: torch.Generator | None = None
    ) -> Observations:
        """One view of every picture.

        Args:
            pictures: uint8 "b c y x", or such by name.
            frames: stacked in each picture.
            generator: of all that is random.
        """

        def change(x: Tensor) -> Tensor:
            seen = random_crop(x, self.scale, self.flip, generator)
            return recoloured(seen, frames, self.jitter, self.grayscale, generator)

        return each(pictures, change)


def random_crop(
    pixels: UInt8[Tensor, "b c y x"],
    scale: tuple[float, float],
    flip: float = 0.0,
    generator: torch.Generator | None = None,
) -> UInt8[Tensor, "b c y x"]:
    """A random part of each picture, bilinearly resized to the whole (Szegedy et al. 2015, arXiv:1409.4842).

    Args:
        pixels: each picture gets its own crop, its channels the same one.
        scale: range of the crop's share of the area, uniform. The ratio of its sides is log-uniform between 3/4 and
            4/3, or nearer to 1 where the crop would not fit into the picture; a share of 1 is the whole picture.
        flip: probability that the part is flipped left to right.
        generator: of crops and flips.
    """
    area, stretch, at_x, at_y, turn = torch.rand(5, len(pixels), generator=generator, device=pixels.device)
    area = scale[0] + (scale[1] - scale[0]) * area
    ratio = ((2 * stretch - 1) * (-area.log()).clamp(max=math.log(4 / 3))).exp()
    wide, high = (area * ratio).sqrt(), (area / ratio).sqrt()
    # In grid_sample's coordinates a picture reaches from -1 to 1.
    rows, columns = (
        (2 * torch.arange(size, device=pixels.device) + 1) / size - 1 for size in pixels.shape[2:]
    )
    flips = torch.where(turn < flip, -1.0, 1.0)
    x = torch.outer(wide * flips, columns) + ((1 - wide) * (2 * at_x - 1)).unsqueeze(1)
    y = torch.outer(high, rows) + ((1 - high) * (2 * at_y - 1)).unsqueeze(1)
    # Faster than affine_grid, which multiplies a matrix with every pixel's place.
    grid = torch.stack(torch.broadcast_tensors(x.unsqueeze(1), y.unsqueeze(2)), dim=-1)
    seen = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return seen.round_().to(torch.uint8)


def recoloured(
    pixels: UInt8[Tensor, "b c y x"],
    frames: int,
    jitter: float,
    grayscale: float = 0.0,
    generator: torch.Generator | None = None,
) -> UInt8[Tensor, "b c y x"]:
    """Pictures with randomly changed colours; each change is a matrix on the colours, so that all are one product.

    The order is brightness, contrast, saturation, hue, grey; values are clipped to bytes once, at the end. Hue turns
    around the grey axis of YIQ.

    Args:
        pixels: ``frames * channels`` of each picture.
        frames: stacked in each picture, which share the change.
        jitter, grayscale: see ``Views``; 0 and 0 change nothing.
        generator: of the changes.
    """
    channels = pixels.shape[1] // frames
    coloured = channels == 3
    if not jitter and not (grayscale and coloured):
        return pixels
    x = pixels.float().unflatten(1, (frames, channels)).flatten(3)
    draws = torch.rand(6, len(pixels), 1, 1, generator=generator, device=pixels.device)
    strength = jitter * (draws[4] < 0.8)
    brightness, contrast, saturation = (1 + 0.8 * strength * (2 * draw - 1) for draw in draws[:3])
    same = torch.eye(channels, device=pixels.device)
    luma = torch.tensor(LUMA, device=pixels.device) if coloured else torch.full_like(same[0], 1 / channels)
    mean = torch.einsum("bkcp,c->b", x, luma).view(-1, 1, 1) / (frames * x.shape[-1])
    change = contrast * brightness
    if coloured:
        change = change * same
        grey = luma.expand(3, 3)  # every colour becomes the brightness
        change = turned_hue(0.2 * strength * (2 * draws[3] - 1)) @ grey.lerp(same, saturation) @ change
        change = torch.where(draws[5] < grayscale, grey @ change, change)
    x = torch.matmul(change.unsqueeze(1), x) if coloured else x * change.unsqueeze(1)
    # Contrast is about the mean brightness; what it adds is grey, and so the same for later changes.
    x += ((1 - contrast) * brightness * mean).unsqueeze(1)
    return x.round_().clamp_(0, 255).to(torch.uint8).view(pixels.shape)


def turned_hue(turns: Float[Tensor, "b 1 1"]) -> Float[Tensor, "b 3 3"]:
    """Matrices that turn the hue of RGB colours by parts of a full turn, around the grey axis of YIQ."""
    to_yiq = torch.tensor(
        [LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], device=turns.device
    )
    angle = 2 * math.pi * turns[:, 0, 0]
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=-1).view(-1, 3, 3)
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq
