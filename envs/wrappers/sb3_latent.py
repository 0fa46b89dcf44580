"""The latent wrapper for Stable-Baselines3 vector environments."""

from __future__ import annotations

import os
from typing import cast

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from jepa_rl.envs.wrappers.latent import LatentTracker, Observations
from jepa_rl.spaces import env_spaces
from jepa_rl.types import Encoder


class VecLatentObservation(VecEnvWrapper):
    """Observations become latents: float32 ``(num_envs, history * d [+ s])``, one encoded batch per step.

    ``info["terminal_observation"]`` becomes a latent observation as well, in the same batch.

    Args:
        venv: ``VecEnv`` with uint8 (channels, y, x) pixels, or Dicts with them under ``pixels``.
        encoder, history, append_state, device: see ``LatentObservation``.

    Raises:
        As ``LatentObservation``.
    """

    def __init__(
        self,
        venv: VecEnv,
        encoder: str | os.PathLike[str] | Encoder,
        history: int = 1,
        append_state: bool = False,
        device: str = "cpu",
    ) -> None:
        self._tracker = LatentTracker(env_spaces(venv), venv.num_envs, encoder, history, append_state, device)
        super().__init__(venv, observation_space=self._tracker.space)

    def reset(self) -> np.ndarray:
        return self._tracker.start(cast("Observations", self.venv.reset()))

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        ended = np.asarray(dones, bool)
        final = [infos[row]["terminal_observation"] for row in np.flatnonzero(ended)]
        latents, last = self._tracker.step(cast("Observations", observations), ended, final)
        infos = list(infos)
        for row, latent in zip(np.flatnonzero(ended), last, strict=True):
            infos[row] = {**infos[row], "terminal_observation": latent}
        return latents, rewards, dones, infos
