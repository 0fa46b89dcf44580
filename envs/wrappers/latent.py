"""The latent wrapper for one Gymnasium environment, and what all latent wrappers share.

``LatentTracker`` encodes the observations of any number of environments at once. ``LatentObservation``,
``VectorLatentObservation`` and ``SB3LatentObservation`` adapt it to the three interfaces.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from jepa_rl.acting import scalar_reward
from jepa_rl.envs.wrappers.source import warn_of_differences
from jepa_rl.envs.wrappers.torch_state import float32, single_thread_after_fork
from jepa_rl.modes import evaluating
from jepa_rl.spaces import EnvSpaces, check_fits, env_spaces, pixel_space
from jepa_rl.types import Encoder, WorldSpec
from jepa_rl.world_model import WorldModel

Observations = np.ndarray | dict[str, np.ndarray]


class LoadedModel(NamedTuple):
    """A world model that was loaded from ``path``."""

    path: str
    model: WorldModel


class LatentObservation(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Observations become latents: float32 ``(history * d,)``, oldest first, then the state with ``append_state``.

    For several environments use ``VectorLatentObservation`` or ``SB3LatentObservation``, which encode them as one
    batch.

    Args:
        env: environment with uint8 (channels, y, x) pixels, or a Dict with them under ``pixels``.
        encoder: path of a saved world model (then ``env.spec`` can be written as JSON), or
            anything with ``encode`` and ``latent_dim``.
        history: latents in one observation; at reset the first one is repeated.
        append_state: append the Dict observation's ``state`` to the latents.
        device: where a model given by its path runs.

    Raises:
        FileNotFoundError, ValueError: if the file is missing or not a world model of ours; if the pixels,
            frames or actions differ from those the encoder was made for.
        TypeError: if ``encoder`` is neither a path nor an encoder.

    Warns:
        UserWarning: if both record how their pictures were made, and the environment makes them differently from those
            that the encoder was trained on.
    """

    def __init__(
        self,
        env: gym.Env,
        encoder: str | os.PathLike[str] | Encoder | LoadedModel,
        history: int = 1,
        append_state: bool = False,
        device: str = "cpu",
    ) -> None:
        path = encoder.path if isinstance(encoder, LoadedModel) else encoder
        gym.utils.RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,  # a live encoder is shared, not copied
            encoder=os.fspath(path) if isinstance(path, os.PathLike) else path,
            history=history,
            append_state=append_state,
            device=device,
        )
        gym.Wrapper.__init__(self, env)
        encoder = encoder.model if isinstance(encoder, LoadedModel) else encoder
        self._tracker = LatentTracker(env_spaces(env), 1, encoder, history, append_state, device)
        warn_of_differences(self._tracker.encoder, env)
        self.observation_space = self._tracker.space
        self._ended = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._ended = False
        return self._tracker.start(_batch([observation]))[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        # A step after the end comes from an environment that resets itself: start a new history.
        latents, _ = self._tracker.step(_batch([observation]), np.array([self._ended]))
        self._ended = bool(terminated or truncated)
        return latents[0], scalar_reward(reward), terminated, truncated, info


class LatentTracker:
    """Encodes the observations of ``n`` environments and keeps the last latents of each.

    Attributes:
        space: the latent observation space of one environment.
        encoder: the encoder.
    """

    def __init__(
        self,
        source: EnvSpaces,
        n: int,
        encoder: str | os.PathLike[str] | Encoder,
        history: int = 1,
        append_state: bool = False,
        device: str = "cpu",
    ) -> None:
        if history < 1:
            raise ValueError(f"history must be at least 1, got {history}")
        self._pixels = pixel_space(source.observation)
        self._append_state = append_state
        low: np.ndarray = np.empty(0, np.float32)
        high = low
        if append_state:
            state = _state_space(source.observation)
            low, high = state.low, state.high
        self.encoder = load_encoder(encoder, device)
        spec = getattr(self.encoder, "spec", None)  # a user's encoder need not have a spec
        if isinstance(spec, WorldSpec):
            check_fits(spec, source)
        self._history = np.zeros((n, history, self.encoder.latent_dim), np.float32)
        bound = np.full(history * self.encoder.latent_dim, np.inf, np.float32)
        self.space = spaces.Box(np.r_[-bound, low], np.r_[bound, high], dtype=np.float32)

    def start(self, observations: Observations, rows: np.ndarray | None = None) -> np.ndarray:
        """First observations of new episodes, in all environments or in those of the boolean mask ``rows``.

        Args:
            observations: pixels ``(n, c, y, x)``, or a dict with ``pixels`` and ``state (n, s)``.

        Returns:
            Latent observations ``(n, history * d [+ s])``; those of other rows are unchanged.
        """
        latents = self._encode(self._pixels_of(observations))
        rows = np.ones(len(latents), bool) if rows is None else rows
        self._history[rows] = latents[rows, None]
        return self._output(self._history, observations)

    def step(
        self, observations: Observations, started: np.ndarray, final: Sequence[Any] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """One step of all environments, encoded in one batch.

        Args:
            observations: as in ``start``.
            started: boolean ``(n,)``, True where the observation is the first of a new episode.
            final: the last observations of the episodes that ended in this very step, in the order of
                ``np.flatnonzero(started)``; empty where the interface has no separate last observations.

        Returns:
            Latent observations ``(n, ...)`` and those of ``final`` ``(m, ...)``.
        """
        n, pixels = len(self._history), self._pixels_of(observations)
        if final:
            last = _batch(final)
            pixels = np.concatenate([pixels, self._pixels_of(last)])
        latents = self._encode(pixels)
        ended = np.zeros((0, *self.space.shape), np.float32)
        if final:
            ended = self._output(_shift(self._history[started], latents[n:]), last)
        self._history = _shift(self._history, latents[:n])
        self._history[started] = latents[:n][started, None]
        return self._output(self._history, observations), ended

    def _pixels_of(self, observations: Observations) -> np.ndarray:
        pixels = observations["pixels"] if isinstance(observations, dict) else np.asarray(observations)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self._pixels.shape:
            raise ValueError(
                f"expected uint8 pixels of shape (n, {', '.join(map(str, self._pixels.shape))}), "
                f"got {pixels.dtype} {pixels.shape}; the environment left its observation space"
            )
        return pixels

    @torch.inference_mode()
    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        single_thread_after_fork()
        module = self.encoder if isinstance(self.encoder, nn.Module) else None
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if module is not None and (weight := next(module.parameters(), None)) is not None:
            batch = batch.to(weight.device)
        with evaluating(module), float32():
            latents = self.encoder.encode(batch).float().cpu().numpy()
        if latents.shape != (len(pixels), self._history.shape[2]):
            raise ValueError(
                f"the encoder must return latents of shape {(len(pixels), self._history.shape[2])} "
                f"(batch, latent_dim), got {latents.shape}"
            )
        if not np.isfinite(latents).all():
            raise ValueError(
                "the encoder returned NaN or infinite latents; check the weights it was trained to"
            )
        return latents

    def _output(self, history: np.ndarray, observations: Observations) -> np.ndarray:
        parts = [history.reshape(len(history), -1)]
        if self._append_state:
            state = np.asarray(observations["state"], np.float32)
            if not np.isfinite(state).all():
                env, component = np.argwhere(~np.isfinite(state))[0]
                raise ValueError(
                    f"state holds NaN or infinite values, first in environment {env} at index {component}; "
                    "check the environment's simulation"
                )
            parts.append(state)
        return np.concatenate(parts, axis=1)  # always a fresh array


def load_encoder(encoder: Any, device: str = "cpu") -> Encoder:
    """A world model from its path, or the encoder itself.

    Raises:
        FileNotFoundError, ValueError: if the file is missing or not a world model of ours.
        TypeError: if it is neither a path nor has ``encode`` and ``latent_dim``.
    """
    if isinstance(encoder, str | os.PathLike):
        return load_model(encoder, device)
    if not isinstance(encoder, Encoder):
        raise TypeError(
            "encoder must be the path of a saved world model or an object with encode(pixels) and "
            f"latent_dim, got {type(encoder).__name__}"
        )
    return encoder


def load_model(path: str | os.PathLike[str], device: str = "cpu") -> WorldModel:
    """A saved world model, in float32 whatever torch's default is.

    Raises:
        FileNotFoundError, ValueError: if the file is missing or not a world model of ours.
    """
    single_thread_after_fork()
    with float32():
        return WorldModel.load(Path(path), device=device)


def _state_space(space: gym.Space) -> spaces.Box:
    state = space.spaces.get("state") if isinstance(space, spaces.Dict) else None
    if not isinstance(state, spaces.Box) or len(state.shape) != 1:
        raise ValueError(
            f"append_state=True needs a Dict observation with a flat Box under 'state', got {space}; use "
            "PixelObservation(env, keep_state=True)"
        )
    return state


def _batch(observations: Sequence[Any]) -> Observations:
    """Observations of single environments as one with a leading axis."""
    if isinstance(observations[0], dict):
        names = [name for name in ("pixels", "state") if name in observations[0]]
        return {name: np.stack([observation[name] for observation in observations]) for name in names}
    return np.stack(observations)


def row_of(observations: Observations, row: int) -> Any:
    """The observation of one environment."""
    if isinstance(observations, dict):
        return {name: part[row] for name, part in observations.items()}
    return observations[row]


def _shift(history: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Drop each environment's oldest latent and append its newest."""
    return np.concatenate([history[:, 1:], latents[:, None]], axis=1)
