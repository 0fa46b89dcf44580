"""The latent wrapper for Gymnasium vector environments."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from jepa_rl.envs.workers import Workers
from jepa_rl.envs.wrappers.autoreset import autoreset_mode, final_observations, reset_rows, with_final
from jepa_rl.envs.wrappers.fresh import LastObservationCheck, keep_last_observations
from jepa_rl.envs.wrappers.latent import LatentTracker, row_of
from jepa_rl.envs.wrappers.source import warn_of_differences
from jepa_rl.spaces import env_spaces
from jepa_rl.types import Encoder


class VectorLatentObservation(VectorWrapper):
    """Observations become latents: float32 ``(num_envs, history * d [+ s])``, one encoded batch per step.

    Correct in every autoreset mode: NEXT_STEP (a new history starts with the observation after the end),
    SAME_STEP (``infos["final_obs"]`` becomes a latent observation as well) and DISABLED
    (``reset(options={"reset_mask": ...})`` touches only those histories).

    Args:
        env: vector environment with uint8 (channels, y, x) pixels, or Dicts with them under ``pixels``.
        encoder, history, append_state, device: see ``LatentObservation``.

    Raises:
        FileNotFoundError, TypeError: as ``LatentObservation``.
        ValueError: as ``LatentObservation``; if the environment's metadata has no autoreset mode; while running, if
            SAME_STEP autoreset gives no last observation of an episode, or one that is overwritten already.
        RuntimeError: while running, if an environment's process ended or hangs (``jepa_rl.envs.workers``).

    Warns:
        UserWarning: as ``LatentObservation``; if an episode's last observation equals the next one's first.
    """

    def __init__(
        self,
        env: VectorEnv,
        encoder: str | os.PathLike[str] | Encoder,
        history: int = 1,
        append_state: bool = False,
        device: str = "cpu",
    ) -> None:
        super().__init__(env)
        self._mode = autoreset_mode(env)
        self._tracker = LatentTracker(env_spaces(env), self.num_envs, encoder, history, append_state, device)
        self.single_observation_space = self._tracker.space
        self.observation_space = batch_space(self._tracker.space, self.num_envs)
        warn_of_differences(self._tracker.encoder, env)
        self._ended, self._workers = np.zeros(self.num_envs, bool), Workers(env)
        in_process = self._mode is AutoresetMode.SAME_STEP and keep_last_observations(env)
        self._check = None if in_process else LastObservationCheck()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        rows = reset_rows(options, self.num_envs)
        with self._workers.answering():
            observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._ended[rows] = False
        return self._tracker.start(observations, rows), infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        with self._workers.answering():
            observations, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = np.logical_or(terminated, truncated)
        if self._mode is AutoresetMode.SAME_STEP:
            last = final_observations(infos, ended)
            if self._check is not None:
                for row, observation in zip(np.flatnonzero(ended).tolist(), last, strict=True):
                    self._check.check(observation, row_of(observations, row), row)
            latents, final = self._tracker.step(observations, ended, last)
            infos = with_final(infos, ended, final)
        else:
            started = self._ended if self._mode is AutoresetMode.NEXT_STEP else np.zeros_like(ended)
            latents, _ = self._tracker.step(observations, started)
        self._ended = ended
        return latents, rewards, terminated, truncated, infos
