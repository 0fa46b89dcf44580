"""Random numbers on a tensor's device and in its dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers.

    Args:
        shape: of the result.
        like: a tensor with the device and dtype of the result.
        generator: of the numbers.
    """
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def directions(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Actions "... a" in random directions, scaled so that the largest component is -1 or 1.

    Args:
        shape: of the result.
        like: a tensor with the device and dtype of the result.
        generator: of the directions.
    """
    drawn = normal(shape, like, generator)
    return drawn / drawn.abs().amax(-1, keepdim=True).clamp_min(1e-6)
