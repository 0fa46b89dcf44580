"""How single frames in storage become stacked observations: one rule for the store and for the replay."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Shaped


def stack_frames(
    column: Shaped[np.ndarray, "rows c y x"],
    first: Int64[np.ndarray, " b"],
    steps: Int64[np.ndarray, "b t"],
    frames: int,
) -> Shaped[np.ndarray, "b t kc y x"]:
    """Observations as ``PixelObservation`` shows them: the last frames, oldest first, the first frame repeated
    before the start of the episode.

    Args:
        column: single frames, an episode's in consecutive rows; an episode that reaches the last row goes on in row 0.
        first: row of the first frame of each window's episode.
        steps: states of each window, in environment steps since the start of its episode.
        frames: how many frames are stacked, k.

    Returns:
        A copy, of the dtype of ``column``; the channels of the k frames one after the other.
    """
    past = np.maximum(steps[..., None] + np.arange(1 - frames, 1), 0)
    stacks = column[(first[:, None, None] + past) % len(column)]  # b t k c y x
    channels, height, width = column.shape[1:]
    return stacks.reshape(*steps.shape, frames * channels, height, width)
