"""Rewards that are numbers."""

from __future__ import annotations

from typing import Any

import numpy as np


def scalar_reward(reward: Any) -> Any:
    """A reward as a number: itself, or the only entry of an array.

    Raises:
        ValueError: for an array of several entries, or of none.
    """
    if np.ndim(reward) == 0:
        return reward
    values = np.asarray(reward)
    if values.size != 1:
        raise ValueError(
            f"a reward must be one number, got an array of shape {values.shape}: {values.tolist()}; reduce it to one, "
            "for instance with gymnasium.wrappers.TransformReward"
        )
    return float(values.reshape(()))
