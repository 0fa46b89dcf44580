"""The latent wrapper for Stable-Baselines3 vector environments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from jepa_rl._moved import renamed
from jepa_rl.envs.workers import Workers
from jepa_rl.envs.wrappers.fresh import LastObservationCheck, keep_last_observations
from jepa_rl.envs.wrappers.latent import LatentTracker, Observations, row_of
from jepa_rl.envs.wrappers.source import warn_of_differences
from jepa_rl.spaces import env_spaces
from jepa_rl.types import Encoder


class SB3LatentObservation(VecEnvWrapper):
    """Observations become latents: float32 ``(num_envs, history * d [+ s])``, one encoded batch per step.

    ``info["terminal_observation"]`` becomes a latent observation as well, in the same batch.

    Args:
        venv: ``VecEnv`` with uint8 (channels, y, x) pixels, or Dicts with them under ``pixels``.
        encoder, history, append_state, device: see ``LatentObservation``.

    Raises:
        FileNotFoundError, TypeError: as ``LatentObservation``.
        ValueError: as ``LatentObservation``; while running, if an episode ends without its last observation in
            ``info["terminal_observation"]``, or if that is overwritten already.
        RuntimeError: while running, if an environment's process ended or hangs (``jepa_rl.envs.workers``).

    Warns:
        UserWarning: as ``LatentObservation``; if an episode's last observation equals the next one's first.
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
        warn_of_differences(self._tracker.encoder, venv)
        super().__init__(venv, observation_space=self._tracker.space)
        self._workers = Workers(venv)
        self._check = None if keep_last_observations(venv) else LastObservationCheck()

    def reset(self) -> np.ndarray:
        with self._workers.answering():
            observations = self.venv.reset()
        return self._tracker.start(cast("Observations", observations))

    def step_async(self, actions: np.ndarray) -> None:
        with self._workers.answering():
            super().step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        with self._workers.answering():
            seen, rewards, dones, infos = self.venv.step_wait()
        observations = cast("Observations", seen)
        ended = np.asarray(dones, bool)
        rows = np.flatnonzero(ended).tolist()
        final = [_terminal_observation(infos, row) for row in rows]
        if self._check is not None:
            for row, observation in zip(rows, final, strict=True):
                self._check.check(observation, row_of(observations, row), row)
        latents, last = self._tracker.step(observations, ended, final)
        infos = list(infos)
        for row, latent in zip(rows, last, strict=True):
            infos[row] = {**infos[row], "terminal_observation": latent}
        return latents, rewards, dones, infos


def _terminal_observation(infos: Sequence[dict[str, Any]], row: int) -> Any:
    info = infos[row]
    if "terminal_observation" not in info:
        raise ValueError(
            f"infos[{row}] must hold 'terminal_observation' when its episode ends, as Stable-Baselines3's own VecEnvs "
            f"give it; got the keys {sorted(info)}. Add the episode's last observation in the VecEnv's step_wait: "
            "without it agents take the next episode's first observation for it"
        )
    return info["terminal_observation"]


if not TYPE_CHECKING:  # type checkers see the new name only
    __getattr__ = renamed(__name__, {"VecLatentObservation": "SB3LatentObservation"})
