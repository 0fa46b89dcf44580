"""Random numbers on a tensor's device and in its dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of a shape, on the device and in the dtype of ``like``."""
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def directions(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Actions "... a" in random directions, each of them at the bounds [-1, 1]."""
    drawn = normal(shape, like, generator)
    return drawn / drawn.abs().amax(-1, keepdim=True).clamp_min(1e-6)
