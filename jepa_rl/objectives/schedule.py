"""How the decay of a moving average of weights, a teacher, changes in training."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DecaySchedule(nn.Module):
    """Decay of a moving average, which rises linearly with the updates (I-JEPA, arXiv:2301.08243, appendix A).

    Args:
        start, end: of the decay, the share that the average keeps; 1 stands still.
        updates: after which ``end`` is reached.

    Raises:
        ValueError: for decays that fall or lie outside [0, 1], a start of 1, or fewer than one update.
    """

    done: Tensor

    def __init__(self, start: float, end: float, updates: int) -> None:
        super().__init__()
        if not (0 <= start <= end <= 1 and start < 1 and updates >= 1):
            raise ValueError(
                "ema must be (start, end, updates) with 0 <= start <= end <= 1, start below 1 and at least 1 update, "
                f"got {(start, end, updates)}"
            )
        self.start, self.end, self.updates = start, end, updates
        self.register_buffer("done", torch.zeros((), dtype=torch.long))

    def step(self) -> Float[Tensor, ""]:
        """The decay of this update; counts it."""
        share = (self.done / self.updates).clamp(max=1.0)
        self.done += 1
        return self.start + (self.end - self.start) * share
