"""Augmentation of uint8 pictures."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

from jepa_rl.distributed import own_draw
from jepa_rl.objectives.base import each
from jepa_rl.types import Observations


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
