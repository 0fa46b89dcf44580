"""Checks of Stable-Baselines3's ``VecEnv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool


def check_terminal_observations(dones: Bool[np.ndarray, " n"], infos: Sequence[Mapping[str, Any]]) -> None:
    """Raises if an episode ended without ``info["terminal_observation"]``.

    A ``VecEnv`` resets an environment in the step that ends its episode and returns the first observation of the next
    one. A model that learns transitions would learn the jump between them.

    Raises:
        ValueError: if ``infos[i]`` has no ``"terminal_observation"`` where ``dones[i]`` is true.
    """
    missing = [i for i in np.flatnonzero(dones).tolist() if infos[i].get("terminal_observation") is None]
    if missing:
        raise ValueError(
            f"episodes ended in environments {missing} without info['terminal_observation'] (keys there: "
            f"{sorted(infos[missing[0]])}); let the VecEnv's step_wait put an episode's last observation there, as "
            "Stable-Baselines3's DummyVecEnv and SubprocVecEnv do"
        )
