"""What the agents of this folder need of a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool


def check_terminal_observations(dones: Bool[np.ndarray, " n"], infos: Sequence[Mapping[str, Any]]) -> None:
    """Refuses steps that end an episode without its last observation.

    A ``VecEnv`` resets an environment in the step that ends its episode, so what it returns there belongs to the next
    episode, and a model that learns transitions would learn a jump.

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
