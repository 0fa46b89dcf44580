"""What wrappers of Gymnasium vector environments share: autoreset modes, and the last observations of episodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool

from jepa_rl.envs.wrappers.latent import row_of


def autoreset_mode(env: VectorEnv) -> AutoresetMode:
    """How the environment resets itself.

    Raises:
        ValueError: if its metadata do not say.
    """
    mode = env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(
            f"env.metadata['autoreset_mode'] must be a gymnasium.vector.AutoresetMode, got {mode!r}; "
            "set it in the vector environment"
        )
    return mode


def reset_rows(options: dict[str, Any] | None, num_envs: int) -> Bool[np.ndarray, " n"]:
    """Which environments ``reset(options=...)`` resets; a copy, as environments take the mask out of the options."""
    if options and "reset_mask" in options:
        return np.array(options["reset_mask"], bool)
    return np.ones(num_envs, bool)


def final_observations(infos: dict[str, Any], ended: Bool[np.ndarray, " n"]) -> list[Any]:
    """The final observations of the rows that ended, whether kept per row or as a dict of arrays.

    Raises:
        ValueError: if there are none.
    """
    rows = np.flatnonzero(ended)
    if not rows.size:
        return []
    if "final_obs" not in infos:
        raise ValueError(
            f"SAME_STEP autoreset needs infos['final_obs'] when an episode ends, got the keys {list(infos)}; "
            "fix the vector environment or use AutoresetMode.NEXT_STEP"
        )
    return [row_of(infos["final_obs"], row) for row in rows.tolist()]


def with_final(
    infos: dict[str, Any], ended: Bool[np.ndarray, " n"], observations: Iterable[Any]
) -> dict[str, Any]:
    """``infos`` with other final observations, one for each row that ended."""
    if not ended.any():
        return infos
    final = np.full(len(ended), None, dtype=object)
    for row, observation in zip(np.flatnonzero(ended), observations, strict=True):
        final[row] = observation
    return {**infos, "final_obs": final}
