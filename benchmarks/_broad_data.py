"""Broad data of a task: the whole episodes of a training of SAC from state, in pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import SAC

from jepa_rl.data import Episode, EpisodeStore
from jepa_rl.envs import world_spec


class Recording(gym.Wrapper):
    """Shows the agent the state, and stores pictures and states of whole episodes.

    Args:
        env: a ``PixelObservation(..., keep_state=True)``.
        folder: of the store.
    """

    def __init__(self, env: gym.Env, folder: Path) -> None:
        super().__init__(env)
        self.observation_space = env.observation_space["state"]
        spec = world_spec(env)
        channels = spec.pixels[0] // spec.frames
        self.store = EpisodeStore.create(
            folder, (channels, *spec.pixels[1:]), spec.action, frames=spec.frames, source=spec.source,
            extras={"state": (self.observation_space.shape, np.float32)},
        )  # fmt: skip
        self.channels = channels

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        seen, info = self.env.reset(**kwargs)
        self.rows, self.actions, self.rewards = [seen], [], []
        return seen["state"], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        self.rows.append(seen)
        self.actions.append(action)
        self.rewards.append(reward)
        if terminated or truncated:
            frames = np.stack([row["pixels"][-self.channels :] for row in self.rows])
            states = np.stack([row["state"] for row in self.rows]).astype(np.float32)
            actions, rewards = np.stack(self.actions), np.array(self.rewards)
            self.store.append(Episode(frames, actions, rewards, terminated, truncated, {"state": states}))
        return seen["state"], float(reward), terminated, truncated, info


def broad_data(env: gym.Env, folder: Path, decisions: int, gamma: float, seed: int) -> EpisodeStore:
    """Trains SAC from state with Stable-Baselines3's settings and stores what it saw.

    Args:
        env: shows one picture and a state.
        folder: of the store; one that is whole is opened.
        decisions: environment steps.
        gamma: discount.
        seed: of the training.
    """
    if (folder / "whole").exists():
        return EpisodeStore.open(folder)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    recording = Recording(env, folder)
    SAC("MlpPolicy", recording, gamma=gamma, seed=seed, learning_starts=500).learn(decisions)
    recording.store.close()
    (folder / "whole").touch()
    return EpisodeStore.open(folder)
